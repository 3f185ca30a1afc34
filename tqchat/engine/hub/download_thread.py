"""A model's download, on a thread of its own: the engine goes on answering meanwhile."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqchat.errors import TqchatError

PROGRESS_SECONDS = 0.2

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Fetched:
    """News of a download for the engine's queue: that it moved, or how it ended."""

    fetch: Fetch
    progress: bool | None = None
    folder: Path | None = None
    error: TqchatError | None = None

    @property
    def ref(self) -> str:
        """What is downloaded."""
        return self.fetch.ref


class Fetch:
    """Downloads ``ref`` and tells the engine about it by ``post``; the end is told exactly once.

    A cancelled download is over at once for the engine. Its thread may still hang on a slow network for some
    seconds; nothing waits for it.
    """

    def __init__(self, ref: str, post: Callable[[Fetched], None]) -> None:
        self.ref = ref
        self.progress = (0, 0)
        """Bytes there, bytes in all: always the newest figures, however late the news is read."""
        self._post = post
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._ended = False
        self._told = 0.0

    def start(self) -> None:
        """Begin; returns at once."""
        threading.Thread(target=self._run, name="tqchat-download", daemon=True).start()

    def cancel(self) -> None:
        """End it. What has arrived stays on disk and is resumed next time."""
        from tqchat.engine.hub.download import DownloadCancelled

        self._cancelled.set()
        self._end(error=DownloadCancelled(self.ref))

    def _run(self) -> None:
        from tqchat.engine.hub import download

        try:
            folder = download.download(self.ref, self._moved, self._cancelled.is_set)
        except TqchatError as error:
            self._end(error=error)
        except Exception as error:
            _log.error("A download failed", exc_info=error)
            reason = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")
            self._end(error=download.DownloadFailed(f"{self.ref} could not be fetched ({reason})."))
        else:
            self._end(folder=folder)

    def _moved(self, done: int, total: int) -> None:
        self.progress = (done, total)
        now = time.monotonic()
        if now - self._told >= PROGRESS_SECONDS or done == total:
            self._told = now
            self._post(Fetched(self, progress=True))

    def _end(self, folder: Path | None = None, error: TqchatError | None = None) -> None:
        with self._lock:
            if self._ended:
                return
            self._ended = True
        self._post(Fetched(self, folder=folder, error=error))

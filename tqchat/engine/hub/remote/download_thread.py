"""A model download on its own thread, so that the engine can generate meanwhile."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqchat.errors import TqchatError

PROGRESS_INTERVAL_S = 0.2

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class DownloadUpdate:
    """A download's progress or result, for the engine's queue."""

    download: DownloadThread
    progress: bool | None = None
    folder: Path | None = None
    error: TqchatError | None = None

    @property
    def ref(self) -> str:
        """The model's name."""
        return self.download.ref


class DownloadThread:
    """Downloads ``ref`` and posts updates; the result is posted exactly once.

    ``cancel`` posts the result at once. The thread may block on a slow network for some seconds more; nothing
    waits for it.
    """

    def __init__(self, ref: str, post: Callable[[DownloadUpdate], None]) -> None:
        self.ref = ref
        self.progress = (0, 0)
        """Bytes received and in total, current even if an update is handled late."""
        self._post = post
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._ended = False
        self._posted_at = 0.0

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._run, name="tqchat-download", daemon=True).start()

    def cancel(self) -> None:
        """Stop the download. The received part stays on disk and the next download resumes it."""
        from tqchat.engine.hub.remote.download_errors import DownloadCancelled

        self._cancelled.set()
        self._end(error=DownloadCancelled(self.ref))

    def _run(self) -> None:
        from tqchat.engine.hub.remote.download import download
        from tqchat.engine.hub.remote.download_errors import DownloadFailed

        try:
            folder = download(self.ref, self._on_progress, self._cancelled.is_set)
        except TqchatError as error:
            self._end(error=error)
        except Exception as error:
            _log.error("A download failed", exc_info=error)
            reason = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")
            self._end(error=DownloadFailed(f"{self.ref} could not be fetched ({reason})."))
        else:
            self._end(folder=folder)

    def _on_progress(self, done: int, total: int) -> None:
        self.progress = (done, total)
        now = time.monotonic()
        if now - self._posted_at >= PROGRESS_INTERVAL_S or done == total:
            self._posted_at = now
            self._post(DownloadUpdate(self, progress=True))

    def _end(self, folder: Path | None = None, error: TqchatError | None = None) -> None:
        with self._lock:
            if self._ended:
                return
            self._ended = True
        self._post(DownloadUpdate(self, folder=folder, error=error))

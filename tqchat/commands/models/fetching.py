"""Downloading a model for a command, until a signal comes."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue

from tqchat.units import size

POLL_INTERVAL_S = 0.1


def fetch(repo: str, stop: threading.Event, progress: Callable[[int, int], None]) -> Path:
    """Download a model into the Hugging Face cache; returns its folder.

    Args:
        progress: Called with the bytes received and the total.

    Raises:
        TqchatError: if it cannot be downloaded; ``DownloadCancelled`` if ``stop`` was set.
    """
    from tqchat.engine.hub.remote.download_thread import DownloadThread, DownloadUpdate

    updates: SimpleQueue[DownloadUpdate] = SimpleQueue()
    # On a thread, because a request that gets no answer cannot be interrupted.
    download = DownloadThread(repo, updates.put)
    download.start()
    while True:
        try:
            update = updates.get(timeout=POLL_INTERVAL_S)
        except Empty:
            if stop.is_set():
                download.cancel()
            continue
        if update.progress:
            progress(*download.progress)
        elif update.error is not None:
            raise update.error
        else:
            assert update.folder is not None
            return update.folder


def fetch_if_missing(ref: str, stop: threading.Event) -> None:
    """Download a model that is not on this machine, with a line per 10 % on standard error: readable in logs
    and by screen readers.

    Raises:
        TqchatError: if there is no such model or it cannot be downloaded.
    """
    from tqchat.engine.hub.local_cache import partial_bytes, storage_folder
    from tqchat.engine.hub.remote.download_errors import DownloadCancelled
    from tqchat.engine.hub.resolve import local_folder

    if local_folder(ref) is not None:
        return
    doing = "Resuming the download of" if partial_bytes(storage_folder(ref)) else "Downloading"
    shown = -1

    def report(done: int, total: int) -> None:
        nonlocal shown
        tenths = 10 * done // total if total else 10
        if tenths > shown:
            shown = tenths
            print(f"tqchat: {doing} {ref}: {tenths * 10}% of {size(total)}", file=sys.stderr)

    try:
        fetch(ref, stop, report)
    except DownloadCancelled as error:
        print(f"tqchat: {error}", file=sys.stderr)
        raise

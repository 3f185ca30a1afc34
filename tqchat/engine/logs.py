"""The engine's log file of unexpected errors."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path

from tqchat.text import printable

LOG_FILE = "engine.log"


class _PrivateFileHandler(RotatingFileHandler):
    """A log file with mode 0600."""

    def _open(self) -> io.TextIOWrapper:
        stream = super()._open()
        os.fchmod(stream.fileno(), 0o600)
        return stream


class _PrintableFormatter(logging.Formatter):
    """Lines that a terminal can show: errors may quote a model's files."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


@contextmanager
def log_to(folder: Path) -> Iterator[None]:
    """Write warnings of ``tqchat.engine`` to a small file in ``folder``; nowhere if it is not writable."""
    logger = logging.getLogger("tqchat.engine")
    handler: logging.Handler
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handler = _PrivateFileHandler(
            folder / LOG_FILE, maxBytes=1 << 20, backupCount=1, delay=True, encoding="utf-8"
        )
    except OSError:
        handler = logging.NullHandler()
    handler.setFormatter(_PrintableFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    # Otherwise logging's last-resort handler would print over the application's screen.
    propagated, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated
        handler.close()

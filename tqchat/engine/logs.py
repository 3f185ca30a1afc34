"""The engine's log file of unexpected errors."""

from __future__ import annotations

import errno
import io
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path

from tqchat.paths import UnusableFolder, make_private_folder
from tqchat.text import printable

LOG_FILE = "engine.log"


class _PrivateFileHandler(RotatingFileHandler):
    """A log file with mode 0600."""

    def _open(self) -> io.TextIOWrapper:
        # A pipe in its place would wait for a reader, and a link may lead to any file.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(self.baseFilename, flags, 0o600)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "no regular file", self.baseFilename)
        os.fchmod(descriptor, 0o600)
        return os.fdopen(descriptor, "a", encoding=self.encoding)

    def handleError(self, record: logging.LogRecord) -> None:
        """Write nothing: the default prints a traceback over the application's screen."""


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
        make_private_folder(folder)
        handler = _PrivateFileHandler(
            folder / LOG_FILE, maxBytes=1 << 20, backupCount=1, delay=True, encoding="utf-8"
        )
    except (OSError, UnusableFolder):
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

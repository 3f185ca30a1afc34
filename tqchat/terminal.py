"""The way of all commands to the terminal: what they print cannot control it.

Names of models, folders and files, texts of models and imports, arguments and environment variables are
untrusted, and any of them may be part of a line, an error or a traceback. So standard output and standard
error are cleaned as a whole; control sequences of tqchat itself are written with ``write``.
"""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Any, TextIO, cast

from tqchat.text import printable


class Control(StrEnum):
    """Control sequences that tqchat writes."""

    BOLD = "\x1b[1m"
    NOT_BOLD = "\x1b[22m"
    CLEAR_LINE = "\r\x1b[K"


class CleanStream:
    """A text stream that removes control characters and escape sequences from what is written."""

    def __init__(self, stream: TextIO) -> None:
        self.unclean = stream

    def write(self, text: str) -> int:
        """Write the printable part of a text; returns the length of the whole."""
        self.unclean.write(printable(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unclean, name)


def open_closed_streams() -> None:
    """Put the null device in the place of standard streams that are closed.

    The next file that is opened, such as the database, would get the number of one of them, and what a
    library prints would be written into it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    null = Path(os.devnull)
    sys.stdin = sys.stdin or null.open(encoding="utf-8")  # Python has none in place of a closed one
    sys.stdout = sys.stdout or null.open("w", encoding="utf-8")
    sys.stderr = sys.stderr or null.open("w", encoding="utf-8")


def clean_standard_streams() -> None:
    """Clean what is printed from now on, tracebacks and messages of libraries included."""
    sys.stdout, sys.stderr = _cleaned(sys.stdout), _cleaned(sys.stderr)


def write(stream: TextIO, *parts: str) -> None:
    """Write texts and controls."""
    out = _unclean(stream)
    for part in parts:
        out.write(part if isinstance(part, Control) else printable(part))


def for_data(stream: TextIO) -> TextIO:
    """The stream for data that must arrive unchanged in a file or pipe; a terminal gets it cleaned."""
    return _cleaned(stream) if stream.isatty() else _unclean(stream)


def _unclean(stream: TextIO) -> TextIO:
    return stream.unclean if isinstance(stream, CleanStream) else stream


def _cleaned(stream: TextIO) -> TextIO:
    # Without a console, Python has no standard streams.
    if stream is None or isinstance(stream, CleanStream):
        return stream
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        # A reply may contain characters outside the terminal's encoding.
        reconfigure(errors="replace")
    return cast(TextIO, CleanStream(stream))

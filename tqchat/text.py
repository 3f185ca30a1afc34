"""Making text from a model, a file or a person safe to show: nothing in it may steer the terminal."""

from __future__ import annotations

import re

_CSI = r"(?:\x1b\[|\x9b)[0-?]*[ -/]*"  # colours, cursor, modes
_STRING = (
    r"(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*"  # OSC, DCS and the like: titles, clipboard
)
_SEQUENCE = re.compile(
    rf"{_CSI}[@-~]|{_STRING}(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"  # two-character escapes, and the opening of a string that never ends
)
_OPEN_SEQUENCE = re.compile(rf"(?:{_CSI}|{_STRING}\x1b?|\x1b[ -/]*)\Z")
_UNSAFE = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 and C1, all but newline and tab
    "\u202a-\u202e\u2066-\u2069"  # bidirectional marks that reorder what is shown
    "]"
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_LONGEST_HELD = 256


def printable(text: str) -> str:
    """The text without escape sequences, bidirectional overrides and controls, but with newlines and tabs."""
    return _SURROGATE.sub("\ufffd", _UNSAFE.sub("", _SEQUENCE.sub("", text)))


def one_line(text: str) -> str:
    """The printable text with every run of white space as one space, for titles and table cells."""
    return " ".join(printable(text).split())


class PrintableStream:
    """``printable`` for text that arrives in pieces: an escape sequence cut in two is still recognised."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, piece: str) -> str:
        """The next piece, made printable; the start of an unfinished sequence waits for the rest."""
        text = self._held + piece
        self._held = ""
        match = _OPEN_SEQUENCE.search(text)
        # A string sequence that never ends must not swallow the reply.
        if match is not None and len(text) - match.start() <= _LONGEST_HELD:
            self._held = text[match.start() :]
            text = text[: match.start()]
        return printable(text)

    def flush(self) -> str:
        """What was still held back."""
        held, self._held = self._held, ""
        return printable(held)

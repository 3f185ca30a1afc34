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
_UNSTEADY = re.compile(
    "["
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b\u200e\u200f\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\uffff"  # fillers, variants, marks of direction
    "\U0001f3fb-\U0001f3ff\U000e0000-\U000e0fff"  # skin tones, tags
    "]"
    "|[\u200c\u200d](?![\u0600-\u0dff])"  # joiners, but for the scripts that are written with them
)
_MARK = (
    "\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u064b-\u065f\u06d6-\u06ed\u0e31\u0e34-\u0e3a\u0e47-\u0e4e"
    "\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
)
_STACK = re.compile(rf"([{_MARK}]{{3}})[{_MARK}]+")
_LONGEST_HELD = 256


def printable(text: str) -> str:
    """The text without escape sequences, bidirectional overrides and controls, but with newlines and tabs."""
    return _SURROGATE.sub("\ufffd", _UNSAFE.sub("", _SEQUENCE.sub("", text)))


def steady(text: str) -> str:
    """Printable text that takes as many cells in every terminal as are counted for it here.

    Terminals differ about what joins into one character (families of emoji, skin tones, variants) and about
    what is invisible; one cell too many moves everything behind it. So characters that join are shown side by
    side, invisible ones are left out, and no more than three marks stand on one letter.
    """
    text = printable(text.replace("\u2028", "\n").replace("\u2029", "\n"))
    return text if text.isascii() else _STACK.sub(r"\1", _UNSTEADY.sub("", text))


def one_line(text: str) -> str:
    """The printable text with every run of white space as one space, for titles and table cells."""
    return " ".join(steady(text).split())


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

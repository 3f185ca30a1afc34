"""Sanitising untrusted text for the terminal: no escape sequences, no characters of unstable width."""

from __future__ import annotations

import codecs
import re
import unicodedata
from functools import cache
from itertools import chain

# Every repetition is possessive and ends at the introducer of another sequence, so that a text of nothing but
# introducers is scanned once, not once for each of them.
_CSI = r"(?:\x1b\[|\x9b)[0-?]*+[ -/]*+"  # colours, cursor, modes
_STRING = (  # OSC, DCS and the like: titles, clipboard
    r"(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c\x9d\x90\x98\x9e\x9f]*+"
)
_SEQUENCE = re.compile(
    rf"{_CSI}[@-~]|{_STRING}(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*+[0-~]"  # two-character escapes, and the start of an unterminated string
)
_OPEN_SEQUENCE = re.compile(rf"(?:{_CSI}|{_STRING}\x1b?|\x1b[ -/]*+)\Z")
_UNSAFE = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 and C1 controls except newline and tab
    "\u202a-\u202e\u2066-\u2069"  # bidirectional overrides and isolates
    "]"
)
_SURROGATE = re.compile("[\ud800-\udfff]")
UNSTABLE_WIDTH = re.compile(
    "["
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b\u200e\u200f\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\uffff"  # fillers, variation selectors, direction marks
    "\U0001f3fb-\U0001f3ff\U000e0000-\U000e0fff"  # skin tones, tags
    "]"
    "|[\u200c\u200d](?![\u0600-\u061b\u061d-\u0dff])"  # joiners, except before scripts that need them
)
"""Characters that terminals give different widths, or that change the width of the one before."""
_MARK = (
    "\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u064b-\u065f\u06d6-\u06ed\u0e31\u0e34-\u0e3a\u0e47-\u0e4e"
    "\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
)
_STACK = re.compile(rf"([{_MARK}]{{3}})[{_MARK}]+")
_PICTURE = "[\u203c-\u3299\U0001f000-\U0001faff](?:\ufe0f|[\U0001f3fb-\U0001f3ff])?"
_EMOJI = re.compile(
    rf"{_PICTURE}(?:\u200d{_PICTURE})*+"
    r"|[#*0-9\xa9\xae]\ufe0f\u20e3?"  # keycaps
    rf"|(?P<unstable>{UNSTABLE_WIDTH.pattern})"
)
_BREAKS = dict.fromkeys(map(ord, "\n\t\u2028\u2029"), " ")
_MAX_PENDING_CHARS = 256
_FENCE = re.compile(r" {0,3}(?:(`{3,}+)[^`]*|(~{3,}+).*)")


def printable(text: str) -> str:
    """The text without escape sequences, bidirectional overrides and controls; newlines and tabs stay."""
    return without_controls(_SEQUENCE.sub("", text))


def without_controls(text: str) -> str:
    """The text without single control characters and bidirectional overrides; newlines and tabs stay."""
    return _SURROGATE.sub("\ufffd", _UNSAFE.sub("", text))


def with_newlines(text: str) -> str:
    """The text with CRLF and CR as newlines."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def decode_text(content: bytes) -> str:
    """UTF-8 text, or UTF-16 with a byte order mark, with its line ends as newlines.

    Raises:
        UnicodeDecodeError: if it is no such text; with a NUL it is not.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = content.decode("utf-16")
        if "\0" in text:
            raise UnicodeDecodeError("utf-16", content, 0, 2, "NUL")
        return with_newlines(text)
    if b"\0" in content:
        raise UnicodeDecodeError("utf-8", content, 0, 1, "NUL")
    return with_newlines(content.decode("utf-8-sig"))


def fence_after(line: str, fence: str = "") -> str:
    """The code fence of Markdown that is open below a line; empty if none is.

    Args:
        fence: The one that is open above it.
    """
    found = _FENCE.fullmatch(line)
    if found is None:
        return fence
    marks = found[1] or found[2]
    if not fence:
        return marks
    return "" if marks.startswith(fence) and line.strip() == marks else fence


def with_closed_fence(text: str) -> str:
    """Markdown that leaves no code block open, as a reply that was cut off does."""
    fence = ""
    for line in text.split("\n"):
        fence = fence_after(line, fence)
    return f"{text}\n{fence}" if fence else text


def stable_width(text: str) -> str:
    """Printable text whose width in cells is the same in all terminals.

    Terminals disagree about joined characters (emoji families, skin tones, variants) and invisible ones, and
    a wrong width shifts the rest of the line. So joined characters are shown side by side, invisible ones are
    removed, and a letter keeps at most three combining marks.
    """
    text = printable(text.replace("\u2028", "\n").replace("\u2029", "\n"))
    return text if text.isascii() else _STACK.sub(r"\1", UNSTABLE_WIDTH.sub("", text))


def copyable(text: str) -> str:
    """Text for the clipboard: of stable width, but with the skin tones, variants and joiners of emoji."""
    text = printable(text.replace("\u2028", "\n").replace("\u2029", "\n"))
    if text.isascii():
        return text
    return _STACK.sub(r"\1", _EMOJI.sub(lambda found: "" if found["unstable"] else found[0], text))


@cache
def word_character() -> str:
    """A pattern of one character of a word: ``\\w``, a joiner, or a mark, which ``\\w`` lacks."""
    with_marks = chain(range(0x300, 0x3100), range(0xA66F, 0xAC00), range(0xFB1E, 0xFE30))
    marks = "".join(chr(code) for code in with_marks if unicodedata.category(chr(code)).startswith("M"))
    return rf"[\w{marks}\u200c\u200d]"


def single_line(text: str) -> str:
    """Printable text with line breaks and tabs as spaces, for paths and input fields: spaces are kept."""
    return printable(text.translate(_BREAKS))


def one_line(text: str) -> str:
    """Stable-width text on one line, for titles and table cells."""
    return " ".join(stable_width(text).split())


def shown_value(value: object, length: int = 60) -> str:
    """A value from a file as short text on one line, whatever it is."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and abs(value) >= 10**length:
        return "a number of very many digits"  # Python refuses to print some of them
    try:
        text = one_line(repr(value[:length] if isinstance(value, str) else value))
    except (RecursionError, ValueError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= length else f"{text[: length - 1]}…"


class PrintableStream:
    """``printable`` for a stream: recognises escape sequences that are split between pieces."""

    def __init__(self) -> None:
        self._pending = ""

    def feed(self, piece: str) -> str:
        """The next printable piece; an incomplete escape sequence is kept back."""
        text = self._pending + piece
        self._pending = ""
        match = _OPEN_SEQUENCE.search(text)
        # An unterminated string sequence must not swallow the reply.
        if match is not None and len(text) - match.start() <= _MAX_PENDING_CHARS:
            self._pending = text[match.start() :]
            text = text[: match.start()]
        return printable(text)

    def flush(self) -> str:
        """The text that was kept back."""
        held, self._pending = self._pending, ""
        return printable(held)

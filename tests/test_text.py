from __future__ import annotations

from collections.abc import Callable

import pytest

from tests import hostile
from tests.scaling import assert_linear
from tqchat.text import PrintableStream, copyable, one_line, printable, single_line, stable_width

HOSTILE = [
    ("\x1b[31mred\x1b[0m", "red"),
    ("\x1b[2J\x1b[H\x1b[?1049hgone", "gone"),
    ("\x9b31mred", "red"),
    ("\x1b]0;a title\x07text", "text"),
    ("\x1b]52;c;cGFzdGU=\x1b\\text", "text"),
    ("\x1bPq#0\x1b\\text", "text"),
    ("\x1b(Btext\x1b7\x1b=", "text"),
    ("a\rb\bc\x07d\x00e\x7ff", "abcdef"),
    ("line\r\nline\tcell\n", "line\nline\tcell\n"),
    ("\u202egpj.exe\u202c \u2066x\u2069", "gpj.exe x"),
    ("half \ud83d pair", "half \ufffd pair"),
    ("æøå 👩‍👩‍👧 שלום ♥️", "æøå 👩‍👩‍👧 שלום ♥️"),
    ("\x1b]0;never ends", "0;never ends"),
    ("\x1b\x1b[[31m", "31m"),
]


def is_safe(text: str) -> bool:
    return not any(
        (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 or c in "\u202a\u202e\u2066" for c in text
    )


@pytest.mark.parametrize(("text", "wanted"), HOSTILE)
def test_escape_sequences_are_removed(text: str, wanted: str) -> None:
    assert printable(text) == wanted
    assert is_safe(printable(text))


@pytest.mark.parametrize(("text", "wanted"), HOSTILE)
def test_streamed_text_equals_the_whole(text: str, wanted: str) -> None:
    for size in (1, 2, 3):
        stream = PrintableStream()
        pieces = [stream.feed(text[i : i + size]) for i in range(0, len(text), size)]
        shown = "".join(pieces) + stream.flush()
        assert shown == wanted
        assert is_safe(shown)


def test_an_unterminated_string_sequence_does_not_swallow_the_reply() -> None:
    stream = PrintableStream()
    shown = "".join(stream.feed(piece) for piece in ["\x1b]0;", *["word "] * 200])
    assert shown.count("word") > 100


def test_plain_text_is_not_delayed() -> None:
    assert PrintableStream().feed("hello") == "hello"


def test_one_line_joins_lines() -> None:
    assert one_line(" a\n\x1b[31m b\t\u2028c ") == "a b c"


def test_single_line_keeps_spaces() -> None:
    assert single_line(" /a  b\n\x1b[31mc\t\u2028d ") == " /a  b c  d "


def in_pieces(text: str) -> str:
    stream = PrintableStream()
    return "".join(stream.feed(text[at : at + 5]) for at in range(0, len(text), 5)) + stream.flush()


def at_once(text: str) -> str:
    stream = PrintableStream()
    return stream.feed(text) + stream.flush()


@pytest.mark.parametrize("clean", [stable_width, copyable, one_line, at_once, in_pieces])
@pytest.mark.parametrize("unit", hostile.UNITS)
def test_cleaning_takes_time_in_proportion_to_the_text(clean: Callable[[str], str], unit: str) -> None:
    assert_linear(clean, unit)


@pytest.mark.parametrize("text", [*hostile.STRINGS, hostile.NAME, *hostile.UNITS])
def test_cleaned_text_is_safe_and_does_not_change_when_cleaned_again(text: str) -> None:
    for clean in (printable, stable_width, copyable, one_line, single_line):
        once = clean(text * 3)
        assert is_safe(once) and clean(once) == once


@pytest.mark.parametrize(
    "emoji",
    [
        "👍🏽",
        "❤\ufe0f",
        "👩🏽\u200d💻",
        "👨\u200d👩\u200d👧\u200d👦",
        "🏳\ufe0f\u200d🌈",
        "1\ufe0f\u20e3",
        "🇩🇪",
    ],
)
def test_what_makes_an_emoji_is_copied_and_what_is_invisible_is_not(emoji: str) -> None:
    assert copyable(f"a\u200bb {emoji} \u00adc\ufe0f\u200d\U000e0041") == f"ab {emoji} c"

"""What a terminal sends becomes events, wherever reads split it; what it is sent keeps its columns."""

from __future__ import annotations

import random

import pytest
from textual.events import Key, Paste
from textual.message import Message

from tqchat.ui.input.terminal import TerminalInput
from tqchat.ui.output_filter import with_fixed_columns

PASTED = "log: \x1b[31mred\x1b[0m\r\n\x11\x07 \x1b[13u \x1b[<0;5;5M \x1b[200~ é 👩‍💻 \x1b"
PASTE = b"\x1b[200~" + PASTED.encode() + b"\x1b[201~"
PIECES = ("\x1b", "[", "<", "0", ";", ":", "M", "m", "u", "~", "R", "?", "$", "y", "A", "48;", "2026",
          "9999999999", "1114112", "55296", "é", "\x00", "\x1b[200~", "\x1b[201~", "\x1b[:u")  # fmt: skip


def shown(messages: list[Message]) -> list[str]:
    """Characters of keys, and pastes."""
    return [
        message.text if isinstance(message, Paste) else message.character or message.key
        for message in messages
        if isinstance(message, (Key, Paste))
    ]


@pytest.mark.parametrize("size", range(1, 9))
def test_a_paste_is_one_event_and_its_sequences_are_no_keys(size: int) -> None:
    terminal, data = TerminalInput(), b"a" + PASTE + b"b" + PASTE + "é".encode()
    messages = [
        message
        for begin in range(0, len(data), size)
        for message in terminal.read(data[begin : begin + size])
    ]
    assert shown(messages) == ["a", PASTED, "b", PASTED, "é"]


def test_bytes_that_are_not_utf8_are_marked() -> None:
    assert shown(list(TerminalInput().read(b"\xe9a\xff"))) == ["\ufffd", "a", "\ufffd"]


@pytest.mark.parametrize(
    "text", ["می\u200cخواهم", "全角\u3000の", "10\xa0000\u202f€", "👩\u200d💻", "\U0001fae9\ue0b0"]
)
def test_every_character_that_is_text_is_typed(text: str) -> None:
    typed = [message for message in TerminalInput().read(text.encode()) if isinstance(message, Key)]
    assert "".join(key.character or "" for key in typed) == text
    assert all(key.is_printable and key.copy().is_printable for key in typed)


def test_controls_and_overrides_are_no_text() -> None:
    typed = TerminalInput().read("\x01\x85\u202e\u2066\x7f".encode())
    assert not any(message.is_printable for message in typed if isinstance(message, Key))


@pytest.mark.parametrize(
    ("sent", "keys"),
    [
        ("\x1b\r", ["alt+enter"]),
        ("\x1b[27;3;13~", ["alt+enter"]),
        ("\x1b[27;2;13~", ["shift+enter"]),
        ("\x1b[27;2;127~a", ["shift+backspace", "a"]),
        ("\x1b[27;5;13~", ["ctrl+enter"]),
        ("\x1b[27;2;9~", ["shift+tab"]),
        ("\x1b[13;2u\r", ["shift+enter", "enter"]),
    ],
)
@pytest.mark.parametrize("size", [1, 9])
def test_modified_keys_are_named_in_every_form(sent: str, keys: list[str], size: int) -> None:
    terminal, data = TerminalInput(), sent.encode()
    pieces = [data[begin : begin + size] for begin in range(0, len(data), size)]
    messages = [message for piece in pieces for message in terminal.read(piece)]
    assert [message.key for message in messages if isinstance(message, Key)] == keys


@pytest.mark.parametrize(
    ("sent", "keys"),
    [
        ("\x1b\x1b[D", ["alt+left"]),
        ("\x1b\x1bOC", ["alt+right"]),
        ("a\x1b\x1b[3~\x1b[D", ["a", "alt+delete", "left"]),
        ("\x1b\x1b[1;2A", ["alt+shift+up"]),
        ("\x1b\x1b[200~x\x1b[201~", ["escape"]),
    ],
)
def test_alt_as_escape_before_a_sequence_is_alt_and_not_escape(sent: str, keys: list[str]) -> None:
    messages = list(TerminalInput().read(sent.encode()))
    assert [message.key for message in messages if isinstance(message, Key)] == keys


def test_a_new_line_needs_no_kitty_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textual.constants.DISABLE_KITTY_KEY", True)
    messages = list(TerminalInput().read(b"\x1b\r\x1b[27;2;13~"))
    assert [message.key for message in messages if isinstance(message, Key)] == ["alt+enter", "shift+enter"]


@pytest.mark.parametrize("sequence", ["\x1b[1114112u", "\x1b[9999999999u", "\x1b[:u", "\x1b[1:2:3:4u"])
def test_keys_work_behind_a_malformed_sequence(sequence: str) -> None:
    assert shown(list(TerminalInput().read(sequence.encode() + b"ab")))[-2:] == ["a", "b"]


def test_no_input_raises_an_error() -> None:
    chosen = random.Random(0)
    terminal = TerminalInput()
    for _ in range(20_000):
        list(terminal.read("".join(chosen.choices(PIECES, k=5)).encode()))
        list(terminal.read(chosen.randbytes(3)))
    list(terminal.read(b"\x1b[201~" + b"z" * 40))
    assert shown(list(terminal.read(b"end"))) == ["e", "n", "d"]


def test_a_character_of_unstable_width_is_drawn_and_the_cursor_put_behind_its_cells() -> None:
    shown = with_fixed_columns("\x1b[1ma 👍🏽❤\ufe0fb\x1b[0m")
    assert shown == "\x1b[1ma \x1b7  \x1b8\x1b7👍🏽\x1b8\x1b[2C\x1b7  \x1b8\x1b7❤\ufe0f\x1b8\x1b[2Cb\x1b[0m"


@pytest.mark.parametrize(
    "text", ["│ é 漢字 🦊 🇩🇪 می\u200cخواهم", "\x1b]52;c;8J+RjQ==\x07", "\x1b[38;2;1;2;3mx\x1b[0m"]
)
def test_other_output_stays(text: str) -> None:
    assert with_fixed_columns(text) == text


def test_sequences_are_not_torn_apart() -> None:
    sequences = ["\x1b[0m", "\x1b]0;a\u200bb\x07", "\x1b[?25l", "\x1b7", "\x1b]8;;http://x\x1b\\"]
    shown = with_fixed_columns("\u200b".join(sequences))
    assert all(sequence in shown for sequence in sequences)

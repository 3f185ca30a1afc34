"""Bracketed pastes in a pseudo-terminal: inserted once, with their line breaks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.terminal import Terminal, stored_messages
from tqchat.paths import Paths

pytestmark = pytest.mark.slow

LINES = [f"line {number} of a long text" for number in range(200)]


def paste(text: str) -> str:
    return f"\x1b[200~{text}\x1b[201~"


def sent(paths: Paths) -> list[str]:
    return [message.content for message in stored_messages(paths) if message.role == "user"]


@pytest.mark.parametrize("line_break", ["\n", "\r", "\r\n"], ids=["LF", "CR", "CRLF"])
@pytest.mark.parametrize(
    "lines", [["git status"], ["def f():", "    return 1", "", "f()"], LINES], ids=["word", "code", "long"]
)
def test_a_paste_is_sent_once_with_its_line_breaks(
    paths: Paths, llama_folder: Path, lines: list[str], line_break: str
) -> None:
    with Terminal("--model", str(llama_folder)) as terminal:
        terminal.sees("Ask something")
        terminal.press("say ", paste(line_break.join(lines)), " twice", "enter")
        terminal.until(lambda: sent(paths))
    assert sent(paths) == ["say " + "\n".join(lines) + " twice"]


def test_a_paste_replaces_the_selection_once(paths: Paths, llama_folder: Path) -> None:
    with Terminal("--model", str(llama_folder)) as terminal:
        terminal.sees("Ask something")
        terminal.press("abc", "\x1b[1;2D", "\x1b[1;2D", paste("X"), "enter")  # Shift+Left twice
        terminal.until(lambda: sent(paths))
    assert sent(paths) == ["aX"]


def test_nothing_in_a_paste_is_a_key(paths: Paths, llama_folder: Path) -> None:
    with Terminal("--model", str(llama_folder)) as terminal:
        terminal.sees("Ask something")
        terminal.press(paste("\x1b[1mlog\x1b[0m\r\x11\x0f quit\x1b[31m \x00in\x1b\x11 red\x1b[0m"), "!")
        terminal.sees("red!")
        terminal.press("enter")
        terminal.until(lambda: sent(paths))
    assert sent(paths) == ["log\n quit in red!"]


def test_bytes_that_are_not_utf8_do_not_end_the_app(paths: Paths, llama_folder: Path) -> None:
    with Terminal("--model", str(llama_folder)) as terminal:
        terminal.sees("Ask something")
        for data in (b"caf\xe9 ", b"\x1b[200~\xff\xfe\x1b[201~", b"\x1b[9999999999u", b" end"):
            terminal.process.write(data)
        terminal.sees(" end")
        terminal.press("enter")
        terminal.until(lambda: sent(paths))
        terminal.quit()
    assert sent(paths) == ["caf\ufffd \ufffd\ufffd end"]


DIALOGS = {"\x1bOP": "Esc closes", "\x0f": "Models", "\x13": "Settings", "\x1b[21~": "This conversation"}
"""Keys that open dialogs, and what those show."""


def test_nothing_typed_ahead_or_pasted_behind_a_key_is_lost(paths: Paths, llama_folder: Path) -> None:
    with Terminal("--model", str(llama_folder)) as terminal:
        terminal.press("typed ahead, ", paste("pasted ahead, "))
        terminal.sees("F1 help", "typed ahead, pasted ahead")
        for number, (key, shown) in enumerate(DIALOGS.items()):
            terminal.press(key)
            terminal.sees(shown)
            terminal.press("escape", paste(f"{number}, "))
            terminal.sees(f"{number}, ")
        terminal.press("\x0f")
        terminal.sees("Models")
        terminal.press(paste("no such") + "x" + paste(" model"))
        terminal.sees("no suchx model")
        terminal.press("escape", paste("end"), "enter")
        terminal.until(lambda: sent(paths))
    assert sent(paths) == ["typed ahead, pasted ahead, 0, 1, 2, 3, end"]

"""Reading and copying in a pseudo-terminal: a dictated reply, mouse events, what reaches the clipboard."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest

from tests.e2e.terminal import Terminal, stored_messages
from tests.engine.scripted_model import CHATML, scripted
from tests.engine.talk import user
from tqchat.paths import Paths

pytestmark = pytest.mark.slow

QUESTION = "Show me all of it."
PROSE = (
    "The quick brown fox jumps over the lazy dog and then it sleeps in the shade of the old oak tree there."
)
CODE = "for name in names:\n\tif name:\n        print(name)"
REPLY = (
    f"{PROSE}\n\nThen \\(x_1\\,dx\\) and $a*b*c$, 含**「重点」**内容.\n\n"
    f"1. Like this:\n\n   ```python\n   {CODE.replace(chr(10), chr(10) + '   ')}\n   ```\n\n2. Or so.\n\n"
    "| what | how much |\n|---|---|\n| food | 500 g |\n"
)
SCREEN = "\x1bx"  # Alt+X


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(scripted(tmp_path / "dictated", [([user(QUESTION)], f"{REPLY}<|im_end|>")], template=CHATML))


class Mouse:
    """Sends a terminal's mouse events to the app; positions are those of texts on the screen."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal

    def find(self, text: str) -> tuple[int, int]:
        """Column and line of a text."""
        rows = self._terminal.text().split("\n")
        (row,) = [index for index, line in enumerate(rows) if text in line]
        return rows[row].index(text), row

    def click(self, text: str, times: int = 1) -> None:
        for _ in range(times):
            self._send(0, self.find(text))
            self._send(0, self.find(text), "m")

    def select(self, text: str, times: int, within: str, beyond: str) -> None:
        """Click, and wait until what is ``within`` is highlighted and what is ``beyond`` is not."""
        self.click(text, times)
        self._terminal.until(lambda: self._background(within) != self._background(beyond))

    def _background(self, text: str) -> str:
        return self._terminal.background(*self.find(text))

    def drag(self, begin: tuple[int, int], end: tuple[int, int]) -> None:
        self._send(0, begin)
        self._send(32, ((begin[0] + end[0]) // 2, end[1]))
        self._send(32, end)
        self._send(0, end, "m")

    def _send(self, button: int, place: tuple[int, int], how: str = "M") -> None:
        self._terminal.press(f"\x1b[<{button};{place[0] + 1};{place[1] + 1}{how}")


def copied(terminal: Terminal, *keys: str) -> str:
    """What the keys put on the terminal's clipboard (OSC 52)."""
    begin = len(terminal.raw)
    terminal.press(*keys)

    def found() -> list[bytes]:
        return re.findall(rb"\x1b\]52;c;([A-Za-z0-9+/=]*)[\x07\x1b]", terminal.raw[begin:])

    terminal.until(found)
    return base64.b64decode(found()[-1]).decode()


def says_below_the_reply(terminal: Terminal, notice: str) -> None:
    """Wait for a notice, and until the reply above has made room for it."""

    def is_settled() -> bool:
        rows = terminal.text().split("\n")
        places = [index for index, row in enumerate(rows) if f"· {notice}" in row]
        return bool(places) and "tok/s" in rows[places[0] - 1]

    terminal.until(is_settled)


def test_text_is_selected_copied_and_edited_as_it_was_written(model: str, paths: Paths) -> None:
    paths.config_file.write_text("temperature = 0.0\nmax_tokens = 400\n")
    with Terminal("--model", model, columns=100, rows=50) as terminal:
        mouse = Mouse(terminal)
        terminal.sees("dictated", "Ask something")
        terminal.write(QUESTION)
        terminal.sees("tok/s · first", "500 g", "\\(x_1\\,dx\\) and $a*b*c$", "含「重点」内容")

        # Prose, wrapped on the screen; from its first to its last word.
        begin, (x, y) = mouse.find("The quick"), mouse.find("there.")
        assert begin[1] < y
        mouse.drag(begin, (x + len("there.") - 1, y))
        terminal.sees("^C copy", "Esc unselect")
        assert copied(terminal, "\x03") == PROSE
        says_below_the_reply(terminal, f"Copied {len(PROSE)} characters.")

        # Code in a list, from the margin: neither margin nor label, but its own indentation and tabs.
        (x, y), (end, last) = mouse.find("for name in names:"), mouse.find("print(name)")
        mouse.drag((x - 1, y), (end + 40, last))
        assert copied(terminal, "\x03") == CODE
        terminal.sees(f"Copied {len(CODE)} characters in 3 lines.")
        mouse.select("brown", 2, within="brown", beyond="jumps")
        assert copied(terminal, "\x03") == "brown"
        mouse.select("brown", 3, within="jumps", beyond="Or so")
        assert copied(terminal, "\x03") == PROSE

        # A click selects the message; the footer shows the actions that apply.
        terminal.press("escape")  # the selection
        terminal.sees_no("Copied")
        terminal.press("escape")  # the mark that the first of the clicks made
        terminal.sees("F1 help")
        mouse.click("tok/s · first")
        terminal.sees("e edit", "t table", "o code", "p plain")
        assert "continue" not in terminal.text().split("\n")[-1]
        assert copied(terminal, "t") == "what\thow much\nfood\t500 g"
        plain = copied(terminal, "p")
        assert plain.startswith(
            f"{PROSE}\n\nThen \\(x_1\\,dx\\) and $a*b*c$, 含「重点」内容.\n\n1. Like this:"
        )
        assert copied(terminal, "y") == REPLY
        assert copied(terminal, "o") == CODE

        # A reply is edited as another version, and not answered.
        terminal.press("e")
        terminal.sees("Edits a reply")
        terminal.press("x" * 3, "enter")
        terminal.sees("Saved as another version", "2/2")
        last_message = stored_messages(paths)[-1]
        assert (last_message.role, last_message.content) == ("assistant", f"{REPLY}xxx")

        # The mouse is left to the terminal, and taken back.
        begin_raw = len(terminal.raw)
        terminal.press(SCREEN)
        terminal.sees("The terminal has the mouse", "takes the mouse from the terminal")
        terminal.until(lambda: b"\x1b[?1000l" in terminal.raw[begin_raw:])
        terminal.press(SCREEN)
        terminal.sees("tqchat has the mouse again")
        terminal.until(lambda: b"\x1b[?1000h" in terminal.raw[begin_raw:])
        terminal.press("ctrl+q")
        assert terminal.ends() == 0

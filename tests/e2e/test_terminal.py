"""End to end in a pseudo-terminal with a small trained model: chat, change the scheme, quit, restore."""

from __future__ import annotations

import re

import pytest

from tests.e2e.terminal import Terminal
from tests.models import STARTER_FOLDER
from tqchat.paths import Paths
from tqchat.store.database import Database

pytestmark = pytest.mark.slow

SETTINGS = f'model = "{STARTER_FOLDER}"\ntemperature = 0.0\nmax_tokens = 160\nscheme = "turbo0v4"\n'
RESTORED = re.compile(r"Restored ([\d,]+) tokens, nothing re-read\.")


@pytest.fixture(autouse=True)
def settings(paths: Paths) -> None:
    paths.config_file.write_text(SETTINGS)


def said(paths: Paths) -> list[tuple[str, str]]:
    with Database(paths.database) as database:
        (conversation,) = database.conversations()
        return [(message.role, message.content) for message in database.messages(conversation.id)]


def test_chat_change_scheme_quit_and_restore(paths: Paths) -> None:
    with Terminal() as terminal:
        terminal.sees("Ask something", "starter", "F1 help")
        terminal.write("Tell me a story about a fox.")
        terminal.sees("tok/s", "8 of 8 packed", "on disk")
        terminal.press("ctrl+k")
        terminal.sees("Scheme for this conversation", "In force")
        terminal.press("down", "enter")
        terminal.sees("Converted", "from turbo0v4 to turbo0v3")
        terminal.write("And then?")
        terminal.until(lambda: len(said(paths)) == 4)
        terminal.sees("Ready.")
        terminal.press("ctrl+q")
        assert terminal.ends() == 0
    before = said(paths)
    assert all(content.strip() for _, content in before)

    with Terminal() as terminal:
        terminal.until(lambda: RESTORED.search(terminal.text()))
        terminal.sees("And then?", "turbo0v3")
        terminal.write("The end?")
        terminal.until(lambda: len(said(paths)) == 6)
        terminal.sees("Ready.")
        terminal.press("ctrl+q")
        assert terminal.ends() == 0
    assert said(paths)[:4] == before


def test_quitting_restores_the_terminal() -> None:
    with Terminal() as terminal:
        terminal.sees("F1 help")
        terminal.press("ctrl+q")
        assert terminal.ends() == 0
    entered, left = (terminal.raw.rfind(f"\x1b[?1049{how}".encode()) for how in "hl")
    assert 0 <= entered < left, "leaves the alternate screen"
    assert terminal.raw.rfind(b"\x1b[?25l") < terminal.raw.rfind(b"\x1b[?25h"), "shows the cursor again"
    assert terminal.raw.rfind(b"\x1b[?1000h") < terminal.raw.rfind(b"\x1b[?1000l"), "releases the mouse"


def test_resizing_shows_and_hides_the_side_panels() -> None:
    with Terminal(columns=60, rows=20) as terminal:
        terminal.sees("Ask something")
        assert "KV cache" not in terminal.text()
        terminal.resize(200, 50)
        terminal.sees("KV cache", "Conversations")
        terminal.resize(60, 20)
        terminal.sees_no("KV cache")
        terminal.press("f1")
        terminal.sees("Writing")
        terminal.press("escape", "ctrl+q")
        assert terminal.ends() == 0


def test_no_color_sends_only_greys() -> None:
    with Terminal(NO_COLOR="1") as terminal:
        terminal.sees("Ask something", "F1 help")
        terminal.press("ctrl+q")
        assert terminal.ends() == 0
    for red, green, blue in re.findall(rb"\x1b\[[\d;]*?[34]8;2;(\d+);(\d+);(\d+)", terminal.raw):
        assert red == green == blue


def test_the_app_opens_with_a_damaged_home(paths: Paths) -> None:
    paths.config_file.write_text("max_tokens = 'many'\ntemperature = 0.0\n")
    paths.state_file.write_bytes(b"\x00[")
    paths.log_dir.rmdir()
    paths.log_dir.write_text("in the way")
    with Terminal() as terminal:
        terminal.sees("Ask something", "max_tokens is")
        terminal.press("ctrl+s")
        for text in ("state.toml", "nologiswritten"):  # paths may be wrapped anywhere
            terminal.until(lambda text=text: text in re.sub(r"[\s│]", "", terminal.text()))
        terminal.press("escape", "ctrl+q")
        assert terminal.ends() == 0


def test_the_screen_is_utf_8_in_a_locale_of_an_older_encoding(paths: Paths) -> None:
    with Terminal(PYTHONIOENCODING="latin-1", PYTHONUTF8="0") as terminal:
        terminal.sees("Ask something", "╭─ Conversations")
        terminal.press("größe 狐")
        terminal.sees("größe 狐")
        terminal.quit()


@pytest.mark.parametrize(
    ("term", "accent", "selected"),
    [("xterm", "brightblack", "brightwhite"), ("xterm-256color", "5f5f00", "5f5f00")],
)
def test_text_is_legible_in_fewer_colours(paths: Paths, term: str, accent: str, selected: str) -> None:
    """The nearest ones to this theme's accent are yellow and light brown, on white."""
    paths.config_file.write_text(f'{SETTINGS}theme = "tqchat-paper"\n')
    with Terminal(TERM=term, COLORTERM="") as terminal:
        terminal.sees("Ask something", "Ready.")
        terminal.until(lambda: terminal.foreground("turbo0v4") == accent)
        terminal.press("ctrl+p")
        terminal.sees("Answer other programs")
        # The help of the selected line, which is faint elsewhere.
        terminal.until(lambda: terminal.foreground("Answer other programs") == selected)
        terminal.press("escape")
        terminal.quit()


@pytest.mark.parametrize("theme", ["tqchat-dark", "tqchat-light", "tqchat-terminal"])
def test_a_selected_line_stands_out_among_16_colours(paths: Paths, theme: str) -> None:
    paths.config_file.write_text(f'{SETTINGS}theme = "{theme}"\n')
    with Terminal(TERM="xterm", COLORTERM="") as terminal:
        terminal.sees("Ask something", "Ready.")
        terminal.press("ctrl+k")
        terminal.sees("Scheme for this conversation")
        terminal.press("down", "down")
        terminal.until(lambda: terminal.stands_out("turbo0v2 "))
        terminal.press("escape")
        terminal.sees_no("Scheme for this conversation")
        terminal.press("ctrl+p")
        terminal.sees("Answer other programs")
        terminal.press("down")
        terminal.until(lambda: terminal.stands_out("Send @names"))
        terminal.press("escape")

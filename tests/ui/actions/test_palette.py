"""The command palette, and clicks on the screen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from textual.widgets import TextArea

from tests.ui.conftest import Open, Stage
from tqchat.kv.scheme import SCHEMES
from tqchat.ui.actions.table import ACTIONS
from tqchat.ui.screens.help import Help
from tqchat.ui.screens.models import ModelPicker
from tqchat.ui.screens.scheme import SchemePicker


async def run(it: Stage, words: str) -> None:
    """Run the first entry that matches the words."""
    await it.pilot.press("ctrl+p")
    await it.sees("Search for commands")
    await it.pilot.press(*words)
    await it.sees(words.capitalize())
    await it.pilot.press("down", "enter")


async def test_the_palette_has_every_action_scheme_and_theme(stage: Open) -> None:
    async with stage() as it:
        titles = {command.title for command in it.app.get_system_commands(it.app.screen)}
        assert titles >= {action.title for action in ACTIONS if action.scope == "app" and action.in_palette}
        assert titles >= {f"Scheme: {scheme.name}" for scheme in SCHEMES}
        assert titles >= {f"Theme: {name}" for name in it.app.available_themes}
        assert (
            len([title for title in titles if title.startswith("Message: ")])
            == len(ACTIONS.scoped("message")) - 2
        )


async def test_a_scheme_is_chosen_by_typing(stage: Open) -> None:
    async with stage() as it:
        await it.chat("About foxes", "Yes.", tokens=1900)
        await run(it, "scheme: turbo3v2")
        await it.sees("Converted 1,900 tokens from turbo0v4 to turbo3v2")


async def test_a_theme_is_chosen_by_typing(stage: Open) -> None:
    async with stage() as it:
        await run(it, "theme: tqchat-paper")
        await it.until(lambda: it.app.theme == "tqchat-paper")


async def test_a_message_action_acts_on_the_last_message(stage: Open) -> None:
    async with stage() as it:
        await run(it, "message: branch")
        await it.sees("There is no message yet.")
        await it.chat("About foxes", "Yes.")
        await run(it, "message: branch")
        await it.sees("Starts a branch here")


@pytest.mark.parametrize(
    ("text", "opened"),
    [
        ("F1 help", lambda it: isinstance(it.app.screen, Help)),
        ("^K scheme", lambda it: isinstance(it.app.screen, SchemePicker)),
        ("turbo0v4", lambda it: isinstance(it.app.screen, SchemePicker)),
        ("starter 30M ·", lambda it: isinstance(it.app.screen, ModelPicker)),
        ("^N new", lambda it: it.app.chat.shown.conversation is None),
    ],
)
async def test_hints_model_and_scheme_can_be_clicked(
    stage: Open, text: str, opened: Callable[[Stage], bool]
) -> None:
    async with stage() as it:
        await it.chat("About foxes", "Yes.")
        await it.sees(text)
        lines = it.text().splitlines()
        y = next(y for y, line in enumerate(lines) if text in line)
        await it.pilot.click(offset=(lines[y].index(text) + 1, y))
        await it.until(lambda: opened(it))


async def test_a_click_focuses_the_prompt(stage: Open) -> None:
    async with stage() as it:
        await it.pilot.press("f2", "f2")
        await it.pilot.click("#titles")
        await it.pilot.click("#prompt")
        assert isinstance(it.app.focused, TextArea)

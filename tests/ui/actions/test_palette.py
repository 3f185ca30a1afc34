"""The command palette, and clicks on the screen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from textual.widgets import TextArea

from tests.ui.conftest import OpenApp, RunningApp
from tqchat.kv.scheme import SCHEMES
from tqchat.ui.actions.table import ACTIONS
from tqchat.ui.screens.help import Help
from tqchat.ui.screens.models import ModelPicker
from tqchat.ui.screens.scheme import SchemePicker


async def run(ui: RunningApp, words: str) -> None:
    """Run the first entry that matches the words."""
    await ui.pilot.press("ctrl+p")
    await ui.shows("Search for commands")
    await ui.pilot.press(*words)
    await ui.shows(words.capitalize())
    await ui.pilot.press("down", "enter")


async def test_the_palette_has_every_action_scheme_and_theme(open_app: OpenApp) -> None:
    async with open_app() as ui:
        titles = {command.title for command in ui.app.get_system_commands(ui.app.screen)}
        assert titles >= {action.title for action in ACTIONS if action.scope == "app" and action.in_palette}
        assert titles >= {f"Scheme: {scheme.name}" for scheme in SCHEMES}
        assert titles >= {f"Theme: {name}" for name in ui.app.available_themes}
        assert (
            len([title for title in titles if title.startswith("Message: ")])
            == len(ACTIONS.scoped("message")) - 2
        )


async def test_a_scheme_is_chosen_by_typing(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.turn("About foxes", "Yes.", tokens=1900)
        await run(ui, "scheme: turbo3v2")
        await ui.shows("Converted 1,900 tokens from turbo0v4 to turbo3v2")


async def test_a_theme_is_chosen_by_typing(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await run(ui, "theme: tqchat-paper")
        await ui.until(lambda: ui.app.theme == "tqchat-paper")


async def test_a_message_action_acts_on_the_last_message(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await run(ui, "message: branch")
        await ui.shows("There is no message yet.")
        await ui.turn("About foxes", "Yes.")
        await run(ui, "message: branch")
        await ui.shows("Starts a branch here")


@pytest.mark.parametrize(
    ("text", "opened"),
    [
        ("F1 help", lambda ui: isinstance(ui.app.screen, Help)),
        ("^K scheme", lambda ui: isinstance(ui.app.screen, SchemePicker)),
        ("turbo0v4", lambda ui: isinstance(ui.app.screen, SchemePicker)),
        ("starter 30M ·", lambda ui: isinstance(ui.app.screen, ModelPicker)),
        ("^N new", lambda ui: ui.app.chat.shown.conversation is None),
    ],
)
async def test_hints_model_and_scheme_can_be_clicked(
    open_app: OpenApp, text: str, opened: Callable[[RunningApp], bool]
) -> None:
    async with open_app() as ui:
        await ui.turn("About foxes", "Yes.")
        await ui.shows(text)
        lines = ui.text().splitlines()
        y = next(y for y, line in enumerate(lines) if text in line)
        await ui.pilot.click(offset=(lines[y].index(text) + 1, y))
        await ui.until(lambda: opened(ui))


async def test_a_click_focuses_the_prompt(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.pilot.press("f2", "f2")
        await ui.pilot.click("#titles")
        await ui.pilot.click("#prompt")
        assert isinstance(ui.app.focused, TextArea)

"""The LoRA adapter of a conversation: /adapter, its key, and where it is shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.widgets import Input

from tests.adapters import write_adapter
from tests.ui.conftest import OpenApp
from tqchat.engine import commands
from tqchat.engine.commands import NO_ADAPTER
from tqchat.ui.screens.dialog import Ask
from tqchat.ui.widgets.prompt.prompt import Prompt


@pytest.fixture
def pirate(tmp_path: Path, llama_folder: Path) -> Path:
    return write_adapter(tmp_path / "pirate", llama_folder)


async def test_it_is_set_for_a_new_conversation_and_sent_with_every_command(
    open_app: OpenApp, pirate: Path
) -> None:
    async with open_app() as ui:
        await ui.send(f"/adapter {pirate}")
        await ui.shows("This conversation uses the adapter pirate.")
        await ui.shows("starter 30M + pirate")
        await ui.turn("Hello", "Arr!")
        shown = ui.app.chat.shown
        assert shown.conversation is not None and shown.conversation.adapter == str(pirate)
        of_conversation = (commands.OpenConversation, commands.Send, commands.SetScheme, commands.Compose)
        used = {one.adapter for one in ui.engine.commands if isinstance(one, of_conversation)}
        assert used == {str(pirate)}
        await ui.send("/scheme turbo4")
        await ui.until(lambda: isinstance(ui.engine.commands[-1], commands.SetScheme))
        assert ui.engine.commands[-1].adapter == str(pirate)  # type: ignore[union-attr]


async def test_a_change_opens_the_conversation_again_and_each_keeps_its_own(
    open_app: OpenApp, pirate: Path
) -> None:
    async with open_app() as ui:
        await ui.turn("Hello", "Good day.")
        first = ui.app.chat.shown.id
        for argument, stored, label in (
            (str(pirate), str(pirate), "starter 30M + pirate"),
            ("off", NO_ADAPTER, "starter 30M ·"),
            ("default", None, "starter 30M ·"),
            (str(pirate), str(pirate), "starter 30M + pirate"),
        ):
            await ui.send(f"/adapter {argument}")
            opened = ui.engine.commands[-1]
            assert isinstance(opened, commands.OpenConversation)
            assert (opened.conversation_id, opened.adapter) == (first, stored)
            await ui.shows(label)
        await ui.pilot.press("ctrl+n")
        await ui.hides("starter 30M + pirate")
        await ui.turn("Hello again", "Good day.")
        assert ui.engine.sent()[-1].adapter is None
        await ui.pilot.press("alt+down")
        await ui.shows("starter 30M + pirate")
        assert ui.app.chat.shown.id == first


async def test_a_folder_that_is_none_is_a_sentence_and_stays_in_the_prompt(
    open_app: OpenApp, tmp_path: Path
) -> None:
    async with open_app() as ui:
        await ui.send("/adapter nowhere")
        await ui.shows("There is no adapter folder 'nowhere'")
        assert ui.app.query_one(Prompt).text == "/adapter nowhere"
        await ui.send(f"/adapter {tmp_path}")
        await ui.shows("adapter_config.json.")
        assert ui.app.chat.shown.adapter is None


async def test_its_key_asks_for_the_folder(open_app: OpenApp, pirate: Path) -> None:
    async with open_app() as ui:
        await ui.pilot.press("alt+o")
        await ui.until(lambda: isinstance(ui.app.screen, Ask))
        ui.app.screen.query_one(Input).value = str(pirate)
        await ui.pilot.press("enter")
        await ui.shows("starter 30M + pirate")
        await ui.pilot.press("alt+o")
        await ui.until(lambda: isinstance(ui.app.screen, Ask))
        assert ui.app.screen.query_one(Input).value == str(pirate)
        ui.app.screen.query_one(Input).value = "off"
        await ui.pilot.press("enter")
        await ui.shows("This conversation uses no adapter.")
        assert ui.app.chat.shown.adapter == NO_ADAPTER

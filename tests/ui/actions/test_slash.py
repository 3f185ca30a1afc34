"""Slash commands, long pastes, the settings of one conversation, presets."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual import events
from textual.widgets import Input, TextArea

from tests.ui.conftest import Open
from tqchat.paths import Paths
from tqchat.ui.actions.table import ACTIONS
from tqchat.ui.input import slash
from tqchat.ui.input.slash import Command
from tqchat.ui.parts.presets import BUILT_IN, Presets
from tqchat.ui.screens.chat_settings import ChatSettings
from tqchat.ui.screens.dialog import Ask, Choose
from tqchat.ui.widgets.prompt.prompt import Prompt


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("/new", ("new", "")),
        ("/scheme  turbo4 ", ("scheme", "turbo4")),
        ("/system Be brief.\nAlways.", ("system", "Be brief.\nAlways.")),
        ("//new", None),
        ("/usr/bin/env is a path", None),
        ("say /new", None),
        ("/", None),
    ],
)
def test_commands_are_distinguished_from_messages(text: str, read: tuple[str, str] | None) -> None:
    assert slash.read(text) == read


def test_commands_and_their_arguments_complete() -> None:
    commands = [
        Command("system", ""),
        Command("set", "", lambda: ["temperature=", "top_p="]),
        Command("scheme", "", lambda: ["turbo4", "turbo3", "fp16"]),
        Command("new", ""),
    ]
    assert slash.suggestions("/sy", commands) == ["/system"]
    assert slash.suggestions("/scheme tu", commands) == ["/scheme turbo4", "/scheme turbo3"]
    assert slash.suggestions("/set seed=1 to", commands) == ["/set seed=1 top_p="]
    assert slash.suggestions("hello", commands) == slash.suggestions("/new x", commands) == []


def test_the_list_of_commands_has_one_order_and_no_word_twice() -> None:
    words = [one.word for one in ACTIONS.slashes()]
    assert words == [
        "scheme", "model", "new", "room", "rename", "search", "system", "set", "preset", "copy", "export",
        "theme", "settings", "help",
    ]  # fmt: skip
    assert [ACTIONS.by_word(word) for word in words] == [
        action for word in words for action in ACTIONS if action.slash and action.slash.word == word
    ]


async def test_commands_change_the_conversation(stage: Open) -> None:
    async with stage() as it:
        await it.pilot.press(*"/sch")
        await it.sees("store this conversation's cache")
        await it.pilot.press("tab", *"turbo3", "enter")
        await it.until(lambda: it.app.chat.schemes.chosen == "turbo3")
        await it.ask("/set temperature=0.3 seed = 7")
        await it.sees("Decided here: temperature 0.3, seed 7.")
        await it.ask("/set temperature=hot")
        await it.sees("Write it as name=number")
        assert it.app.query_one(Prompt).text == "/set temperature=hot", (
            "a refused command stays, to be corrected"
        )
        await it.ask("/nonsense")
        await it.sees("There is no command /nonsense")
        await it.ask("/system Be brief.")
        await it.ask("//path")
        await it.until(lambda: it.engine.sent())
        sent = it.engine.sent()[0]
        assert [turn.content for turn in sent.messages] == ["Be brief.", "/path"]
        assert (sent.sampling.temperature, sent.sampling.seed, sent.scheme) == (0.3, 7, "turbo3")


async def test_a_conversation_is_exported(stage: Open, tmp_path: Path) -> None:
    async with stage() as it:
        await it.chat("About foxes", "Red ones.")
        file = tmp_path / "foxes.md"
        await it.ask(f"/export {file}")
        await it.until(file.exists)
        assert "Red ones." in file.read_text()
        await it.ask(f"/export {file}")
        await it.sees("is there already")


async def test_a_long_paste_is_folded_and_sent_in_full(stage: Open) -> None:
    async with stage() as it:
        prompt, text = it.app.query_one(Prompt), "line\n" * 400
        prompt.post_message(events.Paste(text))
        await it.sees("[pasted text 1: 2,000 characters]")
        await it.pilot.press(*" go", "enter")
        await it.until(lambda: it.engine.sent())
        assert it.engine.sent()[0].messages[-1].content == f"{text} go"


async def test_the_dialog_sets_system_prompt_and_sampling_of_this_conversation(stage: Open) -> None:
    async with stage((80, 24)) as it:
        await it.pilot.press("f10")
        await it.until(lambda: isinstance(it.app.screen, ChatSettings))
        it.app.screen.query_one(TextArea).text = "Be brief."
        it.app.screen.query_one("#set-top_p", Input).value = "7"
        await it.pilot.press("ctrl+s")
        await it.sees("must be a number above 0")
        it.app.screen.query_one("#set-top_p", Input).value = "0.7"
        await it.pilot.press("ctrl+s")
        await it.until(lambda: not isinstance(it.app.screen, ChatSettings))
        assert it.app.chat.shown.system_prompt == "Be brief."
        assert it.app.chat.sampling.choice.given == {"top_p": 0.7}


async def test_a_preset_is_saved_and_used_in_another_conversation(stage: Open, paths: Paths) -> None:
    async with stage() as it:
        await it.ask("/set temperature=0.3 seed=7")
        await it.ask("/system Be brief.")
        await it.ask("/preset save brief")
        await it.sees("Kept as brief")
        await it.pilot.press("ctrl+n")
        await it.ask("/preset creative")
        await it.until(lambda: it.app.chat.sampling.choice.temperature == 1.0)
        await it.pilot.press(*"/preset b")
        await it.sees("/preset balanced")
        await it.pilot.press("down", "tab", "enter")
        await it.until(lambda: it.app.chat.sampling.choice.given == {"temperature": 0.3, "seed": 7})
        assert it.app.chat.shown.system_prompt == "Be brief."
        await it.ask("/preset precise save")
        await it.sees("There is no preset")
        await it.ask("/preset save precise")
        await it.sees("comes along with the app")
        await it.ask("/preset delete brief")
        await it.sees("Forgot the preset")
        assert "brief" not in Presets(paths.presets).all()


async def test_the_dialog_uses_and_saves_presets(stage: Open, paths: Paths) -> None:
    async with stage() as it:
        await it.pilot.press("f10")
        await it.until(lambda: isinstance(it.app.screen, ChatSettings))
        await it.pilot.press("f2")
        await it.until(lambda: isinstance(it.app.screen, Choose))
        await it.pilot.press("down", "enter")
        await it.until(lambda: isinstance(it.app.screen, ChatSettings))
        dialog = it.app.screen
        await it.until(lambda: dialog.query_one("#set-temperature", Input).value == "0")
        await it.pilot.press("f3")
        await it.until(lambda: isinstance(it.app.screen, Ask))
        await it.pilot.press(*"mine", "enter")
        await it.sees("Saved as mine.")
        await it.pilot.press("ctrl+s")
        await it.until(lambda: it.app.chat.sampling.choice.given == {"temperature": 0.0})
        assert Presets(paths.presets).get("mine").sampling.temperature == 0.0


@pytest.mark.parametrize("written", ["not toml [", "x = 1", "[a]\ntemperature = 99", "[a]\nwhat = 1"])
def test_a_damaged_presets_file_leaves_the_built_in_presets(paths: Paths, written: str) -> None:
    paths.presets.write_text(written)
    assert Presets(paths.presets).all() == BUILT_IN

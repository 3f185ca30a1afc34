"""Slash commands, long pastes, the settings of one conversation, presets."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from textual import events
from textual.widgets import Input, TextArea

from tests.ui.conftest import OpenApp
from tqchat.paths import Paths
from tqchat.store.sampling import SamplingChoice
from tqchat.ui.actions.table import ACTIONS
from tqchat.ui.input import slash
from tqchat.ui.input.slash import Command
from tqchat.ui.parts.presets import BUILT_IN, BadPreset, Preset, Presets
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
        "scheme", "model", "adapter", "new", "room", "rename", "search", "system", "set", "preset", "think",
        "copy", "export", "pin", "sort", "theme", "api", "settings", "help",
    ]  # fmt: skip
    assert [ACTIONS.by_word(word) for word in words] == [
        action for word in words for action in ACTIONS if action.slash and action.slash.word == word
    ]


DAMAGED = ["mine = [", "[mine]\ntemperature = 0.1\ntemperature = 0.2", "[" * 5000, "a = " + "9" * 5000]


@pytest.mark.parametrize("written", DAMAGED, ids=range(len(DAMAGED)))
def test_a_presets_file_that_cannot_be_read_is_not_overwritten(paths: Paths, written: str) -> None:
    paths.presets.write_text(written)
    presets = Presets(paths.presets)
    preset = Preset(SamplingChoice(seed=1))
    for change in (lambda: presets.save("new", preset), lambda: presets.delete("mine")):
        with pytest.raises(BadPreset, match="Nothing was changed"):
            change()
    assert paths.presets.read_text() == written
    assert str(paths.presets) in (presets.problem() or "")


def test_saving_a_preset_keeps_everything_else_in_the_file(paths: Paths) -> None:
    paths.presets.write_text(
        "later = 1\n\n[mine]\ntemperature = 0.1\nmirostat = 2\ntop_p = 9\n\n[other]\nwhat = 1\n", "utf-8"
    )
    presets = Presets(paths.presets)
    assert presets.get("mine").sampling.given == {"temperature": 0.1}
    assert "mine.mirostat" in (presets.problem() or "")
    presets.save("mine", Preset(SamplingChoice(temperature=0.2)))
    presets.save("new", Preset(SamplingChoice(seed=1)))
    presets.delete("other")
    assert tomllib.loads(paths.presets.read_text("utf-8")) == {
        "later": 1,
        "mine": {"mirostat": 2, "temperature": 0.2},
        "new": {"seed": 1},
    }


async def test_a_damaged_presets_file_is_reported_and_kept(open_app: OpenApp, paths: Paths) -> None:
    paths.presets.write_text("mine = [")
    async with open_app() as ui:
        await ui.shows("valid TOML")  # the path before it wraps anywhere
        await ui.send("/preset save brief")
        await ui.shows("Nothing was changed")
    assert paths.presets.read_text() == "mine = ["


async def test_commands_change_the_conversation(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.pilot.press(*"/sch")
        await ui.shows("change this conversation's cache scheme")
        await ui.pilot.press("tab", *"turbo3", "enter")
        await ui.until(lambda: ui.app.chat.schemes.chosen == "turbo3")
        await ui.send("/set temperature=0.3 seed = 7")
        await ui.shows("Set for this conversation: temperature 0.3, seed 7.")
        await ui.send("/set temperature=hot")
        await ui.shows("Write it as name=number")
        assert ui.app.query_one(Prompt).text == "/set temperature=hot", (
            "a refused command stays, to be corrected"
        )
        await ui.send("/nonsense")
        await ui.shows("There is no command /nonsense")
        await ui.send("/system Be brief.")
        await ui.send("//path")
        await ui.until(lambda: ui.engine.sent())
        sent = ui.engine.sent()[0]
        assert [turn.content for turn in sent.messages] == ["Be brief.", "/path"]
        assert (sent.sampling.temperature, sent.sampling.seed, sent.scheme) == (0.3, 7, "turbo3")


async def test_a_conversation_is_exported(open_app: OpenApp, tmp_path: Path) -> None:
    async with open_app() as ui:
        await ui.turn("About foxes", "Red ones.")
        file = tmp_path / "foxes.md"
        await ui.send(f"/export {file}")
        await ui.until(file.exists)
        assert "Red ones." in file.read_text()
        await ui.send(f"/export {file}")
        await ui.shows("exists;")


async def test_a_long_paste_is_folded_and_sent_in_full(open_app: OpenApp) -> None:
    async with open_app() as ui:
        prompt, text = ui.app.query_one(Prompt), "line\n" * 400
        prompt.post_message(events.Paste(text))
        await ui.shows("[pasted text 1: 2,000 characters]")
        await ui.pilot.press(*" go", "enter")
        await ui.until(lambda: ui.engine.sent())
        assert ui.engine.sent()[0].messages[-1].content == f"{text} go"
        ui.engine.reply("Gone.", 20)
        await ui.until(lambda: ui.app.chat.work.reply is None)
        await ui.pilot.press("ctrl+z")
        await ui.shows("[pasted text 1: 2,000 characters] go")
        prompt.post_message(events.Paste("word\n" * 400))
        await ui.shows("[pasted text 2: 2,000 characters]")
        await ui.pilot.press("enter")
        await ui.until(lambda: len(ui.engine.sent()) == 2)
        again = "word\n" * 400
        assert ui.engine.sent()[1].messages[-1].content == f"{text} go{again}"


async def test_the_dialog_sets_system_prompt_and_sampling_of_this_conversation(open_app: OpenApp) -> None:
    async with open_app((80, 24)) as ui:
        await ui.pilot.press("f10")
        await ui.until(lambda: isinstance(ui.app.screen, ChatSettings))
        ui.app.screen.query_one(TextArea).text = "Be brief."
        ui.app.screen.query_one("#set-top_p", Input).value = "7"
        await ui.pilot.press("ctrl+s")
        await ui.shows("must be a number above 0")
        ui.app.screen.query_one("#set-top_p", Input).value = "0.7"
        await ui.pilot.press("ctrl+s")
        await ui.until(lambda: not isinstance(ui.app.screen, ChatSettings))
        assert ui.app.chat.shown.system_prompt == "Be brief."
        assert ui.app.chat.sampling.choice.given == {"top_p": 0.7}


async def test_a_preset_is_saved_and_used_in_another_conversation(open_app: OpenApp, paths: Paths) -> None:
    async with open_app() as ui:
        await ui.send("/set temperature=0.3 seed=7")
        await ui.send("/system Be brief.")
        await ui.send("/preset save brief")
        await ui.shows("Saved as brief")
        await ui.pilot.press("ctrl+n")
        await ui.send("/preset creative")
        await ui.until(lambda: ui.app.chat.sampling.choice.temperature == 1.0)
        await ui.pilot.press(*"/preset b")
        await ui.shows("/preset balanced")
        await ui.pilot.press("down", "tab", "enter")
        await ui.until(lambda: ui.app.chat.sampling.choice.given == {"temperature": 0.3, "seed": 7})
        assert ui.app.chat.shown.system_prompt == "Be brief."
        await ui.send("/preset precise save")
        await ui.shows("There is no preset")
        await ui.send("/preset save precise")
        await ui.shows("is built in")
        await ui.send("/preset delete brief")
        await ui.shows("Deleted the preset")
        assert "brief" not in Presets(paths.presets).all()


async def test_the_dialog_uses_and_saves_presets(open_app: OpenApp, paths: Paths) -> None:
    async with open_app() as ui:
        await ui.pilot.press("f10")
        await ui.until(lambda: isinstance(ui.app.screen, ChatSettings))
        await ui.pilot.press("f2")
        await ui.until(lambda: isinstance(ui.app.screen, Choose))
        await ui.pilot.press("down", "enter")
        await ui.until(lambda: isinstance(ui.app.screen, ChatSettings))
        dialog = ui.app.screen
        await ui.until(lambda: dialog.query_one("#set-temperature", Input).value == "0")
        await ui.pilot.press("f3")
        await ui.until(lambda: isinstance(ui.app.screen, Ask))
        await ui.pilot.press(*"mine", "enter")
        await ui.shows("Saved as mine.")
        await ui.pilot.press("ctrl+s")
        await ui.until(lambda: ui.app.chat.sampling.choice.given == {"temperature": 0.0})
        assert Presets(paths.presets).get("mine").sampling.temperature == 0.0


@pytest.mark.parametrize("written", ["not toml [", "x = 1", "[a]\ntemperature = 99", "[a]\nwhat = 1"])
def test_a_damaged_presets_file_leaves_the_built_in_presets(paths: Paths, written: str) -> None:
    paths.presets.write_text(written)
    assert Presets(paths.presets).all() == BUILT_IN

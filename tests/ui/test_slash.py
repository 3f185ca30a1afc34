"""Commands in the prompt, long pastes, and what one conversation decides."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual import events
from textual.widgets import Input, TextArea

from tests.ui.conftest import Open
from tqchat.paths import Paths
from tqchat.ui import slash
from tqchat.ui.presets import BUILT_IN, Presets
from tqchat.ui.screens.chat_settings import ChatSettings
from tqchat.ui.screens.dialog import Ask, Choose
from tqchat.ui.slash_actions import SlashActions
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
def test_a_command_is_told_from_a_message(text: str, read: tuple[str, str] | None) -> None:
    assert slash.read(text) == read


def test_commands_and_what_follows_them_complete() -> None:
    values = {"set": lambda: ["temperature=", "top_p="], "scheme": lambda: ["turbo4", "turbo3", "fp16"]}
    assert slash.suggestions("/sy", values) == ["/system"]
    assert slash.suggestions("/scheme tu", values) == ["/scheme turbo4", "/scheme turbo3"]
    assert slash.suggestions("/set seed=1 to", values) == ["/set seed=1 top_p="]
    assert slash.suggestions("hello", values) == slash.suggestions("/new x", values) == []


def test_every_command_is_done_by_something() -> None:
    assert all(hasattr(SlashActions, f"_slash_{name}") for name in slash.NAMES)


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
        assert it.app.query_one(Prompt).text == "/set temperature=hot", "it stays, to be put right"
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


async def test_a_long_paste_is_folded_and_sent_whole(stage: Open) -> None:
    async with stage() as it:
        prompt, text = it.app.query_one(Prompt), "line\n" * 400
        prompt.post_message(events.Paste(text))
        await it.sees("[pasted text 1: 2,000 characters]")
        await it.pilot.press(*" go", "enter")
        await it.until(lambda: it.engine.sent())
        assert it.engine.sent()[0].messages[-1].content == f"{text} go"


async def test_the_dialog_decides_for_this_conversation(stage: Open) -> None:
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


async def test_a_preset_is_kept_and_taken_over_elsewhere(stage: Open, paths: Paths) -> None:
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


async def test_the_dialog_takes_over_and_keeps_presets(stage: Open, paths: Paths) -> None:
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
def test_a_damaged_file_of_presets_leaves_those_that_come_along(paths: Paths, written: str) -> None:
    paths.presets.write_text(written)
    assert Presets(paths.presets).all() == BUILT_IN

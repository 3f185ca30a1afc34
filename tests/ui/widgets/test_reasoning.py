"""Reasoning on the screen, and the switch for ui."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from textual.widgets import Input

from tests.ui.conftest import OpenApp, RunningApp
from tests.ui.scripted import INFO
from tqchat.engine import commands
from tqchat.settings import Settings
from tqchat.ui.widgets.prompt.prompt import Prompt

THOUGHT, ANSWER = "Foxes are\nred.", "They are **red**."
LONG = "\n".join(f"Step {number}." for number in range(1, 31))


async def begin(ui: RunningApp) -> None:
    await ui.send("Why?")
    await ui.until(lambda: ui.engine.sent())


async def test_reasoning_is_open_while_it_streams_and_folded_afterwards(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await begin(ui)
        ui.engine.delta("Foxes are", "reasoning")
        await ui.shows("Thinking…")
        await ui.shows("Foxes are")
        ui.engine.delta("\nred.", "reasoning")
        ui.engine.delta(ANSWER)
        ui.engine.done(ANSWER, reasoning=THOUGHT)
        await ui.shows("▸ Thought for 2.0 s, 3 words")
        await ui.hides("Foxes are")
        await ui.shows("They are red.")
        await ui.pilot.press("ctrl+up", "enter")
        await ui.shows("Foxes are")
        await ui.pilot.press("space")
        await ui.hides("Foxes are")
        for keys in (("f5",), ("y",), ("alt+a",)):
            await ui.pilot.press(*keys)
            assert ANSWER in ui.app.clipboard and "Foxes are" not in ui.app.clipboard
        await ui.pilot.press("ctrl+n", "alt+down")
        await ui.shows("▸ Thought for 2.0 s, 3 words")
        await ui.hides("Foxes are")
        await ui.pilot.press("ctrl+up", "space")
        await ui.shows("Foxes are")


async def test_only_the_end_of_a_long_thought_is_shown_unless_all_of_it_is_wanted(open_app: OpenApp) -> None:
    async with open_app((120, 60)) as ui:
        await begin(ui)
        ui.engine.delta(LONG, "reasoning")
        await ui.shows("Step 30.")
        assert "Step 12." not in ui.text()
    settings = Settings(theme="tqchat-dark", show_thinking="open")
    async with open_app((120, 60), settings=settings) as ui:
        await begin(ui)
        for start in range(0, len(LONG), 9):
            ui.engine.delta(LONG[start : start + 9], "reasoning")
        await ui.shows("Step 30.")
        assert "Step 1.\n" in "\n".join(line.strip() + "\n" for line in ui.text().splitlines())
        ui.engine.delta(ANSWER)
        ui.engine.done(ANSWER, reasoning=LONG)
        await ui.shows("▾ Thought for 2.0 s, 60 words")
        await ui.shows("Step 12.")
        await ui.pilot.press("ctrl+up", "space")
        await ui.shows("▸ Thought for 2.0 s, 60 words")
        ui.app.parts.preferences.set("show_thinking", "folded")
        await ui.pilot.press("ctrl+n", "alt+down")
        await ui.shows("▸ Thought for 2.0 s, 60 words")
        assert "Step 12." not in ui.text()


async def test_a_reply_cut_off_while_thinking_is_shown_as_thinking(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await begin(ui)
        ui.engine.delta("Foxes are", "reasoning")
        await ui.shows("Foxes are")
        await ui.pilot.press("escape")
        ui.engine.done("", "stopped", reasoning="Foxes are")
        await ui.shows("▸ Thinking cut off after 2.0 s, 2 words")
        await ui.shows("stopped: F4 continues")
        await ui.hides("Foxes are")
        await ui.pilot.press("f5")
        await ui.shows("There is nothing to copy yet.")
        await ui.pilot.press("ctrl+n", "alt+down")
        await ui.shows("▸ Thinking cut off after 2.0 s, 2 words")
        await ui.pilot.press("f4")
        await ui.until(lambda: len(ui.engine.sent()) == 2)
        await ui.shows("Foxes are")
        ui.engine.delta(" red.", "reasoning")
        await ui.shows("Foxes are red.")
        ui.engine.delta(ANSWER)
        ui.engine.done(ANSWER, reasoning=" red.")
        await ui.shows("▸ Thought for 4.0 s, 3 words")
        await ui.shows("They are red.")


async def test_an_answer_that_turns_out_to_be_reasoning_is_drawn_as_reasoning(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await begin(ui)
        ui.engine.delta("Foxes are\nred.\n")
        await ui.shows("red.")
        ui.engine.delta("", "reasoning", takes_answer=True)
        await ui.shows("Thinking…")
        ui.engine.delta(ANSWER)
        await ui.shows("▸ Thought, 3 words")
        await ui.shows("They are red.")
        await ui.hides("Foxes are")
        ui.engine.done(ANSWER, reasoning=THOUGHT)
        await ui.shows("▸ Thought for 2.0 s, 3 words")
        assert ui.text().count("They are red.") == 1


async def test_reasoning_that_streams_is_shown_again_after_another_conversation(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await begin(ui)
        ui.engine.delta("Foxes are", "reasoning")
        await ui.shows("Foxes are")
        await ui.pilot.press("ctrl+n")
        await ui.hides("Foxes are")
        await ui.pilot.press("alt+down")
        await ui.shows("Thinking…")
        await ui.shows("Foxes are")


async def test_the_switch_by_command_palette_and_key(open_app: OpenApp) -> None:
    async with open_app() as ui:
        ui.engine.ready(replace(INFO, name="reasoner", thinking_choices=("off", "low", "high")))
        await ui.shows("thinking: default")
        await ui.send("/think low")
        await ui.shows("Thinking: low, from the next reply on.")
        await ui.shows("thinking: low")
        await ui.turn("Why?", "So.")
        assert ui.engine.sent()[-1].thinking == commands.Thinking("low")
        palette = {one.title: one for one in ui.app.get_system_commands(ui.app.screen)}
        await palette["Think: off"].callback()
        await ui.shows("thinking: off")
        assert "Think: on" not in palette
        await ui.pilot.press("ctrl+l")
        await ui.shows("Reasoning in this conversation")
        await ui.pilot.press("down", "down", "enter")
        await ui.shows("thinking: high")
        await ui.send("/think budget 300")
        await ui.shows("at most 300 tokens")
        await ui.turn("Sure?", "So.")
        assert ui.engine.sent()[-1].thinking == commands.Thinking("high", 300)
        await ui.send("/think default")
        await ui.send("/think budget default")
        await ui.shows("thinking: default")
        await ui.turn("Sure?", "So.")
        assert ui.engine.sent()[-1].thinking == commands.Thinking()


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("on", "reasoner cannot be set to on; it knows off, low and"),
        ("budget much", "Write a number of tokens"),
        ("budget -1", "Write a number of tokens"),
        ("nonsense", "/think takes off, low, high, default or budget N."),
    ],
)
async def test_what_the_model_cannot_do_is_refused(open_app: OpenApp, argument: str, sentence: str) -> None:
    async with open_app() as ui:
        ui.engine.ready(replace(INFO, name="reasoner", thinking_choices=("off", "low", "high")))
        await ui.shows("thinking: default")
        await ui.send(f"/think {argument}")
        await ui.shows(sentence)
        assert ui.app.query_one(Prompt).text == f"/think {argument}"
        assert ui.app.chat.thinking.choice is None


async def test_a_model_without_a_switch_has_none_on_the_screen(open_app: OpenApp) -> None:
    async with open_app() as ui:
        assert "thinking:" not in ui.text()
        await ui.send("/think off")
        await ui.shows("starter 30M has no switch for its reasoning.")
        ui.app.query_one(Prompt).put("")
        await ui.pilot.press("ctrl+l")
        await ui.shows("starter 30M has no switch for its reasoning.")


async def test_the_command_completes_what_the_model_knows(open_app: OpenApp) -> None:
    async with open_app() as ui:
        ui.engine.ready(replace(INFO, thinking_choices=("off", "on")))
        await ui.shows("thinking: default")
        await ui.pilot.press(*"/think o")
        await ui.shows("/think off")
        await ui.shows("/think on")
        await ui.pilot.press("backspace", "l")
        await ui.hides("/think off")


async def test_each_conversation_has_its_own_choice(open_app: OpenApp) -> None:
    async with open_app() as ui:
        ui.engine.ready(replace(INFO, thinking_choices=("off", "on")))
        await ui.send("/think off")
        await ui.turn("Why?", "So.")
        await ui.shows("thinking: off")
        await ui.pilot.press("ctrl+n")
        await ui.shows("thinking: default")
        await ui.pilot.press("alt+down")
        await ui.shows("thinking: off")


@pytest.mark.parametrize("shown", ["since", "again"])
async def test_a_search_hit_in_folded_reasoning_unfolds_it(open_app: OpenApp, shown: str) -> None:
    async with open_app() as ui:
        await begin(ui)
        ui.engine.delta(THOUGHT, "reasoning")
        ui.engine.delta(ANSWER)
        ui.engine.done(ANSWER, reasoning=THOUGHT)
        await ui.shows("▸ Thought for 2.0 s, 3 words")
        if shown == "again":
            await ui.pilot.press("ctrl+n", "alt+down")
            await ui.shows("▸ Thought for 2.0 s, 3 words")
        for words, hit in (("red", False), ("foxes", True)):
            await ui.send(f"/search {words}")
            await ui.until(lambda words=words: ui.app.parts.conversations.query_one(Input).value == words)
            await ui.pilot.press("enter")
            await ui.until(lambda: ui.app.parts.log.marked is not None)
            await (ui.shows if hit else ui.hides)("Foxes are")
            await ui.pilot.press("escape")


async def test_a_search_hit_in_a_folded_file_unfolds_it(open_app: OpenApp, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("The marten sleeps.\n" * 3)
    async with open_app() as ui:
        await ui.turn(f"Read @{tmp_path / 'notes.txt'} please", "Done.")
        await ui.hides("The marten sleeps.")
        await ui.send("/search marten")
        await ui.until(lambda: ui.app.parts.conversations.query_one(Input).value == "marten")
        await ui.pilot.press("enter")
        await ui.shows("The marten sleeps.")


async def test_the_models_own_default_is_named(open_app: OpenApp) -> None:
    async with open_app() as ui:
        ui.engine.ready(replace(INFO, thinking_choices=("off", "on"), thinking_default="on"))
        await ui.shows("thinking: default (on)")
        await ui.pilot.press("ctrl+l")
        await ui.shows("Leave it to the settings, else to the model (on).")

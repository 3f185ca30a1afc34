"""What a person does, key by key, on the running app."""

from __future__ import annotations

import pytest
from textual.widgets import Input, OptionList

from tests.ui.conftest import Open
from tqchat.engine import commands, events
from tqchat.paths import Paths
from tqchat.settings import Settings, State
from tqchat.store.database import Database
from tqchat.ui.screens.dialog import Ask, Confirm
from tqchat.ui.screens.help import Help
from tqchat.ui.screens.models import ModelPicker
from tqchat.ui.screens.scheme import SchemePicker
from tqchat.ui.widgets.prompt.prompt import Prompt

SIZES = [(60, 20), (80, 24), (120, 40), (200, 50)]


@pytest.mark.parametrize("size", SIZES)
async def test_a_turn_reads_well_at_every_size(stage: Open, size: tuple[int, int]) -> None:
    async with stage(size) as it:
        await it.sees("Ask something to begin.")
        await it.chat("What is a fox?", "A **small** animal.\n\n- red\n- quick", tokens=900)
        await it.sees("• quick")
        for shown in ("What is a fox?", "A small animal.", "860 tok", "context 900 / 4,096", "1.5x"):
            await it.sees(shown)
        lines = it.text().splitlines()
        assert len(lines) == size[1] and all(len(line) <= size[0] for line in lines)


async def test_enter_sends_and_ctrl_j_breaks_the_line(stage: Open) -> None:
    async with stage() as it:
        await it.pilot.press("a", "ctrl+j", "b", "enter")
        await it.until(lambda: it.engine.sent())
        assert it.engine.sent()[0].messages[-1].content == "a\nb"
        assert it.app.query_one(Prompt).text == ""


async def test_up_at_the_first_line_recalls_and_down_returns_to_the_draft(stage: Open) -> None:
    async with stage() as it:
        await it.chat("first", "1")
        await it.chat("second", "2")
        prompt = it.app.query_one(Prompt)
        prompt.put("draft")
        await it.pilot.press("up")
        assert prompt.text == "second"
        await it.pilot.press("up", "up")
        assert prompt.text == "first"
        await it.pilot.press("down", "down")
        assert prompt.text == "draft"


async def test_up_inside_a_message_of_several_lines_only_moves_the_cursor(stage: Open) -> None:
    async with stage() as it:
        await it.chat("first", "1")
        prompt = it.app.query_one(Prompt)
        prompt.put("one\ntwo")
        await it.pilot.press("up")
        assert prompt.text == "one\ntwo" and prompt.cursor_location[0] == 0


async def test_esc_stops_and_an_unanswered_message_returns(stage: Open) -> None:
    async with stage() as it:
        await it.ask("Wait for it")
        await it.until(lambda: it.engine.sent())
        await it.pilot.press("escape")
        assert it.engine.stops == 1
        await it.sees("Stopping")
        it.engine.done("", "stopped")
        await it.until(lambda: it.app.query_one(Prompt).text == "Wait for it")
        await it.sees("Ask something to begin.")


async def test_a_stopped_reply_says_so(stage: Open) -> None:
    async with stage() as it:
        await it.ask("Count")
        await it.until(lambda: it.engine.sent())
        it.engine.delta("One, two")
        await it.sees("One, two")
        await it.pilot.press("escape")
        it.engine.done("One, two", "stopped")
        await it.until(lambda: it.text().rstrip().count("stopped") == 1)


async def test_ctrl_r_answers_again(stage: Open) -> None:
    async with stage() as it:
        await it.pilot.press("ctrl+r")
        await it.sees("nothing to answer again")
        await it.chat("Hello", "Hi there.")
        await it.pilot.press("ctrl+r")
        await it.until(lambda: len(it.engine.sent()) == 2)
        it.engine.reply("Good day.")
        await it.sees("Good day.")
        await it.sees_no("Hi there.")


async def test_ctrl_n_begins_another_conversation(stage: Open) -> None:
    async with stage() as it:
        await it.chat("About foxes", "Yes.")
        await it.pilot.press("ctrl+n")
        await it.sees("Ask something to begin.")
        await it.chat("About owls", "Yes.")
        await it.until(lambda: it.app.query_one("#titles", OptionList).option_count == 3)
        assert [one.title for one in it.app.database.conversations()] == ["About owls", "About foxes"]


async def test_conversations_open_from_the_list_and_by_key(stage: Open) -> None:
    async with stage() as it:
        await it.chat("About foxes", "Red ones.")
        await it.pilot.press("ctrl+n")
        await it.chat("About owls", "Grey ones.")
        await it.pilot.press("alt+down")
        await it.sees("Red ones.")
        await it.pilot.press("alt+up")
        await it.sees("Grey ones.")
        titles = it.app.query_one("#titles", OptionList)
        titles.focus()
        shown = it.app.chat.shown.conversation
        assert shown is not None and shown.title == "About owls"
        # The list is drawn a moment after the messages are; until then its cursor is on the
        # conversation before.
        await it.until(
            lambda: (
                titles.has_focus and titles.highlighted_option and titles.highlighted_option.id == shown.id
            )
        )
        await it.pilot.press("down")
        # Another process writes, a cache is saved: the list is drawn anew under the cursor.
        it.app.screen._draw_list(it.app.chat)
        await it.pilot.press("enter")
        await it.sees("Red ones.")
        assert it.app.focused is it.app.query_one(Prompt)


async def test_search_narrows_the_list(stage: Open) -> None:
    async with stage() as it:
        await it.chat("About foxes", "1")
        await it.pilot.press("ctrl+n")
        await it.chat("About owls", "2")
        it.app.query_one("#search", Input).focus()
        await it.pilot.press("f", "o", "x")
        await it.until(lambda: it.app.query_one("#titles", OptionList).option_count == 2)
        await it.pilot.press("enter")
        await it.until(
            lambda: it.app.chat.shown.conversation and it.app.chat.shown.conversation.title == "About foxes"
        )


async def test_rename(stage: Open) -> None:
    async with stage() as it:
        await it.chat("About foxes", "Yes.")
        await it.pilot.press("ctrl+t")
        await it.until(lambda: isinstance(it.app.screen, Ask))
        it.app.screen.query_one(Input).value = "Reynard"
        await it.pilot.press("enter")
        await it.sees("Reynard")
        assert not it.app.database.conversations()[0].title_is_automatic


async def test_delete_asks_first(stage: Open) -> None:
    async with stage() as it:
        await it.chat("About foxes", "Yes.")
        for key in ("enter", "escape", "n"):
            await it.pilot.press("f8")
            await it.until(lambda: isinstance(it.app.screen, Confirm))
            await it.pilot.press(key)
            await it.until(lambda: not isinstance(it.app.screen, Confirm))
            assert len(it.app.database.conversations()) == 1
        await it.pilot.press("f8")
        await it.until(lambda: isinstance(it.app.screen, Confirm))
        await it.pilot.press("y")
        await it.until(lambda: not it.app.database.conversations())
        await it.sees("None yet.")
        assert any(isinstance(command, commands.ForgetConversation) for command in it.engine.commands)


async def test_the_picker_applies_a_scheme_to_the_live_cache(stage: Open) -> None:
    async with stage() as it:
        await it.chat("About foxes", "Yes.", tokens=1900)
        await it.pilot.press("ctrl+k")
        await it.until(lambda: isinstance(it.app.screen, SchemePicker))
        await it.sees("predicted")
        await it.pilot.press("up", "enter")
        await it.sees("Converted 1,900 tokens from turbo0v4 to affine4")
        await it.pilot.press("ctrl+k")
        await it.until(lambda: isinstance(it.app.screen, SchemePicker))
        await it.pilot.press("home", "down")
        await it.sees("keeps its earlier rounding")
        await it.sees("(about 2.1")
        await it.pilot.press("r")
        await it.sees("Re-read 1,900 tokens from affine4 to fp16")


async def test_a_long_conversion_shows_how_far_it_is(stage: Open) -> None:
    async with stage() as it:
        await it.chat("About foxes", "Yes.", tokens=1900)
        it.engine.converts = False
        await it.ask("/scheme turbo3")
        await it.sees("Converting the cache…")
        assert it.app.chat.shown.conversation is not None
        it.engine.say(events.ConversionProgress(it.app.chat.shown.conversation.id, 3, 8))
        await it.sees("Converting the cache… 3 of 8 layers")


async def test_a_change_of_scheme_is_undone_by_reading_again(stage: Open) -> None:
    async with stage() as it:
        await it.pilot.press("alt+k")
        await it.sees("has not been changed here")
        await it.chat("About foxes", "Yes.", tokens=1900)
        await it.ask("/scheme turbo2")
        await it.sees("Converted 1,900 tokens from turbo0v4 to turbo2")
        await it.pilot.press("alt+k")
        await it.sees("Re-read 1,900 tokens from turbo2 to turbo0v4")
        assert it.app.chat.schemes.chosen == "turbo0v4"
        await it.ask("/scheme undo")
        await it.sees("Re-read 1,900 tokens from turbo0v4 to turbo2")


async def test_the_picker_works_before_there_is_a_model(stage: Open) -> None:
    async with stage(loads=False) as it:
        await it.pilot.press("ctrl+k")
        await it.until(lambda: isinstance(it.app.screen, SchemePicker))
        await it.sees("In force.")
        assert "would take" not in it.text()
        await it.pilot.press("home", "down", "enter")
        await it.until(lambda: it.app.chat.schemes.chosen == "fp16")


async def test_sending_while_the_model_loads_waits_and_is_answered(stage: Open) -> None:
    async with stage(loads=False) as it:
        await it.sees("You can already type.")
        await it.ask("Hello")
        await it.sees("Waiting for the model; your message is saved.")
        it.engine.ready()
        await it.until(lambda: it.engine.sent())
        it.engine.reply("Hi.")
        await it.sees("Hi.")


async def test_a_model_that_cannot_be_had_is_said_and_another_can_be_loaded(stage: Open) -> None:
    async with stage(loads=False) as it:
        it.engine.say(events.ModelFailed("org/none", "There is no model [org/none] on Hugging Face."))
        await it.sees("✗ There is no model [org/none] on Hugging Face.")
        await it.sees("No model.")
        await it.pilot.press("ctrl+o")
        await it.until(lambda: isinstance(it.app.screen, ModelPicker))
        it.app.screen.query_one(Input).value = "some/model"
        await it.pilot.press("enter")
        await it.until(lambda: it.engine.commands[-1] == commands.LoadModel("some/model"))


async def test_a_download_shows_its_progress_and_esc_cancels_it(stage: Open) -> None:
    async with stage(loads=False) as it:
        it.engine.say(events.ModelProgress("org/big", "downloading", 1_200_000_000, 4_300_000_000))
        await it.sees("Esc pauses  org/big")
        await it.sees("1.20 GB of 4.30 GB")
        await it.pilot.press("escape")
        assert it.engine.cancels == 1


async def test_reading_a_long_prompt_shows_how_far_it_is(stage: Open) -> None:
    async with stage() as it:
        await it.ask("Read this")
        await it.until(lambda: it.engine.sent())
        it.engine.say(events.PrefillProgress(it.engine.sent()[0].conversation_id, 1024, 3076))
        await it.sees("1,024 of 3,076 tokens")


async def test_a_failed_reply_says_why(stage: Open) -> None:
    async with stage() as it:
        await it.ask("Hello")
        await it.until(lambda: it.engine.sent())
        it.engine.delta("Well")
        it.engine.say(events.Failed(it.engine.sent()[0].conversation_id, "Not enough memory.", "Well"))
        await it.sees("✗ Not enough memory.")
        await it.sees("unfinished: F4 continues, ^R regenerates")


async def test_quit_saves_first_and_the_conversation_is_there_again(stage: Open, paths: Paths) -> None:
    async with stage() as it:
        await it.chat("About foxes", "Red ones.")
        identity = it.app.chat.shown.conversation
        assert identity is not None
        await it.pilot.press("ctrl+q")
        await it.until(lambda: it.engine.ended)
    assert State.load(paths).conversation == identity.id
    restored = events.Opened(identity.id, 300, 0.1)
    async with stage(restored=restored) as it:
        await it.sees("Red ones.")
        await it.sees("Restored 300 tokens, nothing re-read.")


async def test_where_one_was_is_remembered_at_once_not_only_on_leaving(stage: Open, paths: Paths) -> None:
    async with stage() as it:
        await it.chat("About foxes", "Red ones.")
        assert it.app.chat.shown.conversation is not None
        assert State.load(paths).conversation == it.app.chat.shown.conversation.id
        await it.pilot.press("ctrl+n")
        assert State.load(paths).conversation is None


async def test_quitting_in_the_middle_keeps_the_reply_as_unfinished(stage: Open, paths: Paths) -> None:
    async with stage() as it:
        await it.ask("Hello")
        await it.until(lambda: it.engine.sent())
        it.engine.delta("Half of a")
        it.engine.delta(" sentence")
        await it.sees("Half of a sentence")
        await it.pilot.press("ctrl+q")
        await it.until(lambda: it.app._exit)
    with Database(paths.database) as database:
        last = database.messages(database.conversations()[0].id)[-1]
    assert (last.content, last.status) == ("Half of a sentence", "unfinished")
    async with stage() as it:
        await it.sees("unfinished: F4 continues, ^R regenerates")


async def test_help_lists_the_keys_that_are_really_bound(stage: Open) -> None:
    settings = Settings(theme="tqchat-dark", keys={"scheme": "f12"})
    async with stage((120, 80), settings=settings) as it:
        await it.pilot.press("f1")
        await it.until(lambda: isinstance(it.app.screen, Help))
        await it.sees("Cache scheme")
        row = next(line for line in it.text().splitlines() if "Cache scheme" in line)
        assert "F12" in row and "^K" not in row
        await it.pilot.press("escape")
        await it.until(lambda: not isinstance(it.app.screen, Help))


async def test_the_palette_runs_our_actions(stage: Open) -> None:
    async with stage() as it:
        await it.pilot.press("ctrl+p")
        await it.sees("Search for commands")
        await it.pilot.press(*"cache scheme")
        await it.sees("How this conversation's cache is stored.")
        await it.pilot.press("enter")
        await it.until(lambda: isinstance(it.app.screen, SchemePicker))


async def test_a_question_has_the_keys_to_itself(stage: Open) -> None:
    async with stage() as it:
        await it.chat("About foxes", "Red ones.")
        await it.pilot.press("f8")
        await it.until(lambda: isinstance(it.app.screen, Confirm))
        await it.pilot.press("ctrl+n", "ctrl+k", "ctrl+r")
        assert isinstance(it.app.screen, Confirm) and len(it.app.screen_stack) == 2
        assert it.app.chat.shown.conversation is not None


async def test_the_sides_fold_away_where_it_is_narrow_and_keys_bring_them(stage: Open) -> None:
    async with stage((80, 24)) as it:
        await it.chat("About foxes", "Red ones.", tokens=900)
        await it.sees("of 7.37 MB FP16")
        assert "KV cache" not in it.text() and "Conversations" not in it.text()
        await it.pilot.press("f3")
        await it.sees("KV cache")
        await it.pilot.press("f2")
        await it.sees("Conversations")
        assert "KV cache" not in it.text(), "one at a time"
        await it.pilot.press("escape")
        await it.sees_no("Conversations")
        assert it.app.focused is it.app.query_one(Prompt)


async def test_folding_where_it_is_wide_is_remembered(stage: Open, paths: Paths) -> None:
    async with stage() as it:
        await it.sees("KV cache")
        await it.pilot.press("f3")
        await it.sees_no("KV cache")
        await it.pilot.press("f2")
        await it.sees_no("Conversations")
        await it.pilot.press("ctrl+q")
        await it.until(lambda: it.app._exit)
    assert State.load(paths) == State(sidebar=False, gauge=False)


async def test_resizing_moves_the_gauge_between_panel_and_line(stage: Open) -> None:
    async with stage((120, 40)) as it:
        await it.chat("About foxes", "Red ones.", tokens=900)
        await it.sees("FP16 would take")
        await it.pilot.resize_terminal(70, 24)
        await it.sees_no("FP16 would take")
        await it.sees("of 7.37 MB FP16")

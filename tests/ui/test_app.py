"""Using the running app by keys."""

from __future__ import annotations

from dataclasses import replace

import pytest
from textual.events import Paste
from textual.widgets import Input, OptionList

from tests.ui.conftest import OpenApp
from tests.ui.scripted import INFO, report
from tqchat.engine import commands, events
from tqchat.paths import Paths
from tqchat.settings import Settings, State
from tqchat.store.database import Database
from tqchat.ui.screens.dialog import Ask, Confirm
from tqchat.ui.screens.help import Help
from tqchat.ui.screens.models import ModelPicker
from tqchat.ui.screens.scheme import SchemePicker
from tqchat.ui.widgets.chat.log import ChatLog
from tqchat.ui.widgets.prompt.prompt import Prompt

SIZES = [(60, 20), (80, 24), (120, 40), (200, 50)]


@pytest.mark.parametrize("size", SIZES)
async def test_a_turn_is_shown_at_every_terminal_size(open_app: OpenApp, size: tuple[int, int]) -> None:
    async with open_app(size) as ui:
        await ui.shows("Ask something to begin.")
        await ui.turn("What is a fox?", "A **small** animal.\n\n- red\n- quick", tokens=900)
        await ui.shows("• quick")
        for shown in ("What is a fox?", "A small animal.", "860 tok", "context 900 / 4,096", "1.5x"):
            await ui.shows(shown)
        lines = ui.text().splitlines()
        assert len(lines) == size[1] and all(len(line) <= size[0] for line in lines)


async def test_enter_sends_and_ctrl_j_breaks_the_line(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.pilot.press("a", "ctrl+j", "b", "enter")
        await ui.until(lambda: ui.engine.sent())
        assert ui.engine.sent()[0].messages[-1].content == "a\nb"
        assert ui.app.query_one(Prompt).text == ""


async def test_up_recalls_earlier_messages_and_down_returns_to_the_unsent_text(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.turn("first", "1")
        await ui.turn("second", "2")
        prompt = ui.app.query_one(Prompt)
        prompt.put("draft")
        await ui.pilot.press("up")
        assert prompt.text == "second"
        await ui.pilot.press("up", "up")
        assert prompt.text == "first"
        await ui.pilot.press("down", "down")
        assert prompt.text == "draft"


async def test_up_inside_a_message_of_several_lines_only_moves_the_cursor(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.turn("first", "1")
        prompt = ui.app.query_one(Prompt)
        prompt.put("one\ntwo")
        await ui.pilot.press("up")
        assert prompt.text == "one\ntwo" and prompt.cursor_location[0] == 0


async def test_esc_before_any_text_returns_the_message_to_the_prompt(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.send("Wait for it")
        await ui.until(lambda: ui.engine.sent())
        await ui.pilot.press("escape")
        assert ui.engine.stops == 1
        await ui.shows("Stopping")
        ui.engine.done("", "stopped")
        await ui.until(lambda: ui.app.query_one(Prompt).text == "Wait for it")
        await ui.shows("Ask something to begin.")


async def test_a_stopped_reply_is_marked(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.send("Count")
        await ui.until(lambda: ui.engine.sent())
        ui.engine.delta("One, two")
        await ui.shows("One, two")
        await ui.pilot.press("escape")
        ui.engine.done("One, two", "stopped")
        await ui.until(lambda: ui.text().rstrip().count("stopped") == 1)


async def test_ctrl_r_regenerates(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.pilot.press("ctrl+r")
        await ui.shows("nothing to regenerate")
        await ui.turn("Hello", "Hi there.")
        await ui.pilot.press("ctrl+r")
        await ui.until(lambda: len(ui.engine.sent()) == 2)
        ui.engine.reply("Good day.")
        await ui.shows("Good day.")
        await ui.hides("Hi there.")


async def test_ctrl_n_begins_another_conversation(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.turn("About foxes", "Yes.")
        await ui.pilot.press("ctrl+n")
        await ui.shows("Ask something to begin.")
        await ui.turn("About owls", "Yes.")
        await ui.until(lambda: ui.app.query_one("#titles", OptionList).option_count == 3)
        assert [one.title for one in ui.app.database.conversations()] == ["About owls", "About foxes"]


async def test_conversations_open_from_the_list_and_by_key(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.turn("About foxes", "Red ones.")
        await ui.pilot.press("ctrl+n")
        await ui.turn("About owls", "Grey ones.")
        await ui.pilot.press("alt+down")
        await ui.shows("Red ones.")
        await ui.pilot.press("alt+up")
        await ui.shows("Grey ones.")
        titles = ui.app.query_one("#titles", OptionList)
        titles.focus()
        shown = ui.app.chat.shown.conversation
        assert shown is not None and shown.title == "About owls"
        # The list is drawn a moment after the messages are; until then its cursor is on the
        # conversation before.
        await ui.until(
            lambda: (
                titles.has_focus and titles.highlighted_option and titles.highlighted_option.id == shown.id
            )
        )
        await ui.pilot.press("down")
        # Another process writes, a cache is saved: the list is drawn anew under the cursor.
        ui.app.screen._draw_list(ui.app.chat)
        await ui.pilot.press("enter")
        await ui.shows("Red ones.")
        assert ui.app.focused is ui.app.query_one(Prompt)


async def test_the_end_of_a_line_longer_than_its_field_is_shown(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.turn("first", "1")
        ui.app.query_one("#search", Input).focus()
        await ui.pilot.press(*("0123456789" * 4 + "last"))
        await ui.shows("0123456789last")
        await ui.pilot.press("escape", "ctrl+o")
        await ui.until(lambda: isinstance(ui.app.screen, ModelPicker))
        ui.app.screen.query_one(Input).focus()
        await ui.pilot.press(*("abcdefghij" * 14 + "last"))
        await ui.shows("abcdefghijlast")


async def test_search_narrows_the_list(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.turn("About foxes", "1")
        await ui.pilot.press("ctrl+n")
        await ui.turn("About owls", "2")
        ui.app.query_one("#search", Input).focus()
        await ui.pilot.press("f", "o", "x")
        await ui.until(lambda: ui.app.query_one("#titles", OptionList).option_count == 2)
        await ui.pilot.press("enter")
        await ui.until(
            lambda: ui.app.chat.shown.conversation and ui.app.chat.shown.conversation.title == "About foxes"
        )


async def test_rename(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.turn("About foxes", "Yes.")
        await ui.pilot.press("ctrl+t")
        await ui.until(lambda: isinstance(ui.app.screen, Ask))
        ui.app.screen.query_one(Input).value = "Reynard"
        await ui.pilot.press("enter")
        await ui.shows("Reynard")
        assert not ui.app.database.conversations()[0].title_is_automatic


async def test_delete_asks_for_confirmation(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.turn("About foxes", "Yes.")
        for key in ("enter", "escape", "n"):
            await ui.pilot.press("f8")
            await ui.until(lambda: isinstance(ui.app.screen, Confirm))
            await ui.pilot.press(key)
            await ui.until(lambda: not isinstance(ui.app.screen, Confirm))
            assert len(ui.app.database.conversations()) == 1
        await ui.pilot.press("f8")
        await ui.until(lambda: isinstance(ui.app.screen, Confirm))
        await ui.pilot.press("y")
        await ui.until(lambda: not ui.app.database.conversations())
        await ui.shows("None yet.")
        assert any(isinstance(command, commands.ForgetConversation) for command in ui.engine.commands)


async def test_the_picker_applies_a_scheme_to_the_live_cache(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.turn("About foxes", "Yes.", tokens=1900)
        await ui.pilot.press("ctrl+k")
        await ui.until(lambda: isinstance(ui.app.screen, SchemePicker))
        await ui.shows("predicted")
        await ui.pilot.press("up", "enter")
        await ui.shows("Converted 1,900 tokens from turbo0v4 to affine4")
        await ui.pilot.press("ctrl+k")
        await ui.until(lambda: isinstance(ui.app.screen, SchemePicker))
        await ui.pilot.press("home", "down")
        await ui.shows("keeps its earlier rounding")
        await ui.shows("(about 2.1")
        await ui.pilot.press("r")
        await ui.shows("Re-read 1,900 tokens from affine4 to fp16")


async def test_a_long_conversion_shows_its_progress(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.turn("About foxes", "Yes.", tokens=1900)
        ui.engine.converts = False
        await ui.send("/scheme turbo3")
        await ui.shows("Converting the cache…")
        assert ui.app.chat.shown.conversation is not None
        ui.engine.emit(events.ConversionProgress(ui.app.chat.shown.conversation.id, 3, 8))
        await ui.shows("Converting the cache… 3 of 8 layers")


async def test_a_scheme_change_is_undone_by_re_reading(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.pilot.press("alt+k")
        await ui.shows("has not been changed here")
        await ui.turn("About foxes", "Yes.", tokens=1900)
        await ui.send("/scheme turbo2")
        await ui.shows("Converted 1,900 tokens from turbo0v4 to turbo2")
        await ui.shows("returns to turbo0v4 by re-reading.")
        await ui.pilot.press("alt+k")
        await ui.shows("Re-read 1,900 tokens from turbo2 to turbo0v4")
        assert ui.app.chat.schemes.chosen == "turbo0v4"
        await ui.send("/scheme undo")
        await ui.shows("Re-read 1,900 tokens from turbo0v4 to turbo2")


async def test_the_scheme_picker_works_without_a_model(open_app: OpenApp) -> None:
    async with open_app(loads=False) as ui:
        await ui.pilot.press("ctrl+k")
        await ui.until(lambda: isinstance(ui.app.screen, SchemePicker))
        await ui.shows("In force.")
        assert "would take" not in ui.text()
        await ui.pilot.press("home", "down", "enter")
        await ui.until(lambda: ui.app.chat.schemes.chosen == "fp16")
        # With a model, an empty conversation shows what its cache would take.
        ui.engine.emit(events.ModelReady(replace(INFO, shapes=report(1)), 0.1))
        await ui.pilot.press("ctrl+k")
        await ui.shows("≈ predicted for 4,096 tokens")
        await ui.shows("≈ 33.6 MB  1.0x")
        await ui.pilot.press("down")
        await ui.shows("Applies from the next message.")


async def test_a_message_sent_while_the_model_loads_is_answered_later(open_app: OpenApp) -> None:
    async with open_app(loads=False) as ui:
        await ui.shows("You can already type.")
        await ui.send("Hello")
        await ui.shows("Waiting for the model; your message is saved.")
        ui.engine.ready()
        await ui.until(lambda: ui.engine.sent())
        ui.engine.reply("Hi.")
        await ui.shows("Hi.")


async def test_a_failed_model_load_is_shown_and_another_can_be_loaded(open_app: OpenApp) -> None:
    async with open_app(loads=False) as ui:
        ui.engine.emit(events.ModelFailed("org/none", "There is no model [org/none] on Hugging Face."))
        await ui.shows("✗ There is no model [org/none] on Hugging Face.")
        await ui.shows("No model.")
        await ui.pilot.press("ctrl+o")
        await ui.until(lambda: isinstance(ui.app.screen, ModelPicker))
        ui.app.screen.query_one(Input).value = "some/model"
        await ui.pilot.press("enter")
        await ui.until(lambda: ui.engine.commands[-1] == commands.LoadModel("some/model"))


async def test_a_download_shows_its_progress_and_esc_cancels_it(open_app: OpenApp) -> None:
    async with open_app(loads=False) as ui:
        ui.engine.emit(events.ModelProgress("org/big", "downloading", 1_200_000_000, 4_300_000_000))
        await ui.shows("Esc pauses  org/big")
        await ui.shows("1.20 GB of 4.30 GB")
        await ui.pilot.press("escape")
        assert ui.engine.cancels == 1


async def test_a_prefill_shows_its_progress(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.send("Read this")
        await ui.until(lambda: ui.engine.sent())
        ui.engine.emit(events.PrefillProgress(ui.engine.sent()[0].conversation_id, 1024, 3076))
        await ui.shows("1,024 of 3,076 tokens")


async def test_a_failed_reply_shows_the_error(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.send("Hello")
        await ui.until(lambda: ui.engine.sent())
        ui.engine.delta("Well")
        ui.engine.emit(events.Failed(ui.engine.sent()[0].conversation_id, "Not enough memory.", "Well"))
        await ui.shows("✗ Not enough memory.")
        await ui.shows("unfinished: F4 continues, ^R regenerates")


async def test_quitting_saves_the_cache_and_the_conversation_reopens(open_app: OpenApp, paths: Paths) -> None:
    async with open_app() as ui:
        await ui.turn("About foxes", "Red ones.")
        identity = ui.app.chat.shown.conversation
        assert identity is not None
        await ui.pilot.press("ctrl+q")
        await ui.until(lambda: ui.engine.ended)
    assert State.load(paths).conversation == identity.id
    restored = events.Opened(identity.id, 300, 0.1)
    async with open_app(restored=restored) as ui:
        await ui.shows("Red ones.")
        await ui.shows("Restored 300 tokens, nothing re-read.")


async def test_a_message_that_was_read_in_part_is_shown_to_be_unanswered(
    open_app: OpenApp, paths: Paths
) -> None:
    with Database(paths.database) as database:
        identity = database.create("Long", None, "turbo0v4").id
        database.add_message(identity, "user", "A long question")
    State(conversation=identity).save(paths)
    async with open_app((120, 24), restored=events.Opened(identity, 512, 0.1, tokens=3000)) as ui:
        await ui.shows("Not answered. ^R answers it. Restored 512 tokens, the next message re-reads 2,488.")


async def test_the_open_conversation_is_saved_at_once(open_app: OpenApp, paths: Paths) -> None:
    async with open_app() as ui:
        await ui.turn("About foxes", "Red ones.")
        assert ui.app.chat.shown.conversation is not None
        assert State.load(paths).conversation == ui.app.chat.shown.conversation.id
        await ui.pilot.press("ctrl+n")
        assert State.load(paths).conversation is None


async def test_quitting_during_a_reply_keeps_it_as_unfinished(open_app: OpenApp, paths: Paths) -> None:
    async with open_app() as ui:
        await ui.send("Hello")
        await ui.until(lambda: ui.engine.sent())
        ui.engine.delta("Half of a")
        ui.engine.delta(" sentence")
        await ui.shows("Half of a sentence")
        await ui.pilot.press("ctrl+q")
        await ui.until(lambda: ui.app._exit)
    with Database(paths.database) as database:
        last = database.messages(database.conversations()[0].id)[-1]
    assert (last.content, last.status) == ("Half of a sentence", "unfinished")
    async with open_app() as ui:
        await ui.shows("unfinished: F4 continues, ^R regenerates")


async def test_help_lists_the_bound_keys(open_app: OpenApp) -> None:
    settings = Settings(theme="tqchat-dark", keys={"scheme": "f12"})
    async with open_app((120, 80), settings=settings) as ui:
        await ui.pilot.press("f1")
        await ui.until(lambda: isinstance(ui.app.screen, Help))
        await ui.shows("Cache scheme")
        row = next(line for line in ui.text().splitlines() if "Cache scheme" in line)
        assert "F12" in row and "^K" not in row
        await ui.pilot.press("escape")
        await ui.until(lambda: not isinstance(ui.app.screen, Help))


async def test_the_palette_runs_actions(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.pilot.press("ctrl+p")
        await ui.shows("Search for commands")
        await ui.pilot.press(*"cache scheme")
        await ui.shows("How this conversation's cache is stored.")
        await ui.pilot.press("enter")
        await ui.until(lambda: isinstance(ui.app.screen, SchemePicker))


async def test_keys_of_the_screen_do_nothing_behind_a_dialog(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.turn("About foxes", "Red ones.")
        await ui.pilot.press("f8")
        await ui.until(lambda: isinstance(ui.app.screen, Confirm))
        await ui.pilot.press("ctrl+n", "ctrl+k", "ctrl+r")
        assert isinstance(ui.app.screen, Confirm) and len(ui.app.screen_stack) == 2
        assert ui.app.chat.shown.conversation is not None


async def test_side_panels_are_hidden_in_a_narrow_terminal_and_shown_by_keys(open_app: OpenApp) -> None:
    async with open_app((80, 24)) as ui:
        await ui.turn("About foxes", "Red ones.", tokens=900)
        await ui.shows("of 7.37 MB FP16")
        assert "KV cache" not in ui.text() and "Conversations" not in ui.text()
        await ui.pilot.press("f3")
        await ui.shows("KV cache")
        await ui.pilot.press("f2")
        await ui.shows("Conversations")
        assert "KV cache" not in ui.text(), "one at a time"
        await ui.pilot.press("escape")
        await ui.hides("Conversations")
        assert ui.app.focused is ui.app.query_one(Prompt)


async def test_text_typed_or_pasted_while_the_log_has_the_focus_goes_into_the_prompt(
    open_app: OpenApp,
) -> None:
    async with open_app((60, 20)) as ui:
        await ui.turn("What is a fox?", "A small animal.")
        await ui.pilot.press("tab")
        assert isinstance(ui.app.focused, ChatLog)
        await ui.pilot.press("t", "w", "o", "space", "x")
        prompt = ui.app.query_one(Prompt)
        assert prompt.text == "two x" and prompt.has_focus
        await ui.pilot.press("tab")
        ui.app.screen.set_focus(ui.app.query_one(ChatLog))
        ui.app.post_message(Paste(" and a paste"))
        await ui.until(lambda: prompt.text == "two x and a paste")
        # On a selected message keys act instead.
        await ui.pilot.press("f6", "q")
        assert prompt.text == "two x and a paste"


async def test_hidden_panels_of_a_wide_terminal_are_remembered(open_app: OpenApp, paths: Paths) -> None:
    async with open_app() as ui:
        await ui.shows("KV cache")
        await ui.pilot.press("f3")
        await ui.hides("KV cache")
        await ui.pilot.press("f2")
        await ui.hides("Conversations")
        await ui.pilot.press("ctrl+q")
        await ui.until(lambda: ui.app._exit)
    assert State.load(paths) == State(sidebar=False, gauge=False)


async def test_resizing_moves_the_gauge_between_panel_and_line(open_app: OpenApp) -> None:
    async with open_app((160, 40)) as ui:
        await ui.turn("About foxes", "Red ones.", tokens=900)
        await ui.shows("FP16 would take")
        await ui.pilot.resize_terminal(70, 24)
        await ui.hides("FP16 would take")
        await ui.shows("of 7.37 MB FP16")

"""The chat without a screen: what is on disk, what the engine is told, what the view is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ui.room import Room
from tests.ui.scripted import INFO, report
from tqchat.engine import commands, events
from tqchat.store.database import Database, Message, StoreFull


def test_the_message_is_on_disk_before_the_engine_hears_of_it(path: Path) -> None:
    room = Room(path)
    on_disk_at_send: list[list[str]] = []
    submit = room.engine.submit

    def spying(command: commands.Command) -> None:
        if isinstance(command, commands.Send):
            with Database(path) as other:
                messages = other.messages(command.conversation_id)
                on_disk_at_send.append([message.content for message in messages])
        submit(command)

    room.engine.submit = spying  # type: ignore[method-assign]
    room.chat.send("Hello")
    assert on_disk_at_send == [["Hello"]]


def test_the_engine_opens_a_conversation_before_it_answers_it(room: Room) -> None:
    room.chat.send("Hello")
    kinds = [type(command) for command in room.engine.commands]
    assert kinds == [commands.LoadModel, commands.OpenConversation, commands.Send]
    room.engine.reply("Hi.")
    room.chat.send("And?")
    assert [type(command) for command in room.engine.commands][3:] == [commands.Send]
    assert [turn.content for turn in room.engine.sent()[-1].messages] == ["Hello", "Hi.", "And?"]


def test_a_reply_is_written_while_it_grows(room: Room) -> None:
    room.chat.send("Hello")
    room.engine.delta("One ")
    assert room.said()[-1] == ("assistant", "One ", "unfinished")
    room.engine.delta("two ")
    assert room.said()[-1] == ("assistant", "One ", "unfinished")
    room.clock.now += 1
    room.engine.delta("three")
    assert room.said()[-1] == ("assistant", "One two three", "unfinished")


def test_a_finished_reply_has_its_figures(room: Room) -> None:
    room.chat.send("Hello")
    room.engine.reply("Hi there.", tokens=300)
    reply = room.chat.messages[-1]
    assert (reply.content, reply.status, reply.scheme, reply.model) == (
        "Hi there.",
        "complete",
        "turbo0v4",
        INFO.name,
    )
    assert (reply.tokens, reply.tokens_per_second, reply.first_token_seconds) == (260, 71.0, 0.2)
    assert room.view.grown == "Hi there."


def test_the_title_is_the_first_line_that_says_something(room: Room) -> None:
    room.chat.send("\n  \n  What is   a fox?\nAnd a vixen?")
    assert room.chat.conversation is not None
    assert room.chat.conversation.title == "What is a fox?"
    room.engine.reply("An animal.")
    room.chat.rename("Foxes")
    room.chat.send("More")
    assert room.chat.conversation.title == "Foxes"


def test_a_message_sent_while_the_model_loads_waits_on_disk(path: Path) -> None:
    room = Room(path, loads=False)
    assert room.chat.send("Hello")
    assert room.said() == [("user", "Hello", "complete")]
    assert room.engine.sent() == []
    assert not room.chat.send("Another"), "one message at a time"
    room.engine.ready()
    assert [turn.content for turn in room.engine.sent()[0].messages] == ["Hello"]


def test_a_waiting_message_can_be_taken_back(path: Path) -> None:
    room = Room(path, loads=False)
    room.chat.send("Hello")
    assert room.chat.stop()
    assert room.view.returned == ["Hello"]
    room.engine.ready()
    assert room.engine.sent() == []
    assert room.database.conversations() == [], "a conversation that never began is not kept"


def test_a_model_that_fails_leaves_the_message_waiting_for_another(path: Path) -> None:
    room = Room(path, loads=False)
    room.chat.send("Hello")
    room.engine.say(events.ModelFailed("org/none", "There is no model org/none."))
    assert ("error", "There is no model org/none.") in room.view.said
    assert room.engine.sent() == []
    room.chat.load_model(None)
    room.engine.ready()
    assert len(room.engine.sent()) == 1


def test_stopping_before_any_answer_gives_the_words_back(room: Room) -> None:
    room.chat.send("First")
    room.engine.reply("Yes.")
    room.chat.send("Second")
    assert room.chat.stop() and room.engine.stops == 1
    room.engine.done("", "stopped")
    assert room.view.returned == ["Second"]
    assert [content for _, content, _ in room.said()] == ["First", "Yes."]


def test_stopping_in_the_middle_keeps_what_was_said(room: Room) -> None:
    room.chat.send("First")
    room.engine.delta("One two")
    room.chat.stop()
    room.engine.done("One two", "stopped")
    assert room.said()[-1] == ("assistant", "One two", "stopped")
    assert room.view.returned == []


def test_regenerating_keeps_the_earlier_reply_beside_the_new_one(room: Room) -> None:
    room.chat.send("Hello")
    room.engine.reply("Hi.")
    first = room.chat.messages[-1]
    assert room.chat.regenerate()
    room.engine.reply("Good day.")
    assert [content for _, content, _ in room.said()] == ["Hello", "Good day."]
    assert len(room.database.siblings(first.id)) == 2


def test_a_regeneration_stopped_before_any_answer_brings_the_earlier_reply_back(room: Room) -> None:
    room.chat.send("Hello")
    room.engine.reply("Hi.")
    room.chat.regenerate()
    room.chat.stop()
    room.engine.done("", "stopped")
    assert [content for _, content, _ in room.said()] == ["Hello", "Hi."]
    assert room.view.returned == []


def test_a_failed_reply_keeps_what_was_said_and_can_be_asked_again(room: Room) -> None:
    room.chat.send("Hello")
    room.engine.delta("Well")
    assert room.chat.conversation is not None
    room.engine.say(events.Failed(room.chat.conversation.id, "Out of memory.", "Well,"))
    assert room.said()[-1] == ("assistant", "Well,", "unfinished")
    assert ("error", "Out of memory.") in room.view.said
    assert room.chat.regenerate()
    assert len(room.engine.sent()) == 2


def test_a_reply_goes_on_while_another_conversation_is_shown(room: Room) -> None:
    room.chat.send("Long one")
    first = room.chat.conversation
    assert first is not None
    room.engine.delta("It ")
    room.chat.new()
    room.chat.send("Short one")
    assert len(room.engine.sent()) == 1, "the second waits for the first"
    assert room.view.grown == "It "
    room.engine.delta("goes on.")
    assert room.view.grown == "It ", "what belongs elsewhere is not drawn here"
    room.engine.done("It goes on.")
    assert room.database.messages(first.id)[-1].content == "It goes on."
    assert len(room.engine.sent()) == 2


def test_deleting_the_conversation_that_is_being_answered_ends_the_reply(room: Room) -> None:
    room.chat.send("Hello")
    room.engine.delta("One")
    assert room.chat.conversation is not None
    deleted = room.chat.conversation.id
    room.chat.delete(deleted)
    assert room.engine.stops == 1 and commands.ForgetConversation(deleted) in room.engine.commands
    room.engine.delta("two")
    room.engine.done("One two", "stopped")
    assert room.database.conversations() == []
    room.chat.send("Again")
    assert len(room.engine.sent()) == 2


def test_an_unanswered_message_and_the_next_become_one_turn(path: Path) -> None:
    first = Room(path)
    first.chat.send("Are you there?")
    assert first.chat.conversation is not None
    opened = first.chat.conversation.id
    first.database.close()  # killed before a word was said
    room = Room(path)
    room.chat.open(opened)
    room.chat.send("Hello?")
    turns = [(turn.role, turn.content) for turn in room.engine.sent()[-1].messages]
    assert turns == [("user", "Are you there?\n\nHello?")]


def test_the_system_prompt_leads_every_conversation(path: Path) -> None:
    room = Room(path, system_prompt="Be brief.")
    room.chat.send("Hello")
    turns = [(turn.role, turn.content) for turn in room.engine.sent()[-1].messages]
    assert turns == [("system", "Be brief."), ("user", "Hello")]


def test_a_scheme_chosen_before_there_is_a_cache_is_the_conversations_own(room: Room) -> None:
    room.chat.set_scheme("affine4")
    room.chat.send("Hello")
    assert room.engine.sent()[-1].scheme == "affine4"
    room.engine.reply("Hi.")
    room.chat.new()
    assert room.chat.scheme == "turbo0v4"


def test_a_live_cache_is_converted_and_the_scheme_remembered(room: Room) -> None:
    room.chat.send("Hello")
    room.engine.reply("Hi.", tokens=900)
    room.chat.set_scheme("turbo0v2")
    assert isinstance(room.engine.commands[-1], commands.SetScheme)
    assert room.chat.scheme == "turbo0v2"
    assert room.chat.report == report(900, "turbo0v2")
    assert room.view.said[-1][1].startswith("Converted 900 tokens from turbo0v4 to turbo0v2")
    room.chat.set_scheme("fp16")
    assert "keeps its earlier rounding" in room.view.said[-1][1]
    room.chat.set_scheme("turbo0v4", reread=True)
    last = room.engine.commands[-1]
    assert isinstance(last, commands.SetScheme) and last.reread and len(last.messages) == 2


def test_a_scheme_change_during_a_reply_waits_for_its_end(room: Room) -> None:
    room.chat.send("Hello")
    room.engine.delta("H")
    room.chat.set_scheme("turbo0v2")
    assert not any(isinstance(command, commands.SetScheme) for command in room.engine.commands)
    room.engine.done("Hi.")
    assert isinstance(room.engine.commands[-1], commands.SetScheme)


def test_what_came_back_is_said_or_why_it_did_not(path: Path) -> None:
    room = Room(path)
    room.chat.send("Hello")
    room.engine.reply("Hi.")
    assert room.chat.conversation is not None
    one = room.chat.conversation.id
    room.chat.new()
    room.chat.send("Another")
    room.engine.reply("Hi.")
    room.engine.restored = events.Opened(one, 3076, 0.1)
    room.chat.open(one)
    assert room.chat.caches.returned[one] == "Restored 3,076 tokens, nothing re-read."
    room.engine.say(events.Opened(one, 0, 0.1, "This cache was made with another model; re-reading."))
    assert room.chat.caches.returned[one].startswith("This cache was made with another model")


def test_a_full_disk_keeps_the_words_with_the_person(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **more: object) -> Message:
        raise StoreFull(Path("/nowhere/tqchat.db"))

    monkeypatch.setattr(room.database, "add_message", full)
    assert not room.chat.send("Hello")
    assert room.view.said[-1][0] == "error" and "is full" in room.view.said[-1][1]
    assert room.engine.sent() == []


def test_leaving_in_the_middle_keeps_the_reply_as_unfinished(room: Room) -> None:
    room.chat.send("Hello")
    room.engine.delta("One ")
    room.engine.delta("two")
    room.chat.close()
    assert room.said()[-1] == ("assistant", "One two", "unfinished")


def test_another_model_makes_the_figures_of_the_one_before_go(room: Room) -> None:
    room.chat.send("Hello")
    room.engine.reply("Hi.")
    assert room.chat.report is not None
    room.chat.load_model("other/model")
    assert room.chat.report is None


def test_the_model_before_answers_while_another_is_downloaded(room: Room) -> None:
    room.engine.loads = False
    room.chat.load_model("org/big")
    room.chat.send("Hello")
    assert room.engine.sent() == []
    room.engine.say(events.ModelProgress("org/big", "downloading", 1, 10))
    assert len(room.engine.sent()) == 1


def test_a_scheme_chosen_for_a_cache_on_disk_converts_it_once_there_is_a_model(path: Path) -> None:
    room = Room(path)
    room.chat.send("Hello")
    room.engine.reply("Hi.")
    assert room.chat.conversation is not None
    one = room.chat.conversation.id
    room.chat.close()
    room.database.close()
    room = Room(path, loads=False)
    room.chat.caches.disk_bytes[one] = 1000
    room.chat.open(one)
    room.chat.set_scheme("turbo0v2")
    assert room.view.said[-1][1] == "Changes to turbo0v2 once the model is loaded."
    room.engine.ready()
    changes = [command for command in room.engine.commands if isinstance(command, commands.SetScheme)]
    assert [(change.conversation_id, change.scheme) for change in changes] == [(one, "turbo0v2")]
    assert room.chat.scheme == "turbo0v2"


def test_auto_is_kept_as_the_choice_and_the_engine_hears_a_scheme(room: Room) -> None:
    room.chat.set_scheme("auto")
    room.chat.send("Hello")
    assert room.engine.sent()[-1].scheme == "turbo0v4"
    room.engine.reply("Hi.")
    assert room.chat.conversation is not None and room.chat.conversation.scheme == "auto"
    assert room.chat.scheme_label == "auto: turbo0v4"
    room.chat.set_scheme("turbo4")
    assert room.chat.conversation.scheme == "turbo4"
    room.chat.set_scheme("auto")
    change = room.engine.commands[-1]
    assert isinstance(change, commands.SetScheme) and change.scheme == "turbo0v4"
    assert room.chat.conversation.scheme == "auto", "what was converted is the choice, not its result"

"""Sending, regenerating, continuing and stopping."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ui.controller.rig import Rig, contents, turn
from tqchat.engine import commands, events
from tqchat.store.database import Database, Message, StoreFull


def test_a_message_is_committed_before_the_engine_gets_it(path: Path) -> None:
    rig = Rig(path)
    on_disk_at_send: list[list[str]] = []
    submit = rig.engine.submit

    def spying(command: commands.Command) -> None:
        if isinstance(command, commands.Send):
            with Database(path) as other:
                messages = other.messages(command.conversation_id)
                on_disk_at_send.append([message.content for message in messages])
        submit(command)

    rig.engine.submit = spying  # type: ignore[method-assign]
    rig.chat.turns.send("Hello")
    assert on_disk_at_send == [["Hello"]]


def test_the_engine_opens_a_conversation_before_it_answers_it(rig: Rig) -> None:
    rig.chat.turns.send("Hello")
    kinds = [type(command) for command in rig.engine.commands]
    assert kinds == [commands.LoadModel, commands.OpenConversation, commands.Send]
    rig.engine.reply("Hi.")
    rig.chat.turns.send("And?")
    assert [type(command) for command in rig.engine.commands][3:] == [commands.Send]
    assert [turn.content for turn in rig.engine.sent()[-1].messages] == ["Hello", "Hi.", "And?"]


def test_a_message_sent_while_the_model_loads_is_queued(path: Path) -> None:
    rig = Rig(path, loads=False)
    assert rig.chat.turns.send("Hello")
    assert rig.transcript() == [("user", "Hello", "complete")]
    assert rig.engine.sent() == []
    assert not rig.chat.turns.send("Another"), "one message at a time"
    rig.engine.ready()
    assert [turn.content for turn in rig.engine.sent()[0].messages] == ["Hello"]


def test_stop_withdraws_a_queued_message(path: Path) -> None:
    rig = Rig(path, loads=False)
    rig.chat.turns.send("Hello")
    assert rig.chat.turns.stop()
    assert rig.view.returned == ["Hello"]
    rig.engine.ready()
    assert rig.engine.sent() == []
    assert rig.database.conversations() == [], "a conversation that never began is not kept"


def test_a_queued_message_waits_for_another_model_if_one_fails(path: Path) -> None:
    rig = Rig(path, loads=False)
    rig.chat.turns.send("Hello")
    rig.engine.emit(events.ModelFailed("org/none", "There is no model org/none."))
    assert ("error", "There is no model org/none.") in rig.view.said
    assert rig.engine.sent() == []
    rig.chat.models.load(None)
    rig.engine.ready()
    assert len(rig.engine.sent()) == 1


def test_stopping_before_any_text_returns_the_message_to_the_prompt(rig: Rig) -> None:
    rig.chat.turns.send("First")
    rig.engine.reply("Yes.")
    rig.chat.turns.send("Second")
    assert rig.chat.turns.stop() and rig.engine.stops == 1
    rig.engine.done("", "stopped")
    assert rig.view.returned == ["Second"]
    assert [content for _, content, _ in rig.transcript()] == ["First", "Yes."]


def test_a_first_message_that_returns_to_the_prompt_leaves_what_was_read_of_it(rig: Rig) -> None:
    rig.chat.turns.send("First")
    conversation = rig.engine.sent()[0].conversation_id
    rig.chat.turns.stop()
    rig.engine.done("", "stopped")
    assert rig.view.returned == ["First"] and rig.chat.shown.conversation is None
    assert commands.ForgetConversation(conversation, withdrawn=True) in rig.engine.commands


def test_a_first_message_that_was_read_in_part_stays_when_the_app_quits(rig: Rig) -> None:
    """Its saved cache belongs to its conversation, which the next start opens again."""
    for tokens, kept in ((0, []), (512, ["First"])):
        rig.chat.turns.send("First")
        rig.chat.replies.closing = True
        rig.engine.done("", "stopped", tokens=tokens)
        assert rig.view.returned == ["First"]
        assert contents(rig) == kept
        rig.chat.replies.closing = False
    (conversation,) = rig.database.conversations()
    assert rig.engine.sent()[-1].conversation_id == conversation.id


def test_stopping_keeps_the_text_so_far(rig: Rig) -> None:
    rig.chat.turns.send("First")
    rig.engine.delta("One two")
    rig.chat.turns.stop()
    rig.engine.done("One two", "stopped")
    assert rig.transcript()[-1] == ("assistant", "One two", "stopped")
    assert rig.view.returned == []


def test_regenerating_keeps_the_earlier_reply_as_a_version(rig: Rig) -> None:
    rig.chat.turns.send("Hello")
    rig.engine.reply("Hi.")
    first = rig.chat.shown.messages[-1]
    assert rig.chat.turns.regenerate()
    rig.engine.reply("Good day.")
    assert [content for _, content, _ in rig.transcript()] == ["Hello", "Good day."]
    assert len(rig.database.siblings(first.id)) == 2


def test_a_regeneration_stopped_before_any_text_shows_the_earlier_reply(rig: Rig) -> None:
    rig.chat.turns.send("Hello")
    rig.engine.reply("Hi.")
    rig.chat.turns.regenerate()
    rig.chat.turns.stop()
    rig.engine.done("", "stopped")
    assert [content for _, content, _ in rig.transcript()] == ["Hello", "Hi."]
    assert rig.view.returned == []


def test_an_earlier_reply_can_be_regenerated(rig: Rig) -> None:
    turn(rig, "One", "1")
    turn(rig, "Two", "2")
    assert rig.chat.turns.regenerate(rig.chat.shown.messages[1])
    rig.engine.reply("uno")
    assert contents(rig) == ["One", "uno"]


def test_a_cut_off_reply_can_be_continued(rig: Rig) -> None:
    rig.chat.turns.send("Count")
    rig.engine.done("one, two", "stopped", tokens=100)
    assert rig.chat.turns.can_continue(rig.chat.shown.messages[-1])
    assert rig.chat.turns.continue_reply()
    sent = rig.engine.sent()[-1]
    assert sent.continues and sent.messages[-1].content == "one, two"
    rig.engine.delta(", three")
    rig.engine.done(", three", tokens=150)
    last = rig.chat.shown.messages[-1]
    assert (last.content, last.status, last.tokens) == ("one, two, three", "complete", 60 + 110)
    assert len(rig.chat.shown.messages) == 2
    assert not rig.chat.turns.continue_reply(), "it is complete now"


def test_a_continuation_stopped_before_any_text_keeps_the_reply(rig: Rig) -> None:
    rig.chat.turns.send("Count")
    rig.engine.done("one, two", "length")
    assert rig.chat.turns.continue_reply()
    rig.engine.done("", "stopped")
    assert rig.transcript()[-1] == ("assistant", "one, two", "stopped")


def test_a_message_that_cannot_be_written_is_not_sent(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **more: object) -> Message:
        raise StoreFull(Path("/nowhere/tqchat.db"))

    monkeypatch.setattr(rig.database, "add_message", full)
    assert not rig.chat.turns.send("Hello")
    assert rig.view.said[-1][0] == "error" and "is full" in rig.view.said[-1][1]
    assert rig.engine.sent() == []


def test_the_current_model_answers_while_another_is_downloaded(rig: Rig) -> None:
    rig.engine.loads = False
    rig.chat.models.load("org/big")
    rig.chat.turns.send("Hello")
    assert rig.engine.sent() == []
    rig.engine.emit(events.ModelProgress("org/big", "downloading", 1, 10))
    assert len(rig.engine.sent()) == 1

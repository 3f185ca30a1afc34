"""Deleting and restoring."""

from __future__ import annotations

import pytest

from tests.ui.controller.rig import Rig, contents, turn
from tests.ui.scripted import report
from tqchat.engine import commands, events


def test_deleting_a_conversation_stops_its_reply(rig: Rig) -> None:
    rig.chat.turns.send("Hello")
    rig.engine.delta("One")
    assert rig.chat.shown.conversation is not None
    deleted = rig.chat.shown.conversation.id
    rig.chat.deletion.delete(deleted)
    assert rig.engine.stops == 1 and commands.ForgetConversation(deleted) in rig.engine.commands
    rig.engine.delta("two")
    rig.engine.done("One two", "stopped")
    assert rig.database.conversations() == []
    rig.chat.turns.send("Again")
    assert len(rig.engine.sent()) == 2


def test_a_deletion_can_be_undone(rig: Rig) -> None:
    turn(rig, "About foxes", "Red.")
    assert rig.chat.shown.conversation is not None
    rig.chat.deletion.delete(rig.chat.shown.conversation.id)
    assert rig.database.conversations() == [] and rig.chat.shown.conversation is None
    assert rig.chat.deletion.undo()
    assert contents(rig) == ["About foxes", "Red."]
    assert not rig.chat.deletion.undo()


def test_undo_skips_conversations_whose_only_message_was_withdrawn(rig: Rig) -> None:
    turn(rig, "About foxes", "Red.")
    assert rig.chat.shown.id is not None
    rig.chat.deletion.delete(rig.chat.shown.id)
    rig.chat.turns.send("Hello")
    rig.chat.turns.stop()
    rig.engine.done("", "stopped")
    assert rig.database.conversations() == []
    assert rig.chat.deletion.undo()
    assert contents(rig) == ["About foxes", "Red."]
    assert not rig.chat.deletion.undo()


def test_a_deleted_message_is_restored(rig: Rig) -> None:
    turn(rig, "One", "1")
    turn(rig, "Two", "2")
    assert rig.chat.deletion.delete_message(rig.chat.shown.messages[1])
    assert contents(rig) == ["One", "Two", "2"]
    forget = rig.engine.commands[-1]
    assert isinstance(forget, commands.ForgetMessages) and forget.conversation_id == rig.chat.shown.id
    assert "1" not in "".join(message.content for message in forget.messages)
    rig.chat.shown.new()
    assert rig.chat.deletion.undo()
    assert contents(rig) == ["One", "1", "Two", "2"]


def test_a_message_is_not_deleted_during_a_reply(rig: Rig) -> None:
    turn(rig, "One", "1")
    rig.chat.turns.send("Two")
    assert not rig.chat.deletion.delete_message(rig.chat.shown.messages[0])
    assert contents(rig) == ["One", "1", "Two"]


@pytest.mark.parametrize("activity", ["opening", "converting"])
def test_a_conversation_deleted_while_the_engine_works_on_it_causes_no_error(rig: Rig, activity: str) -> None:
    turn(rig, "About foxes", "Red.")
    shown = rig.chat.shown.id
    assert shown is not None
    answer: events.Event
    if activity == "opening":
        rig.chat.shown.new()
        turn(rig, "Another", "Yes.")
        rig.engine.opens = False
        rig.chat.shown.open(shown)
        answer = events.Opened(shown, 900, 0.1, tokens=900, scheme="turbo2")
    else:
        rig.engine.converts = False
        rig.chat.schemes.set("turbo2")
        answer = events.SchemeChanged(
            shown, "turbo2", "turbo0v4", 900, 0.1, False, False, 1, 1, report(900, "turbo2")
        )
    assert rig.chat.work.activity == activity
    rig.chat.deletion.delete(shown)
    said = len(rig.view.said)
    rig.engine.emit(answer)
    assert rig.view.said[said:] == [] and rig.chat.work.conversation_id is None
    rig.engine.opens = True
    assert rig.chat.deletion.undo() and rig.chat.shown.id == shown
    assert rig.chat.schemes.chosen == ("turbo0v4" if activity == "opening" else "turbo2")

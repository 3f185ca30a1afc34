"""Deleting and restoring."""

from __future__ import annotations

from tests.ui.controller.rig import Rig, contents, turn
from tqchat.engine import commands


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

"""Replies under way: failures, other conversations, transcripts for the engine."""

from __future__ import annotations

from pathlib import Path

from tests.ui.controller.rig import Rig
from tqchat.engine import events


def test_a_failed_reply_keeps_its_text_and_can_be_regenerated(rig: Rig) -> None:
    rig.chat.turns.send("Hello")
    rig.engine.delta("Well")
    assert rig.chat.shown.conversation is not None
    rig.engine.emit(events.Failed(rig.chat.shown.conversation.id, "Out of memory.", "Well,"))
    assert rig.transcript()[-1] == ("assistant", "Well,", "unfinished")
    assert ("error", "Out of memory.") in rig.view.said
    assert rig.chat.turns.regenerate()
    assert len(rig.engine.sent()) == 2


def test_a_reply_continues_while_another_conversation_is_shown(rig: Rig) -> None:
    rig.chat.turns.send("Long one")
    first = rig.chat.shown.conversation
    assert first is not None
    rig.engine.delta("It ")
    rig.chat.shown.new()
    rig.chat.turns.send("Short one")
    assert len(rig.engine.sent()) == 1, "the second waits for the first"
    assert rig.view.grown == "It "
    rig.engine.delta("goes on.")
    assert rig.view.grown == "It ", "what belongs elsewhere is not drawn here"
    rig.engine.done("It goes on.")
    assert rig.database.messages(first.id)[-1].content == "It goes on."
    assert len(rig.engine.sent()) == 2


def test_an_unanswered_message_and_the_next_become_one_turn(path: Path) -> None:
    first = Rig(path)
    first.chat.turns.send("Are you there?")
    assert first.chat.shown.conversation is not None
    opened = first.chat.shown.conversation.id
    first.database.close()  # killed before a word was said
    rig = Rig(path)
    rig.chat.shown.open(opened)
    rig.chat.turns.send("Hello?")
    turns = [(turn.role, turn.content) for turn in rig.engine.sent()[-1].messages]
    assert turns == [("user", "Are you there?\n\nHello?")]

"""The composed controller: a whole turn, a restart, and errors of the database."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.ui.controller.rig import Rig, turn
from tests.ui.scripted import INFO, report
from tqchat.engine import commands, events
from tqchat.store.database import StoreFull


def test_a_turn_survives_a_restart(path: Path) -> None:
    rig = Rig(path)
    turn(rig, "What is a fox?", "An animal.")
    conversation = rig.chat.shown.conversation
    assert conversation is not None
    assert rig.transcript() == [
        ("user", "What is a fox?", "complete"),
        ("assistant", "An animal.", "complete"),
    ]
    assert rig.chat.work.activity is None and rig.chat.work.reply is None
    assert rig.chat.caches.report == report(300)
    rig.chat.close()
    rig.database.close()

    rig = Rig(path)
    rig.engine.restored = events.Opened(conversation.id, 300, 0.1)
    rig.chat.shown.open(conversation.id)
    assert rig.chat.shown.conversation == conversation
    assert [message.content for message in rig.chat.shown.messages] == ["What is a fox?", "An animal."]
    opened = rig.engine.commands[-1]
    assert isinstance(opened, commands.OpenConversation)
    assert [message.content for message in opened.messages] == ["What is a fox?", "An animal."]
    assert rig.chat.caches.restore_notes[conversation.id] == "Restored 300 tokens, nothing re-read."
    rig.chat.turns.send("And a vixen?")
    rig.engine.done("A female fox.", tokens=500)
    assert [message.content for message in rig.engine.sent()[-1].messages] == [
        "What is a fox?",
        "An animal.",
        "And a vixen?",
    ]
    tokens = [sample.tokens for sample in rig.chat.caches.history.samples]
    assert tokens == [0, 300, 500], "the first turn from the stored figures"
    assert conversation.id not in rig.chat.caches.restore_notes
    rig.database.close()


def test_a_database_error_in_an_event_is_shown_and_the_next_job_starts(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.chat.turns.send("First")
    first = rig.chat.shown.conversation
    rig.chat.shown.new()
    rig.chat.turns.send("Second")
    assert first is not None and len(rig.engine.sent()) == 1

    def full(*arguments: object) -> None:
        raise StoreFull(Path("/nowhere/tqchat.db"))

    monkeypatch.setattr(rig.chat.caches, "record", full)
    rig.engine.done("Yes.")
    assert rig.view.said[-1][0] == "error" and "is full" in rig.view.said[-1][1]
    assert [sent.messages[0].content for sent in rig.engine.sent()] == ["First", "Second"]
    assert rig.chat.work.reply is not None and rig.chat.work.reply.conversation_id != first.id


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Changes the machine's time zone."""

    def move_to(place: str) -> None:
        monkeypatch.setenv("TZ", place)
        time.tzset()

    yield move_to
    monkeypatch.undo()
    time.tzset()


def test_every_command_states_when_the_conversation_began_in_local_time(
    rig: Rig, zone: Callable[[str], None]
) -> None:
    zone("XXX-9")
    turn(rig, "What is a fox?", "An animal.")
    first = rig.chat.shown.conversation
    assert first is not None
    zone("XXX+9")
    rig.chat.schemes.set("affine8")
    rig.chat.shown.new()
    rig.chat.shown.open(first.id)
    told = [
        command
        for command in rig.engine.commands
        if isinstance(command, commands.Send | commands.OpenConversation | commands.SetScheme)
    ]
    assert {type(command) for command in told} >= {
        commands.Send,
        commands.OpenConversation,
        commands.SetScheme,
    }
    assert {command.began for command in told} == {first.created_at + 9 * 3600}


def test_kernels_are_compiled_while_the_user_types(path: Path) -> None:
    rig = Rig(path)
    assert not any(isinstance(command, commands.WarmUp) for command in rig.engine.commands)
    rig.engine.ready(replace(INFO, device="cuda: a card"))
    assert rig.engine.commands[-1] == commands.WarmUp("turbo0v4")

"""Turns while the database is written in the background."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ui.controller.rig import Rig
from tqchat.store.database import Database
from tqchat.store.write_queue import WriteQueue


@pytest.fixture
def queue(path: Path) -> WriteQueue:
    return WriteQueue(path)


@pytest.fixture
def rig(path: Path, queue: WriteQueue) -> Iterator[Rig]:
    """The queue does not write until a test starts it."""
    rig = Rig(path, queue=queue)
    yield rig
    rig.database.finish(30.0)
    rig.database.close()


def test_a_reply_begins_when_its_message_is_stored(rig: Rig, queue: WriteQueue, path: Path) -> None:
    assert rig.chat.turns.send("What is a fox?")
    assert rig.transcript() == [("user", "What is a fox?", "complete")]
    assert rig.chat.turns.shown_waiting and rig.engine.sent() == []
    queue.start()
    assert queue.flush(30.0)
    with Database(path) as file:
        assert len(file.conversations()) == 1
    rig.chat.written()
    assert len(rig.engine.sent()) == 1
    rig.engine.reply("An animal.")
    expected = [("user", "What is a fox?", "complete"), ("assistant", "An animal.", "complete")]
    assert rig.transcript() == expected
    assert rig.chat.close(30.0)
    with Database(path) as file:
        (conversation,) = file.conversations()
        messages = file.messages(conversation.id)
    assert [(message.role, message.content, message.status) for message in messages] == expected


def test_a_message_that_is_not_stored_can_be_taken_back(rig: Rig, queue: WriteQueue, path: Path) -> None:
    assert rig.chat.turns.send("What is a fox?")
    assert rig.chat.turns.stop()
    assert rig.view.returned == ["What is a fox?"] and rig.chat.shown.conversation is None
    queue.start()
    assert rig.chat.close(30.0)
    assert rig.engine.sent() == []
    with Database(path) as file:
        assert file.conversations() == []


def test_a_reply_is_written_as_it_grows_only_while_the_queue_keeps_up(rig: Rig, queue: WriteQueue) -> None:
    queue.start()
    assert rig.chat.turns.send("What is a fox?")
    assert queue.flush(30.0)
    rig.chat.written()
    rig.engine.delta("An ")
    assert queue.flush(30.0)
    rig.clock.now += 1
    rig.engine.delta("animal")
    assert rig.transcript()[-1] == ("assistant", "An animal", "unfinished")


def test_the_open_conversation_goes_on_in_a_new_file(rig: Rig, queue: WriteQueue, path: Path) -> None:
    queue.start()
    assert rig.chat.turns.send("What is a fox?")
    assert queue.flush(30.0)
    path.unlink()
    rig.chat.follow_file()
    assert "was removed" in rig.view.said[-1][1]
    rig.chat.follow_file()
    assert len(rig.view.said) == 1, "said once"
    assert queue.flush(30.0)
    assert rig.transcript() == [("user", "What is a fox?", "complete")]
    with Database(path) as file:
        assert [message.content for message in file.tree(file.conversations()[0].id)] == ["What is a fox?"]

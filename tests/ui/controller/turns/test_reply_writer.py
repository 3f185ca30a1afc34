"""Writing replies to the database while they grow and when they end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ui.controller.rig import Clock, RecordingView, Rig
from tests.ui.scripted import INFO, report
from tqchat.engine import events
from tqchat.store.database import Database, Message, StoreFull
from tqchat.ui.controller.records import Reply
from tqchat.ui.controller.turns.reply_writer import WRITE_INTERVAL_S, ReplyWriter


def test_a_reply_is_written_while_it_grows(rig: Rig) -> None:
    rig.chat.turns.send("Hello")
    rig.engine.delta("One ")
    assert rig.transcript()[-1] == ("assistant", "One ", "unfinished")
    rig.engine.delta("two ")
    assert rig.transcript()[-1] == ("assistant", "One ", "unfinished")
    rig.clock.now += 1
    rig.engine.delta("three")
    assert rig.transcript()[-1] == ("assistant", "One two three", "unfinished")


def test_a_finished_reply_has_its_figures(rig: Rig) -> None:
    rig.chat.turns.send("Hello")
    rig.engine.reply("Hi there.", tokens=300)
    reply = rig.chat.shown.messages[-1]
    assert (reply.content, reply.status, reply.scheme, reply.model) == (
        "Hi there.",
        "complete",
        "turbo0v4",
        INFO.name,
    )
    assert (reply.tokens, reply.tokens_per_second, reply.first_token_seconds) == (260, 71.0, 0.2)
    assert rig.view.grown == "Hi there."


def test_closing_writes_the_reply_as_unfinished(rig: Rig) -> None:
    rig.chat.turns.send("Hello")
    rig.engine.delta("One ")
    rig.engine.delta("two")
    rig.chat.close()
    assert rig.transcript()[-1] == ("assistant", "One two", "unfinished")


class Writing:
    """A reply writer with a database, and no other part of the controller."""

    def __init__(self, database: Database) -> None:
        self.database, self.view, self.clock = database, RecordingView(), Clock()
        self.conversation = database.create("Foxes", None, "fp16")
        database.add_message(self.conversation.id, "user", "Hello")
        self.writer = ReplyWriter(database, self.view, self.clock)

    def last(self) -> Message:
        return self.database.messages(self.conversation.id)[-1]


@pytest.fixture
def writing(path: Path) -> Iterator[Writing]:
    with Database(path) as database:
        yield Writing(database)


def test_writes_are_at_least_an_interval_apart(writing: Writing) -> None:
    reply = Reply(writing.conversation.id, None, None, "model")
    for text in ("One", "One two"):
        reply.text = text
        writing.writer.grew(reply)
    assert writing.last().content == "One"
    writing.clock.now += WRITE_INTERVAL_S
    writing.writer.grew(reply)
    assert (writing.last().content, writing.last().model) == ("One two", "model")


def test_a_failing_write_is_reported_once_for_each_reply(
    writing: Writing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **more: object) -> Message:
        raise StoreFull(Path("/nowhere/tqchat.db"))

    monkeypatch.setattr(writing.database, "add_message", full)
    for _ in range(2):
        reply = Reply(writing.conversation.id, None, None, "model", text="One")
        writing.writer.write_unfinished(reply)
        writing.writer.write_unfinished(reply)
    assert [severity for severity, _ in writing.view.said] == ["error", "error"]


def test_the_figures_of_a_continued_reply_include_its_first_part(writing: Writing) -> None:
    first = writing.database.add_message(writing.conversation.id, "assistant", "One,", "stopped")
    first = writing.database.update_message(first.id, tokens=10, drafted=8, accepted=6)
    reply = Reply(
        writing.conversation.id, None, None, "model", first.id, first.content + " two", continued=first
    )
    counts = events.TokenCounts(50, 0, 40, 10, 5, drafted=4, accepted=2)
    writing.writer.write_finished(
        reply,
        events.Done(
            reply.conversation_id, " two", "stop", counts, 9.0, 7.0, 0.1, "fp16", "model", report(55)
        ),
    )
    written = writing.last()
    assert (written.content, written.status) == ("One, two", "complete")
    assert (written.tokens, written.prompt_tokens) == (15, 40)
    assert (written.drafted, written.accepted) == (12, 8)

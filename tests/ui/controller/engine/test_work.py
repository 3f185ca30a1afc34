"""The queue in front of the engine."""

from __future__ import annotations

import pytest

from tests.ui.controller.rig import Clock, RecordingView
from tests.ui.scripted import INFO, ScriptedEngine
from tqchat.engine import events
from tqchat.ui.controller.engine.connection import EngineConnection
from tqchat.ui.controller.engine.models import ModelState
from tqchat.ui.controller.engine.work import EngineWork
from tqchat.ui.controller.records import QueuedTurn, Reply


class Parts:
    """A queue with a model, without any other part of the controller."""

    def __init__(self) -> None:
        self.connection, self.clock = EngineConnection(), Clock()
        self.engine = ScriptedEngine(lambda event: None)
        self.connection.connect(self.engine)
        self.models = ModelState(self.connection, RecordingView())
        self.models.ready(events.ModelReady(INFO, 0.1))
        self.work = EngineWork(self.connection, self.models, self.clock)
        self.started: list[str] = []
        self.work.serve(
            [self.job("urgent"), self.job("later")], when_free=lambda: self.started.append("free")
        )

    def job(self, name: str):  # type: ignore[no-untyped-def]
        def start() -> bool:
            self.started.append(name)
            return name == "urgent" and bool(self.work.waiting)

        return start


@pytest.fixture
def parts() -> Parts:
    return Parts()


def test_the_most_urgent_job_is_started_alone(parts: Parts) -> None:
    parts.work.add(QueuedTurn("a", None, None))
    assert parts.started == ["urgent"]
    parts.work.waiting.clear()
    parts.work.start_next()
    assert parts.started == ["urgent", "urgent", "later"]


def test_nothing_starts_while_the_engine_is_busy_or_a_model_is_loaded(parts: Parts) -> None:
    parts.work.begin("answering", "a")
    parts.work.start_next()
    parts.work.clear()
    parts.models.load("org/big")
    parts.work.start_next()
    assert parts.started == []
    parts.models.progressed(events.ModelProgress("org/big", "downloading"))
    parts.work.start_next()
    assert parts.started == ["urgent", "later"]


def test_the_end_of_a_job_starts_the_next_one(parts: Parts) -> None:
    parts.work.begin("converting", "a")
    parts.work.end()
    assert parts.work.activity is None and parts.work.conversation_id is None
    assert parts.started == ["urgent", "later", "free"]


def test_a_conversation_is_busy_with_a_reply_a_turn_or_a_summary(parts: Parts) -> None:
    work = parts.work
    assert not work.is_busy_with("a")
    work.reply = Reply("a", None, None, "model")
    assert work.is_busy_with("a") and not work.is_busy_with("b")
    work.reply = None
    work.waiting.append(QueuedTurn("a", None, None))
    assert work.is_busy_with("a")
    work.waiting.clear()
    work.begin("opening", "a")
    assert not work.is_busy_with("a")
    work.begin("summing up", "a")
    assert work.is_busy_with("a")


def test_a_deleted_conversations_turns_are_dropped_and_its_reply_stopped(parts: Parts) -> None:
    parts.work.waiting += [QueuedTurn("a", None, None), QueuedTurn("b", None, None)]
    parts.work.reply = Reply("a", None, None, "model")
    parts.work.drop("a")
    assert parts.engine.stops == 1 and parts.work.reply is None
    assert [turn.conversation_id for turn in parts.work.waiting] == ["b"]


def test_the_time_left_is_estimated_from_the_second_prefill_event_on(parts: Parts) -> None:
    parts.work.begin("answering", "a")
    parts.work.prefilled(events.PrefillProgress("a", 0, 4_000))
    assert parts.work.activity == "reading" and parts.work.seconds_left is None
    parts.clock.now += 2
    parts.work.prefilled(events.PrefillProgress("a", 1_000, 4_000))
    assert parts.work.seconds_left == 6


def test_the_last_prefill_speed_is_used_before_the_second_event(parts: Parts) -> None:
    parts.models.prefill_speed = 500.0
    parts.work.prefilled(events.PrefillProgress("a", 0, 4_000))
    assert parts.work.seconds_left == 8

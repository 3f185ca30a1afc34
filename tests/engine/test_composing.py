"""Titles and summaries, which leave the conversation's cache as it is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.talk import assistant, greedy, user
from tests.engine.test_worker import SECONDS, Listener
from tests.models import STARTER_FOLDER
from tqchat.engine import backend, models
from tqchat.engine.commands import ChatMessage, Compose, LoadModel, Send
from tqchat.engine.composing import PreemptibleStop, compose
from tqchat.engine.events import Composed, Done, Failed, PrefillProgress, TextDelta
from tqchat.engine.models import LoadedModel
from tqchat.engine.templates import PromptRejected
from tqchat.engine.worker import Engine
from tqchat.paths import Paths

PROMPT = (user("Sum this up: the fox and the owl met by the river."),)


@pytest.fixture(scope="module")
def starter() -> LoadedModel:
    return models.load(str(STARTER_FOLDER))


@pytest.fixture
def received() -> Listener:
    return Listener()


@pytest.fixture
def engine(received: Listener, paths: Paths) -> Iterator[Engine]:
    engine = Engine(received, paths=paths)
    engine.start()
    engine.submit(LoadModel(str(STARTER_FOLDER)))
    yield engine
    engine.shutdown(SECONDS)


def test_a_summary_leaves_the_cache_of_the_conversation_alone(received: Listener, engine: Engine) -> None:
    said: tuple[ChatMessage, ...] = (user("Hello!"),)
    engine.submit(Send("one", said, "turbo0v4", greedy(8)))
    first = received.next(Done)
    engine.submit(Compose("one", "summary", PROMPT, 12))
    composed = received.next(Composed)
    assert (composed.conversation_id, composed.purpose) == ("one", "summary") and composed.text
    assert any(event.total > 8 for event in received.all(PrefillProgress))
    deltas = len(received.all(TextDelta))
    engine.submit(Send("one", (*said, assistant(first.text), user("And?")), "turbo0v4", greedy(8)))
    second = received.next(Done)
    assert second.counts.reused >= first.counts.prompt + first.counts.generated - 1
    assert len(received.all(TextDelta)) > deltas, "a summary must not be streamed"


def test_a_title_stops_when_a_command_is_queued(starter: LoadedModel) -> None:
    urgent = threading.Event()
    events = []
    stop = PreemptibleStop(threading.Event(), urgent.is_set)
    urgent.set()
    for event in compose(starter, "fp16", Compose("one", "title", PROMPT, 500), stop):
        events.append(event)
    assert events == [Composed("one", "title", "")]


def test_a_summary_can_be_stopped(starter: LoadedModel) -> None:
    stop = threading.Event()
    stop.set()
    *_, last = compose(starter, "fp16", Compose("one", "summary", PROMPT, 500), stop)
    assert last == Composed("one", "summary", "")


def test_a_transcript_over_the_context_limit_loses_its_beginning(llama_folder: Path) -> None:
    tiny = models.load_folder(llama_folder, str(llama_folder), backend.prepare())
    limit = tiny.context_limit
    assert limit is not None
    long = "".join(f"Fox number {n} ran. " for n in range(limit)) + "The end was good."
    command = Compose("one", "summary", (user(long),), 4)
    found = list(compose(tiny, "turbo4", command, threading.Event()))
    assert isinstance(found[-1], Composed), found[-1]
    totals = [event.total for event in found if isinstance(event, PrefillProgress)]
    assert limit - 64 < max(totals) < limit


def test_a_failed_title_is_empty_and_a_failed_summary_is_reported(
    starter: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **more: object) -> list[int]:
        raise PromptRejected("no")

    monkeypatch.setattr("tqchat.engine.prompts.render", refuse)
    monkeypatch.setattr("tqchat.engine.composing._cut", lambda model, command: command.messages)
    assert list(compose(starter, "fp16", Compose("a", "title", PROMPT, 4), threading.Event())) == [
        Composed("a", "title", "")
    ]
    (failed,) = compose(starter, "fp16", Compose("a", "summary", PROMPT, 4), threading.Event())
    assert isinstance(failed, Failed)

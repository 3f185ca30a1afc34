"""Titles and summaries: written beside the conversation, whose cache nothing happens to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.talk import assistant, greedy, user
from tests.engine.test_worker import SECONDS, Listener
from tqchat.engine import backend, models
from tqchat.engine.commands import ChatMessage, Compose, LoadModel, Send
from tqchat.engine.composing import PreemptibleStop, compose
from tqchat.engine.events import Composed, Done, Failed, PrefillProgress, TextDelta
from tqchat.engine.hub.resolve import local_folder
from tqchat.engine.models import LoadedModel
from tqchat.engine.templates import PromptRejected
from tqchat.engine.worker import Engine
from tqchat.paths import Paths

ASKED = (user("Sum this up: the fox and the owl met by the river."),)


@pytest.fixture(scope="module")
def starter() -> LoadedModel:
    return models.load_folder(local_folder(None), None, backend.prepare())


@pytest.fixture
def heard() -> Listener:
    return Listener()


@pytest.fixture
def engine(heard: Listener, paths: Paths) -> Iterator[Engine]:
    engine = Engine(heard, paths=paths)
    engine.start()
    engine.submit(LoadModel())
    yield engine
    engine.shutdown(SECONDS)


def test_a_summary_leaves_the_conversation_as_it_was(heard: Listener, engine: Engine) -> None:
    said: tuple[ChatMessage, ...] = (user("Hello!"),)
    engine.submit(Send("one", said, "turbo0v4", greedy(8)))
    first = heard.next(Done)
    engine.submit(Compose("one", "summary", ASKED, 12))
    composed = heard.next(Composed)
    assert (composed.conversation_id, composed.purpose) == ("one", "summary") and composed.text
    assert any(event.total > 8 for event in heard.all(PrefillProgress))
    deltas = len(heard.all(TextDelta))
    engine.submit(Send("one", (*said, assistant(first.text), user("And?")), "turbo0v4", greedy(8)))
    second = heard.next(Done)
    assert second.counts.reused >= first.counts.prompt + first.counts.generated - 1
    assert len(heard.all(TextDelta)) > deltas, "what is composed is told as a whole, not in pieces"


def test_a_title_gives_way(starter: LoadedModel) -> None:
    urgent = threading.Event()
    events = []
    stop = PreemptibleStop(threading.Event(), urgent.is_set)
    urgent.set()
    for event in compose(starter, "fp16", Compose("one", "title", ASKED, 500), stop):
        events.append(event)
    assert events == [Composed("one", "title", "")]


def test_a_summary_can_be_stopped(starter: LoadedModel) -> None:
    stop = threading.Event()
    stop.set()
    *_, last = compose(starter, "fp16", Compose("one", "summary", ASKED, 500), stop)
    assert last == Composed("one", "summary", "")


def test_what_is_too_long_is_cut_in_front(llama_folder: Path) -> None:
    tiny = models.load_folder(llama_folder, str(llama_folder), backend.prepare())
    limit = tiny.context_limit
    assert limit is not None
    long = "".join(f"Fox number {n} ran. " for n in range(limit)) + "The end was good."
    command = Compose("one", "summary", (user(long),), 4)
    found = list(compose(tiny, "turbo4", command, threading.Event()))
    assert isinstance(found[-1], Composed), found[-1]
    totals = [event.total for event in found if isinstance(event, PrefillProgress)]
    assert limit - 64 < max(totals) < limit


def test_a_title_that_cannot_be_had_is_empty(starter: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **more: object) -> list[int]:
        raise PromptRejected("no")

    monkeypatch.setattr("tqchat.engine.session.render", refuse)
    monkeypatch.setattr("tqchat.engine.composing._cut", lambda model, command: command.messages)
    assert list(compose(starter, "fp16", Compose("a", "title", ASKED, 4), threading.Event())) == [
        Composed("a", "title", "")
    ]
    (failed,) = compose(starter, "fp16", Compose("a", "summary", ASKED, 4), threading.Event())
    assert isinstance(failed, Failed)

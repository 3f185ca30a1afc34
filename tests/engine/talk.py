"""Talking to a session in tests."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from tqchat.engine.commands import ChatMessage, Sampling
from tqchat.engine.events import Done, Event

TALE = "My name is Ada. Once upon a time there was a dog by the sea. " * 14
"""Long enough that every scheme packs some of it with the first token of the reply."""

GREEDY = Sampling(temperature=0.0, max_tokens=24)
E = TypeVar("E")


def user(text: str) -> ChatMessage:
    return ChatMessage("user", text)


def assistant(text: str) -> ChatMessage:
    return ChatMessage("assistant", text)


def greedy(max_tokens: int) -> Sampling:
    return Sampling(temperature=0.0, max_tokens=max_tokens)


def of(events: Iterable[Event], kind: type[E]) -> list[E]:
    return [event for event in events if isinstance(event, kind)]


def send(
    session: Any,
    messages: Sequence[ChatMessage],
    sampling: Sampling = GREEDY,
    stop: threading.Event | None = None,
) -> Done:
    """Generate a reply, which must succeed; its last event."""
    events = list(session.send(messages, sampling, stop))
    assert isinstance(events[-1], Done), events[-1]
    return events[-1]


def held_is_consistent(session: Any) -> bool:
    """Whether every layer of the session's cache holds as many tokens as the session."""
    offsets = {layer.offset for layer in session._cache.cache if hasattr(layer, "offset")}
    return offsets <= {len(session.tokens)}

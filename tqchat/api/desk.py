"""Hands requests to the engine and brings its events to the server's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import overload

from tqchat.api.errors import ApiError
from tqchat.engine.events import Done, Event, Failed, PrefillProgress, TextDelta
from tqchat.engine.requests.request import Request, Ticket

Ask = Callable[[Request, Callable[[Event], None]], Ticket]
"""``Engine.ask``."""

RETRY_AFTER_S = 5
STOPPING = "The server is stopping."


@dataclass(frozen=True)
class Visitor:
    """A client that is being answered, or waits for it.

    Attributes:
        peer: Its address.
        agent: What it calls itself.
        path: What it asks for.
        since: When its request came, in seconds since 1970-01-01.
        began: Whether its answer has begun.
    """

    peer: str
    agent: str
    path: str
    since: float = field(default_factory=time.time)
    began: bool = False


class Answer:
    """The events of one request, in order. Text that its reader has not taken yet is joined."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self.began = False

    def receive(self, event: Event) -> None:
        """Take an event; runs on the engine thread and does not wait."""
        with self._lock:
            if self._events and (joined := _joined(self._events[-1], event)) is not None:
                self._events[-1] = joined
                return
            self._events.append(event)
        with contextlib.suppress(RuntimeError):  # the server has stopped
            self._loop.call_soon_threadsafe(self._arrived.set)

    @overload
    def events(self) -> AsyncIterator[Event]: ...
    @overload
    def events(self, interval_s: float) -> AsyncIterator[Event | None]: ...
    async def events(self, interval_s: float | None = None) -> AsyncIterator[Event | None]:
        """All events, up to the last one; ``None`` when there was none for ``interval_s``."""
        while True:
            try:
                async with asyncio.timeout(interval_s):
                    await self._arrived.wait()
            except TimeoutError:
                yield None
                continue
            self._arrived.clear()
            with self._lock:
                events, self._events = self._events, []
            for event in events:
                self.began = True
                yield event
                if isinstance(event, Done | Failed):
                    return


def _joined(before: Event, event: Event) -> Event | None:
    """Two events as one, where nothing is lost by it."""
    match before, event:
        case PrefillProgress(), PrefillProgress():
            return event
        case TextDelta(), TextDelta() if before.part == event.part and not event.takes_answer:
            logprobs = before.logprobs + event.logprobs
            return replace(before, text=before.text + event.text, logprobs=logprobs)
    return None


class Desk:
    """Takes requests, as many as may wait, and keeps who asks."""

    def __init__(self, ask: Ask, max_requests: int) -> None:
        self._ask, self._max_requests = ask, max_requests
        self._open: dict[Answer, tuple[Ticket, Visitor]] = {}
        self._closed = False

    @property
    def visitors(self) -> tuple[Visitor, ...]:
        """Requests in progress, oldest first. From any thread."""
        return tuple(
            replace(visitor, began=answer.began) for answer, (_, visitor) in self._open.copy().items()
        )

    @contextlib.contextmanager
    def request(self, request: Request, visitor: Visitor) -> Iterator[tuple[str, Answer]]:
        """The id and the events of a request. On leaving it is stopped, if it is not answered yet.

        Raises:
            ApiError: if too many requests wait.
        """
        if self._closed:
            raise stopping()
        if len(self._open) >= self._max_requests:
            raise ApiError(
                f"{self._max_requests} requests are being answered or wait; try again later.",
                status=429,
                kind="rate_limit_error",
                code="too_many_requests",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            )
        answer = Answer()
        ticket = self._ask(request, answer.receive)
        self._open[answer] = ticket, visitor
        try:
            yield ticket.id, answer
        finally:
            del self._open[answer]
            ticket.stop()

    def close(self) -> None:
        """Stop all requests and take no more. From any thread."""
        self._closed = True
        for answer, (ticket, _) in self._open.copy().items():
            ticket.stop()
            answer.receive(Failed(ticket.id, STOPPING))


def stopping() -> ApiError:
    """The error of requests that come, or are not answered yet, when the server stops."""
    return ApiError(STOPPING, status=503, kind="server_error", code="stopping")


def checked(event: Event) -> Event:
    """An event that is no failure.

    Raises:
        ApiError: if it is one.
    """
    if isinstance(event, Failed):
        if event.message == STOPPING:
            raise stopping()
        if event.context_full:
            raise ApiError(event.message, param="messages", code="context_length_exceeded")
        if event.refused:
            raise ApiError(event.message, code="refused")
        raise ApiError(event.message, status=500, kind="server_error", code="generation_failed")
    if isinstance(event, Done) and event.stop_reason == "stopped":
        raise stopping()
    return event

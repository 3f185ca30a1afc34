"""Waiting for an engine's events in tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from tqchat.engine.events import Event

E = TypeVar("E")
SECONDS = 60


class Listener:
    """Records an engine's events and waits for some."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.threads: set[int] = set()
        self._new = threading.Condition()
        self._seen = 0
        self.on_event: Callable[[Event], None] = lambda event: None

    def __call__(self, event: Event) -> None:
        with self._new:
            self.events.append(event)
            self.threads.add(threading.get_ident())
            self._new.notify_all()
        self.on_event(event)

    def next(self, kind: type[E] | tuple[type[E], ...], timeout: float = SECONDS) -> E:
        """The next event of a kind, counted from the last one waited for."""
        deadline = time.monotonic() + timeout
        with self._new:
            while True:
                while self._seen < len(self.events):
                    event = self.events[self._seen]
                    self._seen += 1
                    if isinstance(event, kind):
                        return event
                if not self._new.wait(max(0, deadline - time.monotonic())):
                    raise AssertionError(f"no {kind} in {self.events}")

    def all(self, kind: type[E]) -> list[E]:
        with self._new:
            return [event for event in self.events if isinstance(event, kind)]

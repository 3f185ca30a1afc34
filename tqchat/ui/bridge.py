"""Messages that bring engine events to the screen's thread."""

from __future__ import annotations

from textual.message import Message

from tqchat.engine.events import Event


class EngineGone(Message):
    """The engine's thread has ended; it sends no more events."""


class EngineEvent(Message):
    """An event of the engine."""

    def __init__(self, event: Event) -> None:
        super().__init__()
        self.event = event

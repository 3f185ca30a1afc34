"""Messages that bring engine events to the screen's thread."""

from __future__ import annotations

from textual.message import Message

from tqchat.engine.events import Event


class EngineStopped(Message):
    """The engine's thread has ended; no more events follow."""


class EngineEvent(Message):
    """An event of the engine."""

    def __init__(self, event: Event) -> None:
        super().__init__()
        self.event = event

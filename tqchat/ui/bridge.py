"""Where the engine's thread meets the screen's: a protocol for the one, a message for the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from textual.message import Message

from tqchat.engine.commands import Command
from tqchat.engine.events import Event

OnEvent = Callable[[Event], None]


class EngineLike(Protocol):
    """What the app asks of an engine. ``tqchat.engine.worker.Engine`` is the one; tests script another."""

    def start(self) -> None:
        """Start the engine's thread. Returns at once."""

    def submit(self, command: Command) -> None:
        """Put a command into the queue. Returns at once; what comes of it arrives as events."""

    def stop(self) -> None:
        """End the reply being generated, within one token."""

    def cancel_download(self) -> None:
        """End the download of a model. What is on disk stays and is resumed next time."""

    def shutdown(self, timeout: float) -> None:
        """Save what is unsaved and end the thread. Blocks, at most ``timeout`` seconds."""


EngineFactory = Callable[[OnEvent], EngineLike]
"""Makes the engine once the screen stands: the screen's ``on_event`` is what it reports to."""


class EngineGone(Message):
    """The engine's thread has ended and its last event is behind us."""


class EngineEvent(Message):
    """An engine event on its way to the screen's thread."""

    def __init__(self, event: Event) -> None:
        super().__init__()
        self.event = event

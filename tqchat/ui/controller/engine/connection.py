"""The engine's interface, and a connection to one that starts later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tqchat.engine.commands import Command
from tqchat.engine.events import Event
from tqchat.engine.requests.request import Request, Ticket

OnEvent = Callable[[Event], None]


class EngineLike(Protocol):
    """Interface of ``tqchat.engine.worker.Engine``; tests use a scripted one."""

    def start(self) -> None:
        """Start the engine's thread. Returns at once."""

    def submit(self, command: Command) -> None:
        """Queue a command. Returns at once; results arrive as events."""

    def ask(self, request: Request, receive: OnEvent) -> Ticket:
        """Hand in another program's request. Returns at once; its events go to ``receive``."""

    def stop(self) -> None:
        """End the reply being generated, within one token."""

    def cancel_download(self) -> None:
        """Cancel a model download. The files on disk stay, and the next download resumes."""

    def shutdown(self, timeout: float) -> None:
        """Save unsaved caches and end the thread. Blocks for at most ``timeout`` seconds."""


EngineFactory = Callable[[OnEvent], EngineLike]
"""Makes an engine that reports events to the given function, from its own thread."""


class EngineConnection:
    """Passes commands to the engine; drops them until one is connected, as there is no model or cache yet."""

    def __init__(self) -> None:
        self._engine: EngineLike | None = None

    @property
    def connected(self) -> bool:
        """Whether there is an engine."""
        return self._engine is not None

    def connect(self, engine: EngineLike) -> None:
        """Send commands to this engine from now on."""
        self._engine = engine

    def submit(self, command: Command) -> None:
        """Queue a command."""
        if self._engine is not None:
            self._engine.submit(command)

    def stop(self) -> None:
        """End the reply, conversion or summary that is running."""
        if self._engine is not None:
            self._engine.stop()

    def cancel_download(self) -> None:
        """Cancel a model download."""
        if self._engine is not None:
            self._engine.cancel_download()

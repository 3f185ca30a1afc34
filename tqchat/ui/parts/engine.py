"""The app's connection to the engine."""

from __future__ import annotations

from tqchat.engine.commands import Command
from tqchat.engine.requests.request import Request, Ticket
from tqchat.ui.controller.engine.connection import EngineFactory, EngineLike, OnEvent

SAVE_TIMEOUT_S = 60.0
"""Longest wait for the cache to be saved on quitting; a second Ctrl+Q does not wait."""


class EngineLauncher:
    """Starts the engine, sends it commands, and shuts it down.

    Attributes:
        stopping: Whether it is being shut down.
    """

    def __init__(self, make: EngineFactory, on_event: OnEvent) -> None:
        self._make, self._on_event = make, on_event
        self._engine: EngineLike | None = None
        self.stopping = False

    def start(self) -> EngineLike:
        """Start the engine's thread.

        Raises:
            TqchatError: if that is not possible.
        """
        self._engine = self._make(self._on_event)
        self._engine.start()
        return self._engine

    @property
    def running(self) -> bool:
        """Whether there is an engine."""
        return self._engine is not None

    def submit(self, command: Command) -> None:
        """Send a command, if there is an engine."""
        if self._engine is not None:
            self._engine.submit(command)

    def ask(self, request: Request, receive: OnEvent) -> Ticket:
        """Hand in another program's request. There must be an engine: a model is loaded by it."""
        assert self._engine is not None
        return self._engine.ask(request, receive)

    def shut_down(self, timeout_s: float) -> None:
        """Stop the reply, save the cache and end the thread. Blocks for up to ``timeout_s``."""
        if self._engine is not None:
            self._engine.stop()
            self._engine.shutdown(timeout_s)

"""The app's connection to the engine."""

from __future__ import annotations

from tqchat.engine.commands import Command
from tqchat.ui.controller.engine.connection import EngineFactory, EngineLike, OnEvent

SAVE_TIMEOUT_S = 60.0
"""How long quitting waits for the cache to be saved; a second Ctrl+Q does not wait."""


class EngineLauncher:
    """Starts the engine, sends it commands, and shuts it down.

    Attributes:
        stopping: Whether it is being shut down.
        left: Whether the app has ended.
    """

    def __init__(self, make: EngineFactory, on_event: OnEvent) -> None:
        self._make, self._on_event = make, on_event
        self._engine: EngineLike | None = None
        self.stopping = self.left = False

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

    def shut_down(self, timeout: float) -> None:
        """Stop the reply, save the cache and end the thread. Blocks for up to ``timeout`` seconds."""
        if self._engine is not None:
            self._engine.stop()
            self._engine.shutdown(timeout)

"""Messages from the threads of the engine and the database to the screen's thread."""

from __future__ import annotations

from textual.message import Message

from tqchat.engine.events import Event


class EngineStopped(Message):
    """The engine's thread has ended, or does not end in time; the app ends now.

    Attributes:
        write_timeout_s: How long the database may take.
        code: The exit code; ``None`` for that of an ordinary end.
    """

    def __init__(self, write_timeout_s: float, code: int | None = None) -> None:
        super().__init__()
        self.write_timeout_s, self.code = write_timeout_s, code


class EngineEvent(Message):
    """An event of the engine."""

    def __init__(self, event: Event) -> None:
        super().__init__()
        self.event = event


class Written(Message):
    """All writes are in the database file."""


class WriteProblem(Message):
    """Writing the database has failed and is tried again; ``None`` when all is written after a failure."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__()
        self.error = error

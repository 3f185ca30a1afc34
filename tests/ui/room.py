"""A chat without a screen, with an engine that follows a script."""

from __future__ import annotations

from pathlib import Path

from tests.ui.scripted import ScriptedEngine
from tqchat.store.database import Database, Message
from tqchat.ui.conversation import Chat
from tqchat.ui.state import Reply
from tqchat.ui.view import Severity


class RecordingView:
    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []
        self.returned: list[str] = []
        self.finished: list[Message | None] = []
        self.grown = ""
        self.nearly_full = self.full = 0

    def conversations_changed(self) -> None: ...
    def transcript_changed(self) -> None: ...
    def message_added(self, message: Message) -> None: ...
    def figures_changed(self) -> None: ...
    def reply_started(self, reply: Reply) -> None: ...

    def context_is_nearly_full(self) -> None:
        self.nearly_full += 1

    def context_is_full(self) -> None:
        self.full += 1

    def reply_grew(self, text: str) -> None:
        self.grown += text

    def reply_finished(self, message: Message | None) -> None:
        self.finished.append(message)

    def prompt_returned(self, text: str) -> None:
        self.returned.append(text)

    def say(self, text: str, severity: Severity = "information") -> None:
        self.said.append((severity, text))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Room:
    """A chat with a scripted engine that answers at once, on the same thread."""

    def __init__(self, path: Path, *, loads: bool = True, system_prompt: str | None = None) -> None:
        self.database = Database(path)
        self.view, self.clock = RecordingView(), Clock()
        self.chat = Chat(
            self.database, self.view, scheme="turbo0v4", system_prompt=system_prompt, clock=self.clock
        )
        self.engine = ScriptedEngine(self.chat.handle, loads=loads)
        self.chat.connect(self.engine, None)

    def said(self) -> list[tuple[str, str, str]]:
        assert self.chat.conversation is not None
        messages = self.database.messages(self.chat.conversation.id)
        return [(message.role, message.content, message.status) for message in messages]

"""A controller without a screen, with a scripted engine."""

from __future__ import annotations

from pathlib import Path

from tests.ui.scripted import ScriptedEngine
from tqchat.engine.events import TextDelta
from tqchat.store.database import Database, Message
from tqchat.store.write_queue import WriteQueue
from tqchat.ui.controller.controller import Controller
from tqchat.ui.controller.conversation.leases import ConversationLeases
from tqchat.ui.controller.conversation.open_conversation import OpenConversation
from tqchat.ui.controller.engine.connection import EngineConnection
from tqchat.ui.controller.engine.models import ModelState
from tqchat.ui.controller.engine.work import EngineWork
from tqchat.ui.controller.records import Reply
from tqchat.ui.controller.view import Severity


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

    def reply_grew(self, piece: TextDelta) -> None:
        self.grown += piece.text

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


class Rig:
    """A controller with a real database and a scripted engine, all on one thread."""

    def __init__(
        self,
        path: Path,
        *,
        loads: bool = True,
        system_prompt: str | None = None,
        queue: WriteQueue | None = None,
    ) -> None:
        self.database = Database(path, queue)
        self.view, self.clock = RecordingView(), Clock()
        self.chat = Controller(
            self.database, self.view, scheme="turbo0v4", system_prompt=system_prompt, clock=self.clock
        )
        self.engine = ScriptedEngine(self.chat.handle, loads=loads)
        self.chat.connect(self.engine, None)

    def transcript(self) -> list[tuple[str, str, str]]:
        assert self.chat.shown.conversation is not None
        messages = self.database.messages(self.chat.shown.conversation.id)
        return [(message.role, message.content, message.status) for message in messages]


class Core:
    """The parts of the controller that the others depend on, with a real database and no engine."""

    def __init__(self, path: Path) -> None:
        self.database, self.view = Database(path), RecordingView()
        self.engine = EngineConnection()
        self.models = ModelState(self.engine, self.view)
        self.work = EngineWork(self.engine, self.models)
        self.branch_changes: list[str] = []
        self.shown = OpenConversation(
            self.database,
            self.view,
            ConversationLeases(self.database.leases, lambda: [self.shown.id]),
            self.work,
            scheme="turbo0v4",
            on_branch_changed=self.branch_changes.append,
        )

    def show(self, *contents: str) -> list[Message]:
        """Show a conversation of these messages, the user's first."""
        conversation = self.database.create("Foxes", None, "turbo0v4")
        for index, content in enumerate(contents):
            self.database.add_message(conversation.id, "assistant" if index % 2 else "user", content)
        self.shown.open(conversation.id)
        return self.shown.messages


def turn(rig: Rig, question: str, answer: str) -> None:
    """Send a message and have it answered."""
    assert rig.chat.turns.send(question)
    rig.engine.reply(answer)


def contents(rig: Rig) -> list[str]:
    return [message.content for message in rig.chat.shown.messages]

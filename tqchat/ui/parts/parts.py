"""The parts of the app, which actions are called with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from textual.app import App
from textual.screen import Screen

from tqchat.errors import TqchatError
from tqchat.paths import Paths
from tqchat.settings import Settings
from tqchat.store.database import Database
from tqchat.ui.actions.keys import Keys
from tqchat.ui.controller.controller import Controller
from tqchat.ui.controller.view import Severity
from tqchat.ui.parts.appearance import Appearance
from tqchat.ui.parts.attachment_check import AttachmentCheck
from tqchat.ui.parts.completion import PromptCompletion
from tqchat.ui.parts.engine import EngineLauncher
from tqchat.ui.parts.preferences import Preferences
from tqchat.ui.parts.presets import Presets
from tqchat.ui.parts.unsent import UnsentText
from tqchat.ui.screens.chat import ChatScreen
from tqchat.ui.widgets.chat.log import ChatLog
from tqchat.ui.widgets.conversations.list import ConversationList
from tqchat.ui.widgets.prompt.attached import AttachedFiles
from tqchat.ui.widgets.prompt.prompt import Prompt

if TYPE_CHECKING:
    from tqchat.api.server import ApiServer

T = TypeVar("T")


@dataclass
class Parts:
    """The collaborators of one running app, built once.

    Attributes:
        host: The Textual app: screens, workers, the terminal's clipboard.
        keys: The keys in force, for sentences that name one.
        last_words: Sentences that are printed after the app has left the terminal.
        closed: Whether the database is closed.
        api: The server for other programs, once it was started.
        interrupted_at: Clock time of the last key press that asked to interrupt.
    """

    host: App[None]
    paths: Paths
    database: Database
    preferences: Preferences
    keys: Keys
    screen: ChatScreen
    chat: Controller
    engine: EngineLauncher
    appearance: Appearance
    last_words: list[str] = field(default_factory=list)
    closed: bool = False
    interrupted_at: float = float("-inf")
    api: ApiServer | None = None
    unsent: UnsentText = field(init=False)
    attachments: AttachmentCheck = field(init=False)
    presets: Presets = field(init=False)
    completion: PromptCompletion = field(init=False)

    def __post_init__(self) -> None:
        self.unsent = UnsentText(self.chat, lambda: self.prompt, self.paths.unsent_text, self.in_thread)
        self.attachments = AttachmentCheck(
            self.chat,
            lambda: self.prompt,
            lambda: self.screen.query_one(AttachedFiles),
            self.in_thread,
            self.host.call_later,
        )
        self.presets = Presets(self.paths.presets)
        self.completion = PromptCompletion(
            self.screen, lambda: self.keys.actions.commands(self), self.in_thread, self.host.call_later
        )

    @property
    def prompt(self) -> Prompt:
        """The input for messages."""
        return self.screen.query_one(Prompt)

    @property
    def log(self) -> ChatLog:
        """The messages of the open conversation."""
        return self.screen.query_one(ChatLog)

    @property
    def conversations(self) -> ConversationList:
        """The list of conversations."""
        return self.screen.query_one(ConversationList)

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self.preferences.settings

    def say(self, text: str, severity: Severity = "information") -> None:
        """Show one line above the prompt."""
        self.screen.say(text, severity)

    def attempt(self, function: Callable[..., T], *arguments: object) -> T | None:
        """Call a function; an error is shown, and ``None`` returned."""
        try:
            return function(*arguments)
        except TqchatError as error:
            self.say(str(error), "error")
            self.screen.conversations_changed()
            return None

    async def ask(self, dialog: Screen[T]) -> T | None:
        """Show a dialog and wait for its answer."""
        return await self.host.push_screen_wait(dialog)

    def in_thread(self, function: Callable[[], object]) -> None:
        """Run a blocking function in a thread."""
        self.host.run_worker(function, thread=True)

    def copy(self, text: str) -> None:
        """Put a text on the clipboard."""
        self.host.copy_to_clipboard(text)

    def remember_conversation(self) -> None:
        """Save which conversation is open."""
        current = self.chat.shown.conversation
        self.preferences.remember_conversation(current.id if current else None)

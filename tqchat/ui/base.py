"""What every part of the application stands on: the chat, its screen, and a way to do things to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from textual.app import App
from textual.binding import Keymap

from tqchat.errors import TqchatError
from tqchat.ui.controller.controller import Controller
from tqchat.ui.controller.view import Severity
from tqchat.ui.keymap import namer
from tqchat.ui.screens.chat import ChatScreen
from tqchat.ui.widgets.chat.log import ChatLog
from tqchat.ui.widgets.prompt.prompt import Prompt

T = TypeVar("T")


class ChatApp(App[None]):
    """An app with a chat and its screen."""

    chat: Controller
    _chat_screen: ChatScreen
    rebound: Mapping[str, str] = {}
    """A person's own keys, by action."""

    def set_keymap(self, keymap: Keymap) -> None:
        """Take a person's own keys into force."""
        self.rebound = dict(keymap)
        super().set_keymap(keymap)

    @property
    def prompt(self) -> Prompt:
        """Where the person writes."""
        return self._chat_screen.query_one(Prompt)

    @property
    def log_view(self) -> ChatLog:
        """The conversation as it is drawn."""
        return self._chat_screen.query_one(ChatLog)

    def say(self, text: str, severity: Severity = "information") -> None:
        """One line above the prompt."""
        self._chat_screen.say(text, severity)

    def key(self, action: str) -> str:
        """The first key of an action as hints write it."""
        return namer(self)(action)

    def _try(self, deed: Callable[..., T], *arguments: object) -> T | None:
        """Do something to the chat; what the database refuses is said, not raised."""
        try:
            return deed(*arguments)
        except TqchatError as error:
            self.say(str(error), "error")
            self._chat_screen.conversations_changed()
            return None

"""What the chat tells whoever draws it: a screen, or a test."""

from __future__ import annotations

from typing import Literal, Protocol

from tqchat.store.database import Message
from tqchat.ui.state import Reply

Severity = Literal["information", "warning", "error"]


class View(Protocol):
    """What the chat tells whoever draws it."""

    def conversations_changed(self) -> None:
        """The list of conversations, a title or a size has changed."""

    def transcript_changed(self) -> None:
        """Another conversation is shown, or its past was rewound: draw it anew."""

    def message_added(self, message: Message) -> None:
        """A message of the shown conversation was committed."""

    def reply_started(self, reply: Reply) -> None:
        """An answer to the shown conversation is on its way; nothing of it is there yet."""

    def reply_grew(self, text: str) -> None:
        """The next piece of the shown conversation's reply."""

    def reply_finished(self, message: Message | None) -> None:
        """The shown conversation's reply ended; ``None`` if nothing was answered."""

    def prompt_returned(self, text: str) -> None:
        """A message that was not answered goes back into the input."""

    def context_is_nearly_full(self) -> None:
        """The shown conversation will soon be longer than the model reads."""

    def context_is_full(self) -> None:
        """The shown conversation's last message could not be read any more."""

    def figures_changed(self) -> None:
        """The gauge, the model, the scheme, the progress or the speed changed."""

    def say(self, text: str, severity: Severity = "information") -> None:
        """One line for the person."""

"""The interface that the controller reports to: a screen, or a test."""

from __future__ import annotations

from typing import Literal, Protocol

from tqchat.engine.events import TextDelta
from tqchat.store.database import Message
from tqchat.ui.controller.records import Reply

Severity = Literal["information", "warning", "error"]


class View(Protocol):
    """Notified of every change that can be seen."""

    def conversations_changed(self) -> None:
        """The list of conversations, a title or a size has changed."""

    def transcript_changed(self) -> None:
        """Another conversation or another branch is shown: redraw all messages."""

    def message_added(self, message: Message) -> None:
        """A message of the shown conversation was committed."""

    def reply_started(self, reply: Reply) -> None:
        """A reply in the shown conversation was requested; it has no text yet."""

    def reply_grew(self, piece: TextDelta) -> None:
        """The next piece of the shown conversation's reply."""

    def reply_finished(self, message: Message | None) -> None:
        """The shown conversation's reply ended; ``None`` if nothing was generated."""

    def prompt_returned(self, text: str) -> None:
        """An unanswered message goes back into the prompt."""

    def context_is_nearly_full(self) -> None:
        """The shown conversation is near the context limit."""

    def context_is_full(self) -> None:
        """The shown conversation's last message does not fit into the context."""

    def figures_changed(self) -> None:
        """The cache figures, the model, the scheme, the progress or the speed changed."""

    def say(self, text: str, severity: Severity = "information") -> None:
        """Show one line to the user."""

"""The tree of messages: versions, branches and where the next message goes."""

from __future__ import annotations

from tqchat.store.database import Database, Message
from tqchat.ui.controller.conversation.open_conversation import OpenConversation
from tqchat.ui.controller.engine.work import EngineWork
from tqchat.ui.controller.records import Fork
from tqchat.ui.controller.view import View


class TranscriptTree:
    """Moves through the shown conversation's branches. Nothing is overwritten: edits are new versions."""

    def __init__(self, database: Database, view: View, shown: OpenConversation, work: EngineWork) -> None:
        self._database, self._view, self._shown, self._work = database, view, shown, work

    @property
    def can_change(self) -> bool:
        """Whether earlier messages may change now: none is being answered or summed up."""
        conversation = self._shown.conversation
        return conversation is not None and not self._work.is_busy_with(conversation.id)

    def version(self, message: Message) -> tuple[int, int]:
        """The number of a message among its versions, and their count: ``(2, 3)``."""
        place = self._shown.places.get(message.id)
        return (place.index, place.count) if place else (1, 1)

    def step_version(self, message_id: str, step: int) -> Message | None:
        """Show the previous or the next version of a message; ``None`` at either end."""
        if not self.can_change:
            return None
        place = self._shown.places.get(message_id)
        target = (place.next_id if step > 0 else place.previous_id) if place else None
        return self.show_message(target) if target else None

    def show_message(self, message_id: str) -> Message:
        """Show the branch of a message, unless it is shown already."""
        if all(one.id != message_id for one in self._shown.messages):
            self._shown.fork = None
            self._database.select(message_id)
            self._shown.reread()
            self._view.transcript_changed()
        return self._database.message(message_id)

    def rewind_to(self, head_id: str) -> None:
        """Make an earlier message the last one of the shown branch."""
        assert self._shown.conversation is not None
        self._shown.fork = None
        self._database.rewind_to(self._shown.conversation.id, head_id)
        self._shown.reread()
        self._view.transcript_changed()

    def latest_with_versions(self) -> Message | None:
        """The last message of the branch that has other versions."""
        return next((one for one in reversed(self._shown.messages) if self.version(one)[1] > 1), None)

    def fork_at(self, message: Message) -> str | None:
        """Let the next message be another version of a user message, or begin a branch below a reply.

        Nothing changes until it is sent. Returns the text to edit, ``None`` if this is not possible now.
        """
        if message.role == "user":
            return self.edit(message)
        if not self.can_change or message.role == "system":
            return None
        self._shown.fork = Fork(message.id)
        self._view.figures_changed()
        return ""

    def edit(self, message: Message) -> str | None:
        """Let the next text be another version of a message.

        Nothing changes until it is sent. Returns the text to edit, ``None`` if this is not possible now.
        """
        if not self.can_change or message.role == "system":
            return None
        self._shown.fork = Fork(message.parent_id, message.id, message.role)
        self._view.figures_changed()
        return message.content

    @property
    def edits_reply(self) -> bool:
        """Whether the next text is another version of a reply."""
        return self._shown.fork is not None and self._shown.fork.role == "assistant"

    def leave_fork(self) -> bool:
        """Let the next message go to the end again; whether there was a fork."""
        had, self._shown.fork = self._shown.fork is not None, None
        self._view.figures_changed()
        return had

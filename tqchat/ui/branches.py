"""The tree behind a conversation: editing, answering again, versions, going on with a reply that was cut."""

from __future__ import annotations

from tqchat.store.database import Message
from tqchat.ui.state import Fork, Waiting
from tqchat.ui.transcript import last_user
from tqchat.ui.turns import Turns


class Branches(Turns):
    """Nothing here overwrites: what was said before stays beside what is said instead."""

    @property
    def can_change(self) -> bool:
        """Whether the shown conversation's past may be touched now: nothing of it is being answered."""
        busy = self.shown_reply or self.shown_waiting or self.summing_up
        return self.conversation is not None and not busy

    def version(self, message: Message) -> tuple[int, int]:
        """Which of how many versions of a message is shown: ``(2, 3)``."""
        place = self.places.get(message.id)
        return (place.index, place.count) if place else (1, 1)

    def step_version(self, message_id: str, step: int) -> Message | None:
        """Show the version before or after a message, with what followed it; ``None`` at either end."""
        if self.conversation is None or not self.can_change:
            return None
        place = self.places.get(message_id)
        target = (place.next_id if step > 0 else place.previous_id) if place else None
        return self.show_message(target) if target else None

    def show_message(self, message_id: str) -> Message:
        """Show the branch through a message, unless it is the one shown already."""
        if all(one.id != message_id for one in self.messages):
            self.fork = None
            self.database.select(message_id)
            self._reread_rows()
            self.view.transcript_changed()
        return self.database.message(message_id)

    def latest_with_versions(self) -> Message | None:
        """The last message of the branch that has other versions."""
        return next((one for one in reversed(self.messages) if self.version(one)[1] > 1), None)

    def fork_at(self, message: Message) -> str | None:
        """Let the next message begin a branch here: beside a message of the person's own, below a reply.

        Nothing changes until it is sent. Returns the text to edit, ``None`` if this cannot be done now.
        """
        if not self.can_change or message.role == "system":
            return None
        own = message.role == "user"
        self.fork = Fork(message.parent_id, message.id) if own else Fork(message.id)
        self.view.figures_changed()
        return message.content if own else ""

    def leave_fork(self) -> bool:
        """The next message goes to the end again; whether there was a fork."""
        had, self.fork = self.fork is not None, None
        self.view.figures_changed()
        return had

    def regenerate(self, message: Message | None = None) -> bool:
        """Answer a user message again: the last one, the given one, or the one that a given reply answers.

        The reply before it stays in the database, beside the new one.
        """
        if self.conversation is None or not self.can_change:
            return False
        ids = [one.id for one in self.messages]
        until = self.messages[: ids.index(message.id) + 1] if message else self.messages
        index = last_user(until)
        if index is None:
            return False
        head = self.conversation.head_id
        self._show_branch(self.messages[index].id)
        self._wait(Waiting(self.conversation.id, head, None))
        return True

    def can_continue(self, message: Message) -> bool:
        """Whether a message is the branch's last, and a reply that was cut off."""
        last = bool(self.messages) and self.messages[-1].id == message.id
        cut = message.status != "complete" or message.id in self.endings
        return last and cut and message.role == "assistant" and bool(message.content.strip())

    def continue_reply(self) -> bool:
        """Let the last reply go on where it was cut off."""
        if self.conversation is None or not self.can_change or not self.messages:
            return False
        if not self.can_continue(self.messages[-1]):
            return False
        self._wait(Waiting(self.conversation.id, self.conversation.head_id, None, continues=True))
        return True

    def _wait(self, waiting: Waiting) -> None:
        self.waiting.append(waiting)
        self._pump()
        self.view.figures_changed()

    def _show_branch(self, head_id: str) -> None:
        assert self.conversation is not None
        self.fork = None
        self.database.rewind_to(self.conversation.id, head_id)
        self._reread_rows()
        self.view.transcript_changed()

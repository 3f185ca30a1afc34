"""The user's turns: send, regenerate, continue, stop."""

from __future__ import annotations

from collections.abc import Callable

from tqchat.errors import TqchatError
from tqchat.store.database import Database, Message
from tqchat.ui.controller.conversation.open_conversation import OpenConversation
from tqchat.ui.controller.conversation.tree import TranscriptTree
from tqchat.ui.controller.engine.connection import EngineConnection
from tqchat.ui.controller.engine.models import ModelState
from tqchat.ui.controller.engine.work import EngineWork
from tqchat.ui.controller.records import QueuedTurn, Reply
from tqchat.ui.controller.texts.titles import title_from_message
from tqchat.ui.controller.texts.transcript import last_user_index
from tqchat.ui.controller.view import View


class Turns:
    """Commits the user's messages and queues them. ``withdraw`` undoes a turn that was not answered."""

    def __init__(
        self,
        database: Database,
        view: View,
        engine: EngineConnection,
        shown: OpenConversation,
        tree: TranscriptTree,
        models: ModelState,
        work: EngineWork,
        *,
        withdraw: Callable[[QueuedTurn], None],
    ) -> None:
        self._database, self._view, self._engine = database, view, engine
        self._shown, self._tree, self._models, self._work = shown, tree, models, work
        self._withdraw = withdraw

    @property
    def shown_reply(self) -> Reply | None:
        """The reply under way, if it belongs to the shown conversation."""
        reply = self._work.reply
        return reply if reply and self._shown.is_shown(reply.conversation_id) else None

    @property
    def shown_waiting(self) -> bool:
        """Whether a turn of the shown conversation is queued."""
        return self._shown.id is not None and self._work.has_waiting(self._shown.id)

    def send(self, text: str) -> bool:
        """Commit a message and queue it; ``False`` if it is not in the database."""
        if not text.strip() or (self._shown.conversation is not None and not self._tree.can_change):
            return False
        fork = self._shown.fork
        try:
            model = self._models.current
            conversation = self._shown.conversation or self._shown.create(
                title_from_message(text), model.ref if model else None
            )
            if fork is not None:
                self._database.rewind_to(conversation.id, fork.parent_id)
            message = self._database.add_message(conversation.id, "user", text)
            if conversation.draft:
                self._database.set_draft(conversation.id, "")
        except TqchatError as error:
            self._view.say(str(error), "error")
            return False
        self._shown.reread()
        if fork is None:
            self._view.message_added(message)
        else:
            self._shown.fork = None
            self._view.transcript_changed()
        self._view.conversations_changed()
        self._queue(QueuedTurn(conversation.id, conversation.head_id, text))
        return True

    def save_edited_reply(self, text: str) -> bool:
        """Commit the text as another version of the reply that is being edited; it is not answered.

        Reasoning and model are those of the reply. ``False`` if it is not in the database.
        """
        fork = self._shown.fork
        if not text.strip() or fork is None or fork.edited_id is None or not self._tree.can_change:
            return False
        try:
            reply = self._database.message(fork.edited_id)
            self._database.add_sibling(
                reply.id,
                text,
                model=reply.model,
                reasoning=reply.reasoning,
                reasoning_seconds=reply.reasoning_seconds,
            )
        except TqchatError as error:
            self._view.say(str(error), "error")
            return False
        self._shown.reread()
        self._view.transcript_changed()
        self._view.conversations_changed()
        return True

    def regenerate(self, message: Message | None = None) -> bool:
        """Answer a user message again: the last one, the given one, or the one before a given reply.

        The earlier reply stays as another version; whether it was possible now.
        """
        conversation, messages = self._shown.conversation, self._shown.messages
        if conversation is None or not self._tree.can_change:
            return False
        ids = [one.id for one in messages]
        index = last_user_index(messages[: ids.index(message.id) + 1] if message else messages)
        if index is None:
            return False
        self._tree.rewind_to(messages[index].id)
        self._queue(QueuedTurn(conversation.id, conversation.head_id, None))
        return True

    def can_continue(self, message: Message) -> bool:
        """Whether a message is the last of the branch, and a reply that was cut off."""
        last = bool(self._shown.messages) and self._shown.messages[-1].id == message.id
        generated = message.content.strip() or message.reasoning
        return last and message.status != "complete" and message.role == "assistant" and bool(generated)

    def continue_reply(self) -> bool:
        """Continue the last reply where it was cut off; whether it was possible now.

        Raises:
            ConversationInUse: if another process has the conversation's lease.
        """
        conversation, messages = self._shown.conversation, self._shown.messages
        if conversation is None or not self._tree.can_change or not messages:
            return False
        if not self.can_continue(messages[-1]):
            return False
        self._database.leases.check(conversation.id)  # the other turns write to the database at once
        self._queue(QueuedTurn(conversation.id, conversation.head_id, None, continues=True))
        return True

    def _queue(self, turn: QueuedTurn) -> None:
        self._work.add(turn)
        self._view.figures_changed()

    def stop(self) -> bool:
        """Withdraw a queued turn, or stop the reply, other work or a download; whether there was any."""
        for turn in self._work.waiting:
            if self._shown.is_shown(turn.conversation_id):
                self._work.waiting.remove(turn)
                self._withdraw(turn)
                return True
        if (reply := self.shown_reply) is not None:
            reply.stopping = True
            self._engine.stop()
            self._view.figures_changed()
            return True
        if self._work.activity in ("opening", "converting", "summing up"):
            self._engine.stop()
            return True
        return self._models.pause_download()

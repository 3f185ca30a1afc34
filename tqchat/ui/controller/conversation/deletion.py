"""Deleting conversations and messages, and undoing it."""

from __future__ import annotations

from tqchat.engine import commands
from tqchat.store.database import Database, Message, RemovedMessage
from tqchat.ui.controller.cache.figures import CacheFigures
from tqchat.ui.controller.cache.schemes import SchemeChanges
from tqchat.ui.controller.conversation.open_conversation import OpenConversation
from tqchat.ui.controller.conversation.tree import TranscriptTree
from tqchat.ui.controller.engine.connection import EngineConnection
from tqchat.ui.controller.engine.work import EngineWork
from tqchat.ui.controller.texts.transcript import for_engine
from tqchat.ui.controller.view import View


class Deletions:
    """Deletes, and restores the last deletion first."""

    def __init__(
        self,
        database: Database,
        view: View,
        engine: EngineConnection,
        shown: OpenConversation,
        tree: TranscriptTree,
        work: EngineWork,
        schemes: SchemeChanges,
        caches: CacheFigures,
    ) -> None:
        self._database, self._view, self._engine = database, view, engine
        self._shown, self._tree, self._work = shown, tree, work
        self._schemes, self._caches = schemes, caches
        self._deleted: list[RemovedMessage | None] = []
        """Deletions of this process, oldest first; ``None`` for a conversation."""

    def delete(self, conversation_id: str) -> None:
        """Delete a conversation and its cache; the messages can be restored for a day."""
        self.discard(conversation_id)
        self._deleted.append(None)

    def discard(self, conversation_id: str, withdrawn: bool = False) -> None:
        """Delete a conversation, which ``undo`` does not restore if it has no messages.

        ``withdrawn``: Its only message is in the prompt again.
        """
        self._work.drop(conversation_id)
        self._schemes.forget(conversation_id)
        self._database.delete(conversation_id)
        self._caches.forget(conversation_id)
        self._engine.submit(commands.ForgetConversation(conversation_id, withdrawn))
        self._work.closed(conversation_id)
        if self._shown.is_shown(conversation_id):
            self._shown.new()
        self._view.conversations_changed()

    def delete_message(self, message: Message) -> bool:
        """Delete one message of the shown conversation; whether it was possible now."""
        if not self._tree.can_change:
            return False
        self._deleted.append(self._database.delete_message(message.id))
        self._shown.fork = None
        self._shown.reread()
        if (conversation := self._shown.conversation) is not None:
            turns = for_engine(self._shown.messages, conversation.system_prompt)
            self._engine.submit(commands.ForgetMessages(conversation.id, turns))
        self._view.transcript_changed()
        return True

    def undo(self) -> bool:
        """Restore the last deleted message or conversation; whether there was one."""
        while self._deleted:
            removed = self._deleted[-1]
            if removed is None:
                self._deleted.pop()
                break
            reply = self._work.reply
            if reply and reply.conversation_id == removed.message.conversation_id:
                return False
            self._deleted.pop()
            self._database.restore_message(removed)
            self._shown.open(removed.message.conversation_id)
            return True
        # Without a head it has no messages: it was discarded when its only message was withdrawn.
        deleted = next((one for one in self._database.deleted() if one.head_id is not None), None)
        if deleted is None:
            return False
        self._database.undelete(deleted.id)
        self._shown.open(deleted.id)
        self._view.conversations_changed()
        return True

"""The conversations themselves: their titles, settings and deletion."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqchat.kv.scheme import scheme_setting
from tqchat.store.database_file import DatabaseFile
from tqchat.store.errors import DatabaseBusy, StoreFull, UnknownConversation
from tqchat.store.lease import Leases
from tqchat.store.records import Conversation
from tqchat.store.rows import (
    CONVERSATION,
    column,
    conversation_from,
    insert_conversation,
    new_id,
    storable,
)
from tqchat.store.sampling import SamplingChoice, to_column

KEEP_DELETED = 24 * 3600.0
"""Seconds for which a deletion can be undone."""


class Conversations(DatabaseFile):
    """The half of the database that knows conversations, but not what is in them."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.leases = Leases(path)
        # Not worth failing for: a full disk or a busy neighbour, and the next start does it.
        with contextlib.suppress(StoreFull, DatabaseBusy):
            self.purge(time.time() - KEEP_DELETED)

    def conversations(self, limit: int | None = None) -> list[Conversation]:
        """Every conversation, or so many, the one last written to first."""
        rows = self.rows(
            f"""
            SELECT {CONVERSATION} FROM conversations WHERE deleted_at IS NULL
            ORDER BY updated_at DESC, number DESC LIMIT ?
            """,
            -1 if limit is None else limit,
        )
        return [conversation_from(row) for row in rows]

    def conversation(self, conversation_id: str) -> Conversation:
        """The conversation of that id, or of the only id that begins so.

        Raises:
            UnknownConversation: if there is none, or more than one.
        """
        rows = self.rows(
            f"""
            SELECT {CONVERSATION} FROM conversations
            WHERE substr(id, 1, length(?1)) = ?1 AND deleted_at IS NULL ORDER BY id != ?1
            """,
            storable(conversation_id),
        )
        if not rows or not conversation_id:
            raise UnknownConversation(conversation_id)
        if len(rows) > 1 and rows[0]["id"] != conversation_id:
            raise UnknownConversation(conversation_id, matches=len(rows))
        return conversation_from(rows[0])

    def create(
        self,
        title: str,
        model: str | None,
        scheme: str,
        *,
        system_prompt: str | None = None,
        sampling: SamplingChoice | None = None,
    ) -> Conversation:
        """A new, empty conversation. Its title counts as automatic until someone renames it.

        Raises:
            UnknownScheme: if there is no such scheme.
        """
        now = time.time()
        conversation = Conversation(
            new_id(),
            storable(title),
            model,
            scheme_setting(scheme),
            now,
            now,
            None,
            True,
            None if system_prompt is None else storable(system_prompt),
            sampling or SamplingChoice(),
        )
        with self.writing() as connection:
            insert_conversation(connection, conversation)
        return conversation

    def rename(self, conversation_id: str, title: str, automatic: bool = False) -> None:
        """Give a conversation another title; ``automatic`` if no person chose it."""
        self._change(conversation_id, "title = ?, title_is_automatic = ?", title, automatic)

    def set_scheme(self, conversation_id: str, scheme: str) -> None:
        """Remember the cache scheme of a conversation, or ``auto``."""
        self._change(conversation_id, "scheme = ?", scheme_setting(scheme))

    def set_model(self, conversation_id: str, model: str | None) -> None:
        """Remember the model of a conversation."""
        self._change(conversation_id, "model = ?", model)

    def set_system_prompt(self, conversation_id: str, text: str | None) -> None:
        """Remember what stands before the first message of a conversation, on every branch."""
        self._change(conversation_id, "system_prompt = ?", text)

    def set_sampling(self, conversation_id: str, choice: SamplingChoice) -> None:
        """Remember how a conversation's replies are drawn."""
        self._change(conversation_id, "sampling = ?", to_column(choice))

    def set_draft(self, conversation_id: str, text: str) -> None:
        """Remember what was typed and not sent."""
        self._change(conversation_id, "draft = ?", text)

    def delete(self, conversation_id: str) -> None:
        """Delete a conversation and all its messages, on every branch. ``undelete`` undoes it for a day."""
        self._change(conversation_id, "deleted_at = ?", time.time())

    def undelete(self, conversation_id: str) -> Conversation:
        """Bring a deleted conversation back as it was.

        Raises:
            UnknownConversation: if it is not among the deleted ones (any more).
        """
        with self._writing_to(conversation_id) as connection:
            changed = connection.execute(
                "UPDATE conversations SET deleted_at = NULL WHERE id = ? AND deleted_at IS NOT NULL",
                (conversation_id,),
            )
            expect(changed, conversation_id)
        return self.conversation(conversation_id)

    def deleted(self) -> list[Conversation]:
        """The conversations whose deletion can be undone, the last deleted first."""
        rows = self.rows(
            f"""
            SELECT {CONVERSATION} FROM conversations WHERE deleted_at IS NOT NULL
            ORDER BY deleted_at DESC, number DESC
            """
        )
        return [conversation_from(row) for row in rows]

    def purge(self, before: float) -> int:
        """Remove for good what was deleted at that time or earlier; how many conversations that was."""
        due = "SELECT id FROM conversations WHERE deleted_at <= ?"
        # Most starts have nothing to purge, and need not wait for a lock to find out.
        if not self.rows(due, before):
            return 0
        with self.writing() as connection:
            connection.execute(f"UPDATE conversations SET head_id = NULL WHERE id IN ({due})", (before,))
            return connection.execute(f"DELETE FROM conversations WHERE id IN ({due})", (before,)).rowcount

    # Inside

    def _change(self, conversation_id: str, assignments: str, *values: object) -> None:
        with self._writing_to(conversation_id) as connection:
            changed = connection.execute(
                f"UPDATE conversations SET {assignments} WHERE id = ? AND deleted_at IS NULL",
                (*map(column, values), conversation_id),
            )
            expect(changed, conversation_id)

    @contextmanager
    def _writing_to(self, conversation_id: str) -> Iterator[sqlite3.Connection]:
        """One transaction that writes one conversation.

        Raises:
            ConversationInUse: if another process has its lease.
        """
        self.leases.check(conversation_id)
        with self.writing() as connection:
            yield connection


def expect(cursor: sqlite3.Cursor, conversation_id: str) -> None:
    """Raise UnknownConversation if a statement changed nothing."""
    if cursor.rowcount == 0:
        raise UnknownConversation(conversation_id)

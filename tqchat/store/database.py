"""The transcript database: conversations and their message trees in SQLite.

Every write is on disk when its method returns."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Unpack

from tqchat.kv.scheme import AUTO, scheme_setting
from tqchat.store import message_tree, search
from tqchat.store.database_file import DatabaseFile, Rows
from tqchat.store.errors import (
    ConversationInUse,
    DatabaseBusy,
    DatabaseTooNew,
    DatabaseUnreadable,
    StoreError,
    StoreFull,
    UnknownConversation,
    UnknownMessage,
)
from tqchat.store.lease import Leases
from tqchat.store.message_tree import require_change
from tqchat.store.records import (
    Conversation,
    Message,
    MessageChanges,
    RemovedMessage,
    ReplyFigures,
    Role,
    SearchHit,
    Status,
    ThinkingChoice,
    Totals,
    VersionPosition,
)
from tqchat.store.rows import (
    CONVERSATION_COLUMNS,
    MESSAGE_COLUMNS,
    conversation_from_row,
    insert_conversation,
    message_from_row,
    new_id,
    replace_surrogates,
    to_sql,
)
from tqchat.store.sampling import SamplingChoice, to_column
from tqchat.store.write_queue import WriteQueue

__all__ = [
    "AUTO",
    "UNDELETE_WINDOW_S",
    "Conversation",
    "ConversationInUse",
    "Database",
    "DatabaseBusy",
    "DatabaseTooNew",
    "DatabaseUnreadable",
    "Message",
    "RemovedMessage",
    "SamplingChoice",
    "SearchHit",
    "StoreError",
    "StoreFull",
    "Totals",
    "UnknownConversation",
    "UnknownMessage",
    "VersionPosition",
]

UNDELETE_WINDOW_S = 24 * 3600.0
"""Time in which a deleted conversation can be restored."""
_READ_TIMEOUT_MS = 100


def purge_due(file: DatabaseFile) -> None:
    """Permanently remove the conversations that can no longer be restored."""
    message_tree.purge(file, time.time() - UNDELETE_WINDOW_S)


class Database(DatabaseFile):
    """The open database. Use it on one thread at a time; other processes may open the same file.

    With a queue, this connection only reads, and never waits for long: a write is done in memory, where the
    methods below see it, and by the queue's thread in the file.

    While another process holds a conversation's lease, its transcript can be read here, and every method that
    would write it raises ConversationInUse.

    Raises:
        DatabaseTooNew: if a newer tqchat wrote the file.
        DatabaseUnreadable: if the file is damaged, belongs to another program or cannot be opened. The file
            is not changed.
        StoreFull: if the disk has no space to create it.
    """

    def __init__(self, path: Path, queue: WriteQueue | None = None) -> None:
        super().__init__(path)
        self.leases = Leases(path)
        self._queue = queue
        if queue is None:
            # A full disk or a lock must not stop the program from starting; the next start purges.
            with contextlib.suppress(StoreFull, DatabaseBusy):
                purge_due(self)
        else:
            self._connection.execute(f"PRAGMA busy_timeout = {_READ_TIMEOUT_MS}")
            self._connection.execute("PRAGMA query_only = ON")

    def is_written(self, conversation_id: str) -> bool:
        """Whether all of a conversation is in the file."""
        return self._queue is None or not self._queue.has_writes(conversation_id)

    def unwritten(self) -> list[Conversation]:
        """The conversations of which something is not in the file."""
        found = self._with_queued([])
        return [one for one in found if one.deleted_at is None and not self.is_written(one.id)]

    def changed(self) -> bool:
        """Whether the file was written since the last call. Cheap."""
        changed = super().changed()
        if changed and self._queue is not None:
            self._queue.forget_written()
        return changed

    def finish(self, timeout_s: float) -> bool:
        """Write what is in the queue and end it; ``False`` if something is not in the file by then."""
        return self._queue is None or self._queue.close(timeout_s)

    def follow(self, conversation_ids: Iterable[str | None]) -> None:
        """Use the file that is at the path now (see ``is_replaced``), and write these conversations into it.

        Raises:
            DatabaseTooNew, DatabaseUnreadable, StoreFull: as for a new one.
        """
        if self._queue is not None:
            for conversation_id in conversation_ids:
                if conversation_id is not None:
                    self._queue.keep(self, conversation_id)
        self.reopen()

    # Conversations

    def conversations(self, limit: int | None = None) -> list[Conversation]:
        """All conversations, or the first ``limit``, most recently updated first."""
        rows = self.rows(
            f"""
            SELECT {CONVERSATION_COLUMNS} FROM conversations WHERE deleted_at IS NULL
            ORDER BY updated_at DESC, number DESC LIMIT ?
            """,
            -1 if limit is None else limit,
        )
        found = self._with_queued([conversation_from_row(row) for row in rows])
        found = [one for one in found if one.deleted_at is None]
        return sorted(found, key=lambda one: one.updated_at, reverse=True)[:limit]

    def conversation(self, conversation_id: str) -> Conversation:
        """The conversation with this id, or with the only id that starts with it.

        Raises:
            UnknownConversation: if none or several match.
        """
        prefix = replace_surrogates(conversation_id)
        rows = self._of(conversation_id).rows(
            f"""
            SELECT {CONVERSATION_COLUMNS} FROM conversations
            WHERE substr(id, 1, length(?)) = ? AND deleted_at IS NULL ORDER BY id != ?
            """,
            prefix,
            prefix,
            prefix,
        )
        if not rows or not conversation_id:
            raise UnknownConversation(conversation_id)
        if len(rows) > 1 and rows[0]["id"] != conversation_id:
            raise UnknownConversation(conversation_id, matches=len(rows))
        return conversation_from_row(rows[0])

    def create(
        self,
        title: str,
        model: str | None,
        scheme: str,
        *,
        system_prompt: str | None = None,
        sampling: SamplingChoice | None = None,
        thinking: ThinkingChoice | None = None,
        thinking_budget: int | None = None,
        adapter: str | None = None,
    ) -> Conversation:
        """Create an empty conversation. Its title counts as automatic until the user renames it.

        Raises:
            UnknownScheme: if there is no such scheme.
        """
        now = time.time()
        conversation = Conversation(
            new_id(),
            replace_surrogates(title),
            model,
            scheme_setting(scheme),
            now,
            now,
            None,
            True,
            None if system_prompt is None else replace_surrogates(system_prompt),
            sampling or SamplingChoice(),
            thinking=thinking,
            thinking_budget=thinking_budget,
            adapter=None if adapter is None else replace_surrogates(adapter),
            utc_offset=_utc_offset(now),
        )
        with self._transaction(conversation.id, creates=True) as connection:
            insert_conversation(connection, conversation)
        return conversation

    def rename(self, conversation_id: str, title: str, automatic: bool = False) -> None:
        """Set a conversation's title; ``automatic`` if the user did not choose it."""
        self._set(conversation_id, "title = ?, title_is_automatic = ?", title, automatic)

    def set_scheme(self, conversation_id: str, scheme: str) -> None:
        """Set a conversation's cache scheme, or ``auto``."""
        self._set(conversation_id, "scheme = ?", scheme_setting(scheme))

    def set_model(self, conversation_id: str, model: str | None) -> None:
        """Set a conversation's model."""
        self._set(conversation_id, "model = ?", model)

    def set_system_prompt(self, conversation_id: str, text: str | None) -> None:
        """Set a conversation's system prompt, which all its branches share."""
        self._set(conversation_id, "system_prompt = ?", text)

    def set_sampling(self, conversation_id: str, choice: SamplingChoice) -> None:
        """Set a conversation's sampling settings."""
        self._set(conversation_id, "sampling = ?", to_column(choice))

    def set_thinking(
        self, conversation_id: str, thinking: ThinkingChoice | None, budget: int | None = None
    ) -> None:
        """Set whether and how much the model reasons in a conversation."""
        self._set(conversation_id, "thinking = ?, thinking_budget = ?", thinking, budget)

    def set_adapter(self, conversation_id: str, adapter: str | None) -> None:
        """Set a conversation's LoRA adapter: a folder, ``NO_ADAPTER``, or ``None`` for the settings'."""
        self._set(conversation_id, "adapter = ?", adapter)

    def set_draft(self, conversation_id: str, text: str) -> None:
        """Save a conversation's unsent text (not related to draft models)."""
        self._set(conversation_id, "draft = ?", text)

    def set_pinned(self, conversation_id: str, pinned: bool) -> None:
        """Pin a conversation to the top of the list, or no longer."""
        self._set(conversation_id, "pinned_at = ?", time.time() if pinned else None)

    def delete(self, conversation_id: str) -> None:
        """Delete a conversation with all branches. ``undelete`` can restore it for 24 hours."""
        self._set(conversation_id, "deleted_at = ?", time.time())

    def undelete(self, conversation_id: str) -> Conversation:
        """Restore a deleted conversation.

        Raises:
            UnknownConversation: if it is not deleted, or was purged.
        """
        with self._writing_to(conversation_id) as connection:
            cursor = connection.execute(
                "UPDATE conversations SET deleted_at = NULL WHERE id = ? AND deleted_at IS NOT NULL",
                (conversation_id,),
            )
            require_change(cursor, conversation_id)
        return self.conversation(conversation_id)

    def deleted(self) -> list[Conversation]:
        """The deleted conversations that can still be restored, last deleted first."""
        rows = self.rows(
            f"""
            SELECT {CONVERSATION_COLUMNS} FROM conversations WHERE deleted_at IS NOT NULL
            ORDER BY deleted_at DESC, number DESC
            """
        )
        found = self._with_queued([conversation_from_row(row) for row in rows])
        return sorted(
            (one for one in found if one.deleted_at is not None),
            key=lambda one: one.deleted_at or 0,
            reverse=True,
        )

    def purge(self, before: float) -> int:
        """Permanently remove conversations deleted at or before a time; returns how many.

        No file contains their text afterwards.
        """
        return message_tree.purge(self, before)

    # Messages

    def messages(self, conversation_id: str) -> list[Message]:
        """The shown branch, from its first message to the head."""
        return message_tree.shown_branch(self._of(conversation_id), conversation_id)

    def tree(self, conversation_id: str) -> list[Message]:
        """All messages of a conversation on all branches, oldest first (parents before children)."""
        query = f"SELECT {MESSAGE_COLUMNS} FROM messages WHERE conversation_id = ? ORDER BY number"
        return [message_from_row(row) for row in self._of(conversation_id).rows(query, conversation_id)]

    def message(self, message_id: str) -> Message:
        """One message.

        Raises:
            UnknownMessage: if there is no such message.
        """
        rows = self._with(message_id).rows(f"SELECT {MESSAGE_COLUMNS} FROM messages WHERE id = ?", message_id)
        if not rows:
            raise UnknownMessage(message_id)
        return message_from_row(rows[0])

    def add_message(
        self,
        conversation_id: str,
        role: Role,
        content: str,
        status: Status = "complete",
        **figures: Unpack[ReplyFigures],
    ) -> Message:
        """Append a message to the shown branch; it becomes the head.

        Raises:
            UnknownConversation: if there is no such conversation.
        """
        with self._writing_to(conversation_id) as connection:
            row = connection.execute(
                "SELECT head_id FROM conversations WHERE id = ? AND deleted_at IS NULL", (conversation_id,)
            ).fetchone()
            if row is None:
                raise UnknownConversation(conversation_id)
            return message_tree.append(
                connection, conversation_id, row["head_id"], role, content, status, figures
            )

    def add_sibling(
        self, message_id: str, content: str, status: Status = "complete", **figures: Unpack[ReplyFigures]
    ) -> Message:
        """Add another version of a message (same role and parent); it becomes the head.

        To edit a question or, with content "" and status "unfinished", to regenerate a reply.

        Raises:
            UnknownMessage: if there is no such message.
        """
        message = self.message(message_id)
        chat = message.conversation_id
        with self._writing_to(chat) as connection:
            return message_tree.append(
                connection, chat, message.parent_id, message.role, content, status, figures
            )

    def continue_reply(self, message_id: str) -> Message:
        """Make a reply unfinished and the head again, so that more text can be appended.

        A reply that has later messages below it stays as it is: a new sibling with its text is returned.

        Raises:
            UnknownMessage: if there is no such reply.
        """
        reply = self.message(message_id)
        if reply.role != "assistant":
            raise UnknownMessage(message_id)
        if self._with(message_id).rows("SELECT 1 FROM messages WHERE parent_id = ? LIMIT 1", message_id):
            return self.add_sibling(
                message_id, reply.content, "unfinished", model=reply.model, reasoning=reply.reasoning
            )
        with self._writing_to(reply.conversation_id) as connection:
            connection.execute("UPDATE messages SET status = 'unfinished' WHERE id = ?", (message_id,))
            message_tree.set_head(connection, reply.conversation_id, message_id, time.time())
            return self.message(message_id)

    def update_message(self, message_id: str, **changes: Unpack[MessageChanges]) -> Message:
        """Change the given fields of a message.

        Raises:
            UnknownMessage: if there is no such message.
        """
        known = MessageChanges.__annotations__.keys()
        if (unknown := changes.keys() - known) or not changes:
            raise TypeError(f"a message has no {', '.join(unknown)}" if unknown else "nothing to change")
        message = self.message(message_id)
        with self._writing_to(message.conversation_id) as connection:
            message_tree.update(connection, message, changes)
            return self.message(message_id)

    def delete_message(self, message_id: str) -> RemovedMessage:
        """Remove one message from the file; its children on all branches attach to its parent.

        Returns:
            What ``restore_message`` needs to undo it.

        Raises:
            UnknownMessage: if there is no such message.
        """
        message = self.message(message_id)
        if self._queue is not None:
            self._queue.forget_written()  # a replica does not know the row numbers that its messages got
        with self._writing_to(message.conversation_id) as connection:
            removed = message_tree.delete(connection, message)
            if self._queue is None:
                message_tree.erase_from_index(connection)
        if self._queue is None:
            self.truncate_log()
        return removed

    def restore_message(self, removed: RemovedMessage) -> Message:
        """Undo ``delete_message``.

        Raises:
            UnknownConversation, UnknownMessage: if its conversation or its parent no longer exists.
        """
        message = removed.message
        with self._writing_to(message.conversation_id) as connection:
            if message.parent_id is not None:
                self.message(message.parent_id)
            message_tree.restore(connection, removed)
        return message

    def begin_branch(
        self, conversation_id: str, texts: Sequence[tuple[Role, str]], copied: Sequence[Message] = ()
    ) -> None:
        """Start a branch at the root with new messages and copies of others; the last one becomes the head.

        Raises:
            UnknownConversation: if there is no such conversation.
        """
        with self._writing_to(conversation_id) as connection:
            parent: str | None = None
            for role, content in texts:
                message = message_tree.append(
                    connection, conversation_id, parent, role, content, "complete", {}
                )
                parent = message.id
            for original in copied:
                parent = message_tree.append_copy(connection, original, parent).id

    def totals(self, conversation_id: str) -> Totals:
        """A conversation's message count, tokens and mean decode speed over all branches."""
        return message_tree.totals(self._of(conversation_id), conversation_id)

    def search(self, text: str, limit: int = 50) -> list[SearchHit]:
        """Titles, then messages on all branches, that contain every word of ``text``.

        Words match in any case and inside other words; "double quotes" search for a phrase. Any text is a
        valid query.
        """
        return search.search(self, text, limit)

    # Branches

    def rewind_to(self, conversation_id: str, message_id: str | None) -> None:
        """Make a message the head (``None``: show no message). Deletes nothing.

        Raises:
            UnknownConversation, UnknownMessage: if there is no such conversation, or it has no such message.
        """
        with self._writing_to(conversation_id) as connection:
            if message_id is not None and self.message(message_id).conversation_id != conversation_id:
                raise UnknownMessage(message_id)
            message_tree.set_head(connection, conversation_id, message_id)

    def select(self, message_id: str) -> Message:
        """Show the newest branch through a message; returns the new head."""
        leaf = self.newest_leaf(message_id)
        self.rewind_to(leaf.conversation_id, leaf.id)
        return leaf

    def siblings(self, message_id: str) -> list[Message]:
        """All versions of a message (same parent), oldest first."""
        return message_tree.siblings(self._with(message_id), self.message(message_id))

    def version_positions(self, conversation_id: str) -> dict[str, VersionPosition]:
        """The position among its siblings of each message of the shown branch, by message id."""
        return message_tree.version_positions(self._of(conversation_id), conversation_id)

    def newest_leaf(self, message_id: str) -> Message:
        """The last message of the newest branch through a message.

        Raises:
            UnknownMessage: if there is no such message.
        """
        return self.message(message_tree.newest_leaf_id(self._with(message_id), message_id))

    def _set(self, conversation_id: str, assignments: str, *values: object) -> None:
        with self._writing_to(conversation_id) as connection:
            cursor = connection.execute(
                f"UPDATE conversations SET {assignments} WHERE id = ? AND deleted_at IS NULL",
                (*map(to_sql, values), conversation_id),
            )
            require_change(cursor, conversation_id)

    @contextmanager
    def _writing_to(self, conversation_id: str) -> Iterator[sqlite3.Connection]:
        """One transaction that writes one conversation.

        Raises:
            ConversationInUse: if another process holds its lease.
        """
        self.leases.check(conversation_id)
        with self._transaction(conversation_id) as connection:
            yield connection

    @contextmanager
    def _transaction(self, conversation_id: str, creates: bool = False) -> Iterator[sqlite3.Connection]:
        queued = None if self._queue is None else self._queue.writing(self, conversation_id, creates)
        with queued or self.writing() as connection:
            yield connection

    def _of(self, conversation_id: str) -> Rows:
        """The database that holds the current rows of a conversation: this one, or a replica of the queue."""
        return (self._queue.replica(conversation_id) if self._queue is not None else None) or self

    def _with(self, message_id: str) -> Rows:
        """The database that holds the current rows of a message's conversation."""
        query = "SELECT 1 FROM messages WHERE id = ?"
        replicas = self._queue.replicas() if self._queue is not None else []
        return next((one for one in replicas if one.rows(query, message_id)), self)

    def _with_queued(self, conversations: list[Conversation]) -> list[Conversation]:
        """Conversations of the file, with the changes that are still in the queue."""
        found = {one.id: one for one in conversations}
        for replica in self._queue.replicas() if self._queue is not None else []:
            for row in replica.rows(f"SELECT {CONVERSATION_COLUMNS} FROM conversations"):
                found[row["id"]] = conversation_from_row(row)
        return list(found.values())


def _utc_offset(time: float) -> int:
    """Seconds of this machine's local time ahead of UTC at a Unix time."""
    offset = datetime.fromtimestamp(time).astimezone().utcoffset() or timedelta()
    return round(offset.total_seconds())

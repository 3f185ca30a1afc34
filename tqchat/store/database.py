"""Conversations and messages in SQLite. What a method wrote is on disk when it returns."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import fields
from typing import Unpack

from tqchat.kv.scheme import AUTO
from tqchat.store import search
from tqchat.store.conversations import KEEP_DELETED, Conversations, expect
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
from tqchat.store.records import (
    Conversation,
    Figures,
    Message,
    MessageChanges,
    Place,
    Removed,
    Role,
    SearchHit,
    Status,
    Totals,
)
from tqchat.store.rows import MESSAGE, column, insert_message, message_from, new_id, storable
from tqchat.store.sampling import SamplingChoice

__all__ = [
    "AUTO",
    "KEEP_DELETED",
    "Conversation",
    "ConversationInUse",
    "Database",
    "DatabaseBusy",
    "DatabaseTooNew",
    "DatabaseUnreadable",
    "Message",
    "Place",
    "Removed",
    "SamplingChoice",
    "SearchHit",
    "StoreError",
    "StoreFull",
    "Totals",
    "UnknownConversation",
    "UnknownMessage",
]

_OF_BRANCH = ", ".join(f"m.{field.name}" for field in fields(Message))
_BRANCH = """
    WITH RECURSIVE branch (id, depth) AS (
        SELECT head_id, 0 FROM conversations WHERE id = ? AND deleted_at IS NULL
        UNION ALL
        SELECT m.parent_id, branch.depth + 1 FROM branch JOIN messages m ON m.id = branch.id
    )
"""


class Database(Conversations):
    """The open database. Used from the thread that opened it; other processes may have the same file open.

    A conversation whose lease another process has can be read, and every method that would write it raises
    ConversationInUse.

    Raises:
        DatabaseTooNew: if a later tqchat wrote the file.
        DatabaseUnreadable: if it is damaged, another program's, or may not be opened. It is left as it was.
        StoreFull: if there is no room to create it.
    """

    def messages(self, conversation_id: str) -> list[Message]:
        """The branch that is shown, from its first message to the head."""
        rows = self.rows(
            f"""
            {_BRANCH}
            SELECT {_OF_BRANCH} FROM branch JOIN messages m ON m.id = branch.id ORDER BY depth DESC
            """,
            conversation_id,
        )
        return [message_from(row) for row in rows]

    def tree(self, conversation_id: str) -> list[Message]:
        """Every message of a conversation, on all branches, the oldest first: parents before children."""
        rows = self.rows(
            f"SELECT {MESSAGE} FROM messages WHERE conversation_id = ? ORDER BY number", conversation_id
        )
        return [message_from(row) for row in rows]

    def message(self, message_id: str) -> Message:
        """One message.

        Raises:
            UnknownMessage: if it is gone.
        """
        rows = self.rows(f"SELECT {MESSAGE} FROM messages WHERE id = ?", message_id)
        if not rows:
            raise UnknownMessage(message_id)
        return message_from(rows[0])

    def add_message(
        self,
        conversation_id: str,
        role: Role,
        content: str,
        status: Status = "complete",
        **figures: Unpack[Figures],
    ) -> Message:
        """Append a message to the branch that is shown; it becomes the head.

        Raises:
            UnknownConversation: if the conversation is gone.
        """
        with self._writing_to(conversation_id) as connection:
            row = connection.execute(
                "SELECT head_id FROM conversations WHERE id = ? AND deleted_at IS NULL", (conversation_id,)
            ).fetchone()
            if row is None:
                raise UnknownConversation(conversation_id)
            return _append(connection, conversation_id, row["head_id"], role, content, status, figures)

    def add_sibling(
        self, message_id: str, content: str, status: Status = "complete", **figures: Unpack[Figures]
    ) -> Message:
        """Say a message differently: another one of the same role and parent, which becomes the head.

        So a question is edited, and (with "" and "unfinished") a reply begun again. The first one stays.

        Raises:
            UnknownMessage: if the message is gone.
        """
        message = self.message(message_id)
        with self._writing_to(message.conversation_id) as connection:
            return _append(
                connection,
                message.conversation_id,
                message.parent_id,
                message.role,
                content,
                status,
                figures,
            )

    def continue_reply(self, message_id: str) -> Message:
        """Make a reply ready to grow again: unfinished, and the head.

        It is the very same message while nothing was said after it, for then its words stay and more follow.
        Otherwise it is a new sibling that begins with them.

        Raises:
            UnknownMessage: if there is no such reply.
        """
        reply = self.message(message_id)
        if reply.role != "assistant":
            raise UnknownMessage(message_id)
        if self.rows("SELECT 1 FROM messages WHERE parent_id = ? LIMIT 1", message_id):
            return self.add_sibling(message_id, reply.content, "unfinished", model=reply.model)
        with self._writing_to(reply.conversation_id) as connection:
            connection.execute("UPDATE messages SET status = 'unfinished' WHERE id = ?", (message_id,))
            _set_head(connection, reply.conversation_id, message_id, time.time())
            return self.message(message_id)

    def update_message(self, message_id: str, **changes: Unpack[MessageChanges]) -> Message:
        """Change a message's content, status or figures; what is not named stays.

        Raises:
            UnknownMessage: if it is gone.
        """
        known = MessageChanges.__annotations__.keys()
        if (unknown := changes.keys() - known) or not changes:
            raise TypeError(f"a message has no {', '.join(unknown)}" if unknown else "nothing to change")
        assignments = ", ".join(f"{name} = ?" for name in changes)
        conversation_id = self.message(message_id).conversation_id
        with self._writing_to(conversation_id) as connection:
            values = map(column, changes.values())
            connection.execute(f"UPDATE messages SET {assignments} WHERE id = ?", (*values, message_id))
            connection.execute(
                "UPDATE conversations SET updated_at = ? WHERE id = ?", (time.time(), conversation_id)
            )
            return self.message(message_id)

    def delete_message(self, message_id: str) -> Removed:
        """Delete one message for good; what followed it, on every branch, follows what was before it.

        Returns what ``restore_message`` takes: nothing of it is left in the file.

        Raises:
            UnknownMessage: if it is gone already.
        """
        message = self.message(message_id)
        with self._writing_to(message.conversation_id) as connection:
            (number,) = connection.execute(
                "SELECT number FROM messages WHERE id = ?", (message_id,)
            ).fetchone()
            rows = connection.execute("SELECT id FROM messages WHERE parent_id = ?", (message_id,)).fetchall()
            connection.execute(
                "UPDATE messages SET parent_id = ? WHERE parent_id = ?", (message.parent_id, message_id)
            )
            heads = connection.execute(
                "UPDATE conversations SET head_id = ? WHERE id = ? AND head_id = ?",
                (message.parent_id, message.conversation_id, message_id),
            )
            connection.execute("DELETE FROM messages WHERE id = ?", (message_id,))
            return Removed(message, number, tuple(row["id"] for row in rows), heads.rowcount > 0)

    def restore_message(self, removed: Removed) -> Message:
        """Bring a deleted message back to where it was, before what follows it and is still there.

        Raises:
            UnknownConversation, UnknownMessage: if its conversation, or what it followed, is gone.
        """
        message = removed.message
        with self._writing_to(message.conversation_id) as connection:
            if message.parent_id is not None:
                self.message(message.parent_id)
            # A parent's number is below its children's; its own may have been given to another one since.
            taken = connection.execute(
                "SELECT 1 FROM messages WHERE number = ?1 OR (id = ?2 AND number > ?1)",
                (removed.number, message.parent_id),
            ).fetchone()
            number = None if taken else removed.number
            insert_message(connection, message, number)
            if number is not None:
                marks = ", ".join("?" for _ in removed.children)
                connection.execute(
                    f"UPDATE messages SET parent_id = ? WHERE number > ? AND id IN ({marks})",
                    (message.id, number, *removed.children),
                )
            if removed.heads:
                _set_head(connection, message.conversation_id, message.id)
        return message

    def begin_branch(self, conversation_id: str, said: Sequence[tuple[Role, str]]) -> Message:
        """Begin the conversation anew with these messages, as a branch of its own; its end is the head.

        Raises:
            UnknownConversation: if the conversation is gone.
        """
        with self._writing_to(conversation_id) as connection:
            parent: str | None = None
            for role, content in said:
                message = _append(connection, conversation_id, parent, role, content, "complete", {})
                parent = message.id
            return message

    def totals(self, conversation_id: str) -> Totals:
        """A conversation's figures, over all its branches."""
        (row,) = self.rows(
            """
            SELECT count(*), coalesce(sum(tokens), 0),
                sum(tokens) FILTER (WHERE tokens > 0 AND tokens_per_second > 0)
                / sum(tokens / tokens_per_second) FILTER (WHERE tokens > 0 AND tokens_per_second > 0)
            FROM messages WHERE conversation_id = ?
            """,
            conversation_id,
        )
        return Totals(*row)

    def search(self, text: str, limit: int = 50) -> list[SearchHit]:
        """Titles and messages, on every branch, that hold every word of a text; titles come first.

        Words are found anywhere, in any case, also as parts of others; "double quotes" keep words together.
        There is no text that cannot be searched for.
        """
        return search.search(self, text, limit)

    # Branches

    def rewind_to(self, conversation_id: str, message_id: str | None) -> None:
        """Show the branch that ends in this message, or none at all; the next message grows from there.

        Nothing is deleted.

        Raises:
            UnknownConversation, UnknownMessage: if one is gone, or the message is another conversation's.
        """
        with self._writing_to(conversation_id) as connection:
            if message_id is not None and self.message(message_id).conversation_id != conversation_id:
                raise UnknownMessage(message_id)
            _set_head(connection, conversation_id, message_id)

    def select(self, message_id: str) -> Message:
        """Show the branch through this message that was last written to; its end, the new head."""
        leaf = self.newest_leaf(message_id)
        self.rewind_to(leaf.conversation_id, leaf.id)
        return leaf

    def siblings(self, message_id: str) -> list[Message]:
        """The message and those with the same parent (the other replies to one question), oldest first."""
        message = self.message(message_id)
        rows = self.rows(
            f"SELECT {MESSAGE} FROM messages WHERE conversation_id = ? AND parent_id IS ? ORDER BY number",
            message.conversation_id,
            message.parent_id,
        )
        return [message_from(row) for row in rows]

    def places(self, conversation_id: str) -> dict[str, Place]:
        """Where each message of the branch that is shown stands among its siblings, by its id."""
        rows = self.rows(
            f"""
            {_BRANCH}
            SELECT m.id, s.id AS sibling FROM branch JOIN messages m ON m.id = branch.id
            JOIN messages s ON s.conversation_id = m.conversation_id AND s.parent_id IS m.parent_id
            ORDER BY depth DESC, s.number
            """,
            conversation_id,
        )
        families: dict[str, list[str]] = {}
        for row in rows:
            families.setdefault(row["id"], []).append(row["sibling"])
        return {message_id: _place(message_id, family) for message_id, family in families.items()}

    def newest_leaf(self, message_id: str) -> Message:
        """The end of the branch through this message that was begun last: where to rewind to for it.

        Raises:
            UnknownMessage: if the message is gone.
        """
        rows = self.rows(
            """
            WITH RECURSIVE below (id) AS (
                SELECT ?
                UNION ALL
                SELECT messages.id FROM below JOIN messages ON messages.parent_id = below.id
            )
            SELECT m.id FROM below JOIN messages m ON m.id = below.id ORDER BY m.number DESC LIMIT 1
            """,
            message_id,
        )
        if not rows:
            raise UnknownMessage(message_id)
        return self.message(rows[0]["id"])


def _append(
    connection: sqlite3.Connection,
    conversation_id: str,
    parent_id: str | None,
    role: Role,
    content: str,
    status: Status,
    figures: Figures,
) -> Message:
    message = Message(
        new_id(), conversation_id, parent_id, role, storable(content), status, time.time(), **figures
    )
    insert_message(connection, message)
    _set_head(connection, conversation_id, message.id, message.created_at)
    return message


def _set_head(
    connection: sqlite3.Connection,
    conversation_id: str,
    message_id: str | None,
    updated_at: float | None = None,
) -> None:
    changed = connection.execute(
        """
        UPDATE conversations SET head_id = ?, updated_at = coalesce(?, updated_at)
        WHERE id = ? AND deleted_at IS NULL
        """,
        (message_id, updated_at, conversation_id),
    )
    expect(changed, conversation_id)


def _place(message_id: str, family: list[str]) -> Place:
    at = family.index(message_id)
    before = family[at - 1] if at else None
    after = family[at + 1] if at + 1 < len(family) else None
    return Place(at + 1, len(family), before, after)

"""SQL of the message tree: branches, siblings, the head, deletion and restoring of one message."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

from tqchat.store.database_file import DatabaseFile, Rows
from tqchat.store.errors import UnknownConversation, UnknownMessage
from tqchat.store.records import Message, RemovedMessage, ReplyFigures, Role, Status, Totals, VersionPosition
from tqchat.store.rows import (
    MESSAGE_COLUMNS,
    insert_message,
    message_from_row,
    new_id,
    replace_surrogates,
    to_sql,
)

_INDEXES = ("messages_index", "titles_index")
_BRANCH_COLUMNS = ", ".join(f"m.{field.name}" for field in fields(Message))
# A parent's number is below its children's. Where it is not, in a damaged file, the branch begins: it could
# otherwise be a circle.
_BRANCH = """
    WITH RECURSIVE branch (id, depth) AS (
        SELECT head_id, 0 FROM conversations WHERE id = ? AND deleted_at IS NULL
        UNION ALL
        SELECT parent.id, branch.depth + 1 FROM branch
        JOIN messages m ON m.id = branch.id
        JOIN messages parent ON parent.id = m.parent_id AND parent.number < m.number
    )
"""


def shown_branch(file: Rows, conversation_id: str) -> list[Message]:
    """The messages from the first one to the head."""
    rows = file.rows(
        f"""
        {_BRANCH}
        SELECT {_BRANCH_COLUMNS} FROM branch JOIN messages m ON m.id = branch.id ORDER BY depth DESC
        """,
        conversation_id,
    )
    return [message_from_row(row) for row in rows]


def siblings(file: Rows, message: Message) -> list[Message]:
    """All messages with the same parent as ``message``, oldest first."""
    rows = file.rows(
        f"""
        SELECT {MESSAGE_COLUMNS} FROM messages WHERE conversation_id = ? AND parent_id IS ? ORDER BY number
        """,
        message.conversation_id,
        message.parent_id,
    )
    return [message_from_row(row) for row in rows]


def version_positions(file: Rows, conversation_id: str) -> dict[str, VersionPosition]:
    """The position among its siblings of each message of the shown branch, by message id."""
    rows = file.rows(
        f"""
        {_BRANCH}
        SELECT m.id, s.id AS sibling FROM branch JOIN messages m ON m.id = branch.id
        JOIN messages s ON s.conversation_id = m.conversation_id AND s.parent_id IS m.parent_id
        ORDER BY depth DESC, s.number
        """,
        conversation_id,
    )
    groups: dict[str, list[str]] = {}
    for row in rows:
        groups.setdefault(row["id"], []).append(row["sibling"])
    return {message_id: _position(message_id, group) for message_id, group in groups.items()}


def newest_leaf_id(file: Rows, message_id: str) -> str:
    """The newest message among a message and its descendants.

    Raises:
        UnknownMessage: if there is no such message.
    """
    rows = file.rows(
        """
        WITH RECURSIVE below (id) AS (
            SELECT ?
            UNION
            SELECT messages.id FROM below JOIN messages ON messages.parent_id = below.id
        )
        SELECT m.id FROM below JOIN messages m ON m.id = below.id ORDER BY m.number DESC LIMIT 1
        """,
        message_id,
    )
    if not rows:
        raise UnknownMessage(message_id)
    return str(rows[0]["id"])


def totals(file: Rows, conversation_id: str) -> Totals:
    """Message count, tokens and mean decode speed over all branches."""
    (row,) = file.rows(
        """
        SELECT count(*), coalesce(sum(tokens), 0),
            sum(tokens) FILTER (WHERE tokens > 0 AND tokens_per_second > 0)
            / sum(tokens / tokens_per_second) FILTER (WHERE tokens > 0 AND tokens_per_second > 0)
        FROM messages WHERE conversation_id = ?
        """,
        conversation_id,
    )
    return Totals(*row)


def append(
    connection: sqlite3.Connection,
    conversation_id: str,
    parent_id: str | None,
    role: Role,
    content: str,
    status: Status,
    figures: ReplyFigures,
) -> Message:
    """Add a message below ``parent_id`` and make it the head."""
    message = Message(
        new_id(),
        conversation_id,
        parent_id,
        role,
        replace_surrogates(content),
        status,
        time.time(),
        **figures,
    )
    insert_message(connection, message)
    set_head(connection, conversation_id, message.id, message.created_at)
    return message


def append_copy(connection: sqlite3.Connection, message: Message, parent_id: str | None) -> Message:
    """Add a message again below ``parent_id``, without its figures, which count once; it becomes the head."""
    copy = Message(
        new_id(),
        message.conversation_id,
        parent_id,
        message.role,
        message.content,
        message.status,
        message.created_at,
        model=message.model,
        reasoning=message.reasoning,
        reasoning_seconds=message.reasoning_seconds,
    )
    insert_message(connection, copy)
    set_head(connection, copy.conversation_id, copy.id, time.time())
    return copy


def set_head(
    connection: sqlite3.Connection,
    conversation_id: str,
    message_id: str | None,
    updated_at: float | None = None,
) -> None:
    """Set the last message of the shown branch.

    Raises:
        UnknownConversation: if there is no such conversation.
    """
    cursor = connection.execute(
        """
        UPDATE conversations SET head_id = ?, updated_at = coalesce(?, updated_at)
        WHERE id = ? AND deleted_at IS NULL
        """,
        (message_id, updated_at, conversation_id),
    )
    require_change(cursor, conversation_id)


def update(connection: sqlite3.Connection, message: Message, changes: Mapping[str, object]) -> None:
    """Write the given columns of a message."""
    assignments = ", ".join(f"{name} = ?" for name in changes)
    values = map(to_sql, changes.values())
    connection.execute(f"UPDATE messages SET {assignments} WHERE id = ?", (*values, message.id))
    connection.execute(
        "UPDATE conversations SET updated_at = ? WHERE id = ?", (time.time(), message.conversation_id)
    )


def delete(connection: sqlite3.Connection, message: Message) -> RemovedMessage:
    """Delete a message and attach its children to its parent."""
    (number,) = connection.execute("SELECT number FROM messages WHERE id = ?", (message.id,)).fetchone()
    # A message that is its own parent, in a damaged file, would take its children with it.
    parent_id = None if message.parent_id == message.id else message.parent_id
    rows = connection.execute("SELECT id FROM messages WHERE parent_id = ?", (message.id,)).fetchall()
    connection.execute("UPDATE messages SET parent_id = ? WHERE parent_id = ?", (parent_id, message.id))
    heads = connection.execute(
        "UPDATE conversations SET head_id = ? WHERE id = ? AND head_id = ?",
        (parent_id, message.conversation_id, message.id),
    )
    connection.execute("DELETE FROM messages WHERE id = ?", (message.id,))
    return RemovedMessage(
        replace(message, parent_id=parent_id), number, tuple(row["id"] for row in rows), heads.rowcount > 0
    )


def restore(connection: sqlite3.Connection, removed: RemovedMessage) -> None:
    """Insert a deleted message again, above those of its former children that still exist."""
    message = removed.message
    insert_message(connection, message, removed.number)
    marks = ", ".join("?" for _ in removed.children)
    connection.execute(
        f"""
        UPDATE messages SET parent_id = ?
        WHERE number > (SELECT number FROM messages WHERE id = ?) AND id IN ({marks})
        """,
        (message.id, message.id, *removed.children),
    )
    if removed.was_head:
        set_head(connection, message.conversation_id, message.id)


def purge(file: DatabaseFile, before: float) -> int:
    """Permanently remove conversations deleted at or before a time; returns how many."""
    due = "SELECT id FROM conversations WHERE deleted_at <= ?"
    # Usually there is nothing to purge, and no write lock is needed to find out.
    if not file.rows(due, before):
        return 0
    with file.writing() as connection:
        connection.execute(f"UPDATE conversations SET head_id = NULL WHERE id IN ({due})", (before,))
        removed = connection.execute(f"DELETE FROM conversations WHERE id IN ({due})", (before,)).rowcount
        erase_from_index(connection)
    file.truncate_log()
    return removed


def erase_from_index(connection: sqlite3.Connection, indexes: Sequence[str] = _INDEXES) -> None:
    """Remove deleted text from the search index, which only marks it as deleted until segments are merged."""
    for index in indexes:
        connection.execute(f"INSERT INTO {index} ({index}) VALUES ('optimize')")


def require_change(cursor: sqlite3.Cursor, conversation_id: str) -> None:
    """Raise UnknownConversation if a statement changed no row."""
    if cursor.rowcount == 0:
        raise UnknownConversation(conversation_id)


def _position(message_id: str, group: list[str]) -> VersionPosition:
    if message_id not in group:  # the file is damaged: an index does not agree with its table
        return VersionPosition(1, 1, None, None)
    at = group.index(message_id)
    previous_id = group[at - 1] if at else None
    next_id = group[at + 1] if at + 1 < len(group) else None
    return VersionPosition(at + 1, len(group), previous_id, next_id)

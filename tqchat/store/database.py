"""Conversations and messages in SQLite. What a method wrote is on disk when it returns."""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

from tqchat.paths import make_private_folder
from tqchat.store.errors import (
    DatabaseBusy,
    DatabaseTooNew,
    DatabaseUnreadable,
    StoreError,
    StoreFull,
    UnknownConversation,
    UnknownMessage,
    translate,
)
from tqchat.store.migrations import check, migrate
from tqchat.store.records import Conversation, Message, MessageChanges, Role, Status

__all__ = [
    "Conversation",
    "Database",
    "DatabaseBusy",
    "DatabaseTooNew",
    "DatabaseUnreadable",
    "Message",
    "StoreError",
    "StoreFull",
    "UnknownConversation",
    "UnknownMessage",
]

_BUSY_SECONDS = 5.0

_CONVERSATION = ", ".join(field.name for field in fields(Conversation))
_MESSAGE = ", ".join(field.name for field in fields(Message))
_MESSAGE_OF_M = ", ".join(f"m.{field.name}" for field in fields(Message))


class Database:
    """The open database. Used from the thread that opened it; other processes may have the same file open.

    Raises:
        DatabaseTooNew: if a later tqchat wrote the file.
        DatabaseUnreadable: if it is damaged, another program's, or may not be opened. It is left as it was.
        StoreFull: if there is no room to create it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        make_private_folder(path.parent)
        try:
            # SQLite gives the log files beside it the same mode.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
        except OSError as error:
            raise DatabaseUnreadable(path, (error.strerror or str(error)).lower()) from error
        except sqlite3.Error as error:
            raise translate(error, path) from error
        self._connection.row_factory = sqlite3.Row
        try:
            with self._translated():
                self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        # Before anything that writes: a file that is not ours stays as it is.
        check(self._connection, self.path)
        self._use_wal()
        # FULL, not WAL's usual NORMAL: under NORMAL a commit survives kill -9 but not a power loss, because
        # the log is only flushed at checkpoints. One flush for each message is nothing beside generating the
        # reply. On a Mac only F_FULLFSYNC reaches the medium; elsewhere the two pragmas after it do nothing.
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA fullfsync = ON")
        self._connection.execute("PRAGMA checkpoint_fullfsync = ON")
        self._connection.execute("PRAGMA foreign_keys = ON")
        migrate(self._connection, self.path)

    def _use_wal(self) -> None:
        # Two first starts at once: SQLite does not wait for its lock to change the journal mode, so we do.
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def close(self) -> None:
        """Close the file. Everything is on disk already."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # Conversations

    def conversations(self) -> list[Conversation]:
        """Every conversation, the one last written to first."""
        rows = self._select(f"SELECT {_CONVERSATION} FROM conversations ORDER BY updated_at DESC, rowid DESC")
        return [_conversation(row) for row in rows]

    def conversation(self, conversation_id: str) -> Conversation:
        """The conversation of that id, or of the only id that begins so.

        Raises:
            UnknownConversation: if there is none, or more than one.
        """
        rows = self._select(
            f"""
            SELECT {_CONVERSATION} FROM conversations
            WHERE substr(id, 1, length(?1)) = ?1 ORDER BY id != ?1
            """,
            conversation_id,
        )
        if not rows or not conversation_id:
            raise UnknownConversation(conversation_id)
        if len(rows) > 1 and rows[0]["id"] != conversation_id:
            raise UnknownConversation(conversation_id, matches=len(rows))
        return _conversation(rows[0])

    def create(self, title: str, model: str | None, scheme: str) -> Conversation:
        """A new, empty conversation. Its title counts as automatic until someone renames it."""
        now = time.time()
        conversation = Conversation(secrets.token_hex(8), title, model, scheme, now, now, None, True)
        with self._write() as connection:
            connection.execute(
                f"INSERT INTO conversations ({_CONVERSATION}) VALUES ({_marks(Conversation)})",
                tuple(getattr(conversation, field.name) for field in fields(Conversation)),
            )
        return conversation

    def rename(self, conversation_id: str, title: str, automatic: bool = False) -> None:
        """Give a conversation another title; ``automatic`` if no person chose it."""
        self._change(conversation_id, "title = ?, title_is_automatic = ?", title, automatic)

    def set_scheme(self, conversation_id: str, scheme: str) -> None:
        """Remember the cache scheme of a conversation."""
        self._change(conversation_id, "scheme = ?", scheme)

    def set_model(self, conversation_id: str, model: str | None) -> None:
        """Remember the model of a conversation."""
        self._change(conversation_id, "model = ?", model)

    def delete(self, conversation_id: str) -> None:
        """Delete a conversation and all its messages, on every branch."""
        with self._write() as connection:
            connection.execute("UPDATE conversations SET head_id = NULL WHERE id = ?", (conversation_id,))
            _expect(
                connection.execute("DELETE FROM conversations WHERE id = ?", (conversation_id,)),
                conversation_id,
            )

    # Messages

    def messages(self, conversation_id: str) -> list[Message]:
        """The branch that is shown, from its first message to the head."""
        rows = self._select(
            f"""
            WITH RECURSIVE branch (id, depth) AS (
                SELECT head_id, 0 FROM conversations WHERE id = ?
                UNION ALL
                SELECT m.parent_id, branch.depth + 1 FROM branch JOIN messages m ON m.id = branch.id
            )
            SELECT {_MESSAGE_OF_M} FROM branch JOIN messages m ON m.id = branch.id ORDER BY branch.depth DESC
            """,
            conversation_id,
        )
        return [Message(**dict(row)) for row in rows]

    def add_message(
        self,
        conversation_id: str,
        role: Role,
        content: str,
        status: Status = "complete",
        *,
        tokens: int | None = None,
        tokens_per_second: float | None = None,
        first_token_seconds: float | None = None,
        scheme: str | None = None,
        model: str | None = None,
    ) -> Message:
        """Append a message to the branch that is shown; it becomes the head.

        Raises:
            UnknownConversation: if the conversation is gone.
        """
        with self._write() as connection:
            row = connection.execute(
                "SELECT head_id FROM conversations WHERE id = ?", (conversation_id,)
            ).fetchone()
            if row is None:
                raise UnknownConversation(conversation_id)
            message = Message(
                secrets.token_hex(8),
                conversation_id,
                row["head_id"],
                role,
                content,
                status,
                time.time(),
                tokens,
                tokens_per_second,
                first_token_seconds,
                scheme,
                model,
            )
            connection.execute(
                f"INSERT INTO messages ({_MESSAGE}) VALUES ({_marks(Message)})",
                tuple(getattr(message, field.name) for field in fields(Message)),
            )
            connection.execute(
                "UPDATE conversations SET head_id = ?, updated_at = ? WHERE id = ?",
                (message.id, message.created_at, conversation_id),
            )
        return message

    def update_message(self, message_id: str, **changes: Unpack[MessageChanges]) -> Message:
        """Change a message's content, status or figures; what is not named stays.

        Raises:
            UnknownMessage: if it is gone.
        """
        unknown = changes.keys() - MessageChanges.__annotations__.keys()
        if unknown or not changes:
            raise TypeError(f"a message has no {', '.join(unknown)}" if unknown else "nothing to change")
        assignments = ", ".join(f"{name} = ?" for name in changes)
        with self._write() as connection:
            connection.execute(
                f"UPDATE messages SET {assignments} WHERE id = ?", (*changes.values(), message_id)
            )
            message = self._message(message_id)
            connection.execute(
                "UPDATE conversations SET updated_at = ? WHERE id = ?", (time.time(), message.conversation_id)
            )
        return message

    def rewind_to(self, conversation_id: str, message_id: str | None) -> None:
        """Show another branch: the one that ends in this message, or none at all. Nothing is deleted.

        Raises:
            UnknownConversation, UnknownMessage: if one is gone, or the message is another conversation's.
        """
        with self._write() as connection:
            if message_id is not None and self._message(message_id).conversation_id != conversation_id:
                raise UnknownMessage(message_id)
            changed = connection.execute(
                "UPDATE conversations SET head_id = ? WHERE id = ?", (message_id, conversation_id)
            )
            _expect(changed, conversation_id)

    def siblings(self, message_id: str) -> list[Message]:
        """The message and those with the same parent (the other replies to one question), oldest first."""
        message = self._message(message_id)
        rows = self._select(
            f"SELECT {_MESSAGE} FROM messages WHERE conversation_id = ? AND parent_id IS ? ORDER BY rowid",
            message.conversation_id,
            message.parent_id,
        )
        return [Message(**dict(row)) for row in rows]

    def newest_leaf(self, message_id: str) -> Message:
        """The end of the branch through this message that was last written to: where to rewind to for it."""
        rows = self._select(
            """
            WITH RECURSIVE below (id) AS (
                SELECT ?
                UNION ALL
                SELECT messages.id FROM below JOIN messages ON messages.parent_id = below.id
            )
            SELECT m.id FROM below JOIN messages m ON m.id = below.id ORDER BY m.rowid DESC LIMIT 1
            """,
            message_id,
        )
        if not rows:
            raise UnknownMessage(message_id)
        return self._message(rows[0]["id"])

    # Inside

    def _message(self, message_id: str) -> Message:
        rows = self._select(f"SELECT {_MESSAGE} FROM messages WHERE id = ?", message_id)
        if not rows:
            raise UnknownMessage(message_id)
        return Message(**dict(rows[0]))

    def _change(self, conversation_id: str, assignments: str, *values: object) -> None:
        with self._write() as connection:
            _expect(
                connection.execute(
                    f"UPDATE conversations SET {assignments} WHERE id = ?", (*values, conversation_id)
                ),
                conversation_id,
            )

    def _select(self, statement: str, *values: object) -> list[sqlite3.Row]:
        with self._translated():
            return self._connection.execute(statement, values).fetchall()

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """One transaction: on disk when the block is left, undone if it raises."""
        with self._translated():
            # IMMEDIATE takes the write lock first: a transaction that reads, then writes cannot fail between.
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                # SQLite has rolled back by itself after some errors, a full disk among them.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise translate(error, self.path) from error


def _conversation(row: sqlite3.Row) -> Conversation:
    values = dict(row)
    return Conversation(**values | {"title_is_automatic": bool(values["title_is_automatic"])})


def _marks(kind: type[Conversation] | type[Message]) -> str:
    return ", ".join("?" for _ in fields(kind))


def _expect(cursor: sqlite3.Cursor, conversation_id: str) -> None:
    if cursor.rowcount == 0:
        raise UnknownConversation(conversation_id)

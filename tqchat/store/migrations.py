"""The database's formats, oldest first, and how to get from one to the next."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from tqchat.store.errors import DatabaseTooNew, DatabaseUnreadable

APPLICATION_ID = 0x74716368
"""``tqch``: marks the file as ours, so that no other program's database is ever written to."""

_CONVERSATIONS_AND_MESSAGES = (
    """
    CREATE TABLE conversations (
        id TEXT PRIMARY KEY,
        title TEXT NOT NULL,
        title_is_automatic INTEGER NOT NULL,
        model TEXT,
        scheme TEXT NOT NULL,
        created_at REAL NOT NULL,
        updated_at REAL NOT NULL,
        head_id TEXT REFERENCES messages (id) DEFERRABLE INITIALLY DEFERRED
    )
    """,
    # No UNIQUE on (conversation_id, parent_id): messages form a tree, siblings are the regenerated replies.
    """
    CREATE TABLE messages (
        id TEXT PRIMARY KEY,
        conversation_id TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        parent_id TEXT REFERENCES messages (id) ON DELETE CASCADE,
        role TEXT NOT NULL CHECK (role IN ('system', 'user', 'assistant')),
        content TEXT NOT NULL,
        status TEXT NOT NULL CHECK (status IN ('complete', 'unfinished', 'stopped')),
        created_at REAL NOT NULL,
        tokens INTEGER,
        tokens_per_second REAL,
        first_token_seconds REAL,
        scheme TEXT,
        model TEXT
    )
    """,
    "CREATE INDEX messages_by_conversation ON messages (conversation_id)",
    "CREATE INDEX messages_by_parent ON messages (parent_id)",
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_CONVERSATIONS_AND_MESSAGES,)
"""``MIGRATIONS[n]`` takes a database from version n to n + 1. Only ever append."""


def migrate(
    connection: sqlite3.Connection, path: Path, migrations: tuple[tuple[str, ...], ...] = MIGRATIONS
) -> None:
    """Bring the database to the newest format. Each step is one transaction: it happens whole or not at all.

    Raises:
        DatabaseTooNew: if it is already past the newest format known here.
        DatabaseUnreadable: if it belongs to another program.
    """
    while True:
        version = check(connection, path, len(migrations))
        if version == len(migrations):
            return
        connection.execute("BEGIN IMMEDIATE")
        try:
            # Another process may have taken this step while we waited for the lock.
            if _pragma(connection, "user_version") == version:
                for statement in migrations[version]:
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {version + 1}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def check(connection: sqlite3.Connection, path: Path, known: int = len(MIGRATIONS)) -> int:
    """The database's version, once it is clear that it is ours. Writes nothing."""
    # In one transaction: another process may be making the database this very moment.
    connection.execute("BEGIN")
    try:
        version = _pragma(connection, "user_version")
        ours = _pragma(connection, "application_id") == APPLICATION_ID
        empty = not version and not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    if not ours and not empty:
        raise DatabaseUnreadable(path, "it belongs to another program")
    if version > known:
        raise DatabaseTooNew(path, version, known)
    return version


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    value: int = connection.execute(f"PRAGMA {name}").fetchone()[0]
    return value

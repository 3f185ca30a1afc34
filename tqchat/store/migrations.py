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

# Rows get a number of their own, which VACUUM never changes: the search index goes by it, and so does
# the order of siblings.
_NUMBERED = (
    """
    CREATE TABLE new_conversations (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        title TEXT NOT NULL,
        title_is_automatic INTEGER NOT NULL,
        model TEXT,
        scheme TEXT NOT NULL,
        created_at REAL NOT NULL,
        updated_at REAL NOT NULL,
        head_id TEXT REFERENCES messages (id) DEFERRABLE INITIALLY DEFERRED,
        system_prompt TEXT,
        sampling TEXT,
        draft TEXT NOT NULL DEFAULT '',
        deleted_at REAL
    )
    """,
    """
    INSERT INTO new_conversations
        (number, id, title, title_is_automatic, model, scheme, created_at, updated_at, head_id)
    SELECT rowid, id, title, title_is_automatic, model, scheme, created_at, updated_at, head_id
    FROM conversations
    """,
    """
    CREATE TABLE new_messages (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
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
        model TEXT,
        prompt_tokens INTEGER
    )
    """,
    # A speed that was infinite is none: JSON has no way to write it.
    """
    INSERT INTO new_messages
        (number, id, conversation_id, parent_id, role, content, status, created_at, tokens,
         tokens_per_second, first_token_seconds, scheme, model)
    SELECT rowid, id, conversation_id, parent_id, role, content, status, created_at, tokens,
        iif(abs(tokens_per_second) < 9e999, tokens_per_second, NULL),
        iif(abs(first_token_seconds) < 9e999, first_token_seconds, NULL), scheme, model
    FROM messages
    """,
    "DROP TABLE conversations",
    "DROP TABLE messages",
    "ALTER TABLE new_conversations RENAME TO conversations",
    "ALTER TABLE new_messages RENAME TO messages",
    "CREATE INDEX messages_by_conversation ON messages (conversation_id)",
    "CREATE INDEX messages_by_parent ON messages (parent_id)",
    "CREATE INDEX messages_unfinished ON messages (status) WHERE status = 'unfinished'",
    "CREATE INDEX conversations_deleted ON conversations (deleted_at) WHERE deleted_at IS NOT NULL",
)

# Trigrams find any three characters in a row, so the middle of a word is found, and so are languages that
# put no spaces between words. A reply that still grows stays out of the index until it ends: it is written
# twice a second, and to index it each time costs more than to read the few unfinished ones at a search.
_SEARCH = (
    "CREATE VIEW searched_messages AS SELECT number, content FROM messages WHERE status <> 'unfinished'",
    """
    CREATE VIRTUAL TABLE messages_index USING fts5(
        content, content = 'searched_messages', content_rowid = 'number', tokenize = 'trigram'
    )
    """,
    """
    CREATE TRIGGER message_added AFTER INSERT ON messages WHEN new.status <> 'unfinished' BEGIN
        INSERT INTO messages_index (rowid, content) VALUES (new.number, new.content);
    END
    """,
    """
    CREATE TRIGGER message_removed AFTER DELETE ON messages WHEN old.status <> 'unfinished' BEGIN
        INSERT INTO messages_index (messages_index, rowid, content)
            VALUES ('delete', old.number, old.content);
    END
    """,
    """
    CREATE TRIGGER message_changed AFTER UPDATE OF content, status ON messages
    WHEN new.content <> old.content OR (new.status = 'unfinished') <> (old.status = 'unfinished') BEGIN
        INSERT INTO messages_index (messages_index, rowid, content)
            SELECT 'delete', old.number, old.content WHERE old.status <> 'unfinished';
        INSERT INTO messages_index (rowid, content)
            SELECT new.number, new.content WHERE new.status <> 'unfinished';
    END
    """,
    """
    CREATE VIRTUAL TABLE titles_index USING fts5(
        title, content = 'conversations', content_rowid = 'number', tokenize = 'trigram'
    )
    """,
    """
    CREATE TRIGGER title_added AFTER INSERT ON conversations BEGIN
        INSERT INTO titles_index (rowid, title) VALUES (new.number, new.title);
    END
    """,
    """
    CREATE TRIGGER title_removed AFTER DELETE ON conversations BEGIN
        INSERT INTO titles_index (titles_index, rowid, title) VALUES ('delete', old.number, old.title);
    END
    """,
    """
    CREATE TRIGGER title_changed AFTER UPDATE OF title ON conversations WHEN new.title <> old.title BEGIN
        INSERT INTO titles_index (titles_index, rowid, title) VALUES ('delete', old.number, old.title);
        INSERT INTO titles_index (rowid, title) VALUES (new.number, new.title);
    END
    """,
    "INSERT INTO messages_index (messages_index) VALUES ('rebuild')",
    "INSERT INTO titles_index (titles_index) VALUES ('rebuild')",
)

_MEASURED = tuple(
    f"ALTER TABLE messages ADD COLUMN {name} INTEGER"
    for name in ("drafted", "accepted", "cache_bytes", "fp16_bytes")
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_CONVERSATIONS_AND_MESSAGES, _NUMBERED + _SEARCH, _MEASURED)
"""``MIGRATIONS[n]`` takes a database from version n to n + 1. Only ever append."""


def migrate(
    connection: sqlite3.Connection, path: Path, migrations: tuple[tuple[str, ...], ...] = MIGRATIONS
) -> None:
    """Bring the database to the newest format. Each step is one transaction: it happens whole or not at all.

    Foreign keys must be off: a step that replaces a table would delete what refers to it.

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

"""Schema migrations of the database, oldest first."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from tqchat.store.errors import DatabaseTooNew, DatabaseUnreadable
from tqchat.store.reasoning_tags import TAGS

APPLICATION_ID = 0x74716368
"""``tqch``: identifies tqchat's databases, so that another program's file is never written."""

SEARCH_INDEXES = ("messages_index", "titles_index")

_V1_TABLES = (
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
    # No UNIQUE on (conversation_id, parent_id): messages form a tree, and versions share their parent.
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

# An explicit row number, which VACUUM does not change: the search index refers to it, and siblings are
# ordered by it.
_V2_ROW_NUMBERS = (
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
    # Infinite speeds become NULL: JSON cannot represent them.
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

# Trigrams match inside words and in languages without spaces. Unfinished replies are not indexed: they are
# written twice a second, and scanning the few of them at a search is cheaper than indexing every write.
_V2_SEARCH_INDEX = (
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

_V3_REPLY_FIGURES = tuple(
    f"ALTER TABLE messages ADD COLUMN {name} INTEGER"
    for name in ("drafted", "accepted", "cache_bytes", "fp16_bytes")
)

_SPACE = "char(32, 9, 10, 13)"


def _split_reasoning(tag: str) -> tuple[str, ...]:
    """Move reasoning that was stored with its tags, at the start of a reply, into its own column."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    begins = f"ltrim(content, {_SPACE})"
    after = f"substr({begins}, {len(opening) + 1})"
    alone = f"char(10) || '{closing}'"
    before = f"substr(content, 1, instr(content, {alone}))"
    fences = f"(length({before}) - length(replace({before}, '```', ''))) / 3"
    # SQLite's substr ends at a NUL: such a reply stays as it is.
    of_reply = (
        "UPDATE messages SET {} WHERE role = 'assistant' AND reasoning IS NULL"
        " AND NOT instr(content, char(0)) AND {}"
    )
    return (
        of_reply.format(
            f"reasoning = trim(iif(instr({after}, '{closing}'), "
            f"substr({after}, 1, instr({after}, '{closing}') - 1), {after}), {_SPACE}), "
            f"content = iif(instr({after}, '{closing}'), "
            f"ltrim(substr({after}, instr({after}, '{closing}') + {len(closing)}), {_SPACE}), '')",
            f"substr({begins}, 1, {len(opening)}) = '{opening}'",
        ),
        # Only the closing tag: the chat template wrote the opening one. In a code block it is no mark.
        of_reply.format(
            f"reasoning = trim(substr(content, 1, instr(content, {alone}) - 1), {_SPACE}), "
            f"content = ltrim(substr(content, instr(content, {alone}) + {len(closing) + 1}), {_SPACE})",
            f"instr(content, {alone}) AND NOT instr(content, '{opening}') AND {fences} % 2 = 0",
        ),
    )


# The search index finds reasoning too, ranked below answers.
_V4_REASONING = (
    "ALTER TABLE messages ADD COLUMN reasoning TEXT",
    "ALTER TABLE messages ADD COLUMN reasoning_seconds REAL",
    "ALTER TABLE conversations ADD COLUMN thinking TEXT",
    "ALTER TABLE conversations ADD COLUMN thinking_budget INTEGER",
    "DROP TRIGGER message_added",
    "DROP TRIGGER message_removed",
    "DROP TRIGGER message_changed",
    "DROP TABLE messages_index",
    "DROP VIEW searched_messages",
    *(statement for tag in TAGS for statement in _split_reasoning(tag)),
    """
    CREATE VIEW searched_messages AS
    SELECT number, content, reasoning FROM messages WHERE status <> 'unfinished'
    """,
    """
    CREATE VIRTUAL TABLE messages_index USING fts5(
        content, reasoning, content = 'searched_messages', content_rowid = 'number', tokenize = 'trigram'
    )
    """,
    "INSERT INTO messages_index (messages_index, rank) VALUES ('rank', 'bm25(4.0, 1.0)')",
    """
    CREATE TRIGGER message_added AFTER INSERT ON messages WHEN new.status <> 'unfinished' BEGIN
        INSERT INTO messages_index (rowid, content, reasoning)
            VALUES (new.number, new.content, new.reasoning);
    END
    """,
    """
    CREATE TRIGGER message_removed AFTER DELETE ON messages WHEN old.status <> 'unfinished' BEGIN
        INSERT INTO messages_index (messages_index, rowid, content, reasoning)
            VALUES ('delete', old.number, old.content, old.reasoning);
    END
    """,
    """
    CREATE TRIGGER message_changed AFTER UPDATE OF content, reasoning, status ON messages
    WHEN new.content <> old.content OR new.reasoning IS NOT old.reasoning
        OR (new.status = 'unfinished') <> (old.status = 'unfinished') BEGIN
        INSERT INTO messages_index (messages_index, rowid, content, reasoning)
            SELECT 'delete', old.number, old.content, old.reasoning WHERE old.status <> 'unfinished';
        INSERT INTO messages_index (rowid, content, reasoning)
            SELECT new.number, new.content, new.reasoning WHERE new.status <> 'unfinished';
    END
    """,
    "INSERT INTO messages_index (messages_index) VALUES ('rebuild')",
)

# Earlier versions left the text of deleted messages in the index, marked as deleted.
_V5_ERASED_INDEX = (
    "INSERT INTO messages_index (messages_index) VALUES ('optimize')",
    "INSERT INTO titles_index (titles_index) VALUES ('optimize')",
)

_V6_ADAPTERS_AND_LOCAL_TIME = (
    "ALTER TABLE conversations ADD COLUMN adapter TEXT",
    "ALTER TABLE conversations ADD COLUMN utc_offset INTEGER",
)

# Ids of the messages that were imported from other programs: one that was deleted here does not come back
# with the next import.
_V7_IMPORTED = (
    """
    CREATE TABLE imported (
        id TEXT PRIMARY KEY,
        conversation_id TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE
    ) WITHOUT ROWID
    """,
    "CREATE INDEX imported_by_conversation ON imported (conversation_id)",
)

_V8_PINS = ("ALTER TABLE conversations ADD COLUMN pinned_at REAL",)

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    _V1_TABLES,
    _V2_ROW_NUMBERS + _V2_SEARCH_INDEX,
    _V3_REPLY_FIGURES,
    _V4_REASONING,
    _V5_ERASED_INDEX,
    _V6_ADAPTERS_AND_LOCAL_TIME,
    _V7_IMPORTED,
    _V8_PINS,
)
"""``MIGRATIONS[n]`` migrates version n to n + 1. Append only."""


def migrate(
    connection: sqlite3.Connection, path: Path, migrations: tuple[tuple[str, ...], ...] = MIGRATIONS
) -> None:
    """Migrate the database to the newest version, one transaction per step.

    Foreign keys must be off: replacing a table would otherwise cascade to the rows that refer to it.

    Raises:
        DatabaseTooNew: if its version is newer than the newest one known here.
        DatabaseUnreadable: if it belongs to another program.
    """
    while True:
        version = check_version(connection, path, len(migrations))
        if version == len(migrations):
            return
        connection.execute("BEGIN IMMEDIATE")
        try:
            # Another process may have migrated while this one waited for the lock.
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


def repair_search_index(connection: sqlite3.Connection, *, always: bool = False) -> bool:
    """Make a search index anew that is lost or damaged; returns whether one was. Messages are not changed.

    Call it outside a transaction.

    Args:
        always: Also if a probe of the index succeeds: damage may be anywhere in it.
    """
    broken = [table for table in SEARCH_INDEXES if always or not _answers(connection, table)]
    if not broken:
        return False
    connection.execute("BEGIN IMMEDIATE")
    try:
        for table in broken:
            _drop_index(connection, table)
            for statement in _index_statements(table):
                connection.execute(statement)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return True


def _answers(connection: sqlite3.Connection, table: str) -> bool:
    try:
        connection.execute(f"SELECT rowid FROM {table} WHERE {table} MATCH '\"tqchat\"' LIMIT 1").fetchall()
    except sqlite3.DatabaseError as error:
        # Busy, or a disk that cannot be read, is no damage of the index.
        return error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT)
    return True


def _drop_index(connection: sqlite3.Connection, table: str) -> None:
    try:
        connection.execute(f"DROP TABLE IF EXISTS {table}")
    except sqlite3.DatabaseError:
        # Without its own tables an FTS5 table cannot be dropped.
        for suffix in ("data", "idx", "docsize", "config", "content"):
            connection.execute(f"DROP TABLE IF EXISTS {table}_{suffix}")
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("DELETE FROM sqlite_master WHERE name = ?", (table,))
        connection.execute("PRAGMA writable_schema = RESET")


def _index_statements(table: str) -> list[str]:
    """The statements of the migrations that make and fill an index as it is now."""
    create, fill = f"CREATE VIRTUAL TABLE {table} ", f"INSERT INTO {table} ({table}"
    found: list[str] = []
    for statement in (one.strip() for step in MIGRATIONS for one in step):
        if statement.startswith(create):
            found = [statement]
        elif statement.startswith(fill):
            found.append(statement)
    return found


def check_version(connection: sqlite3.Connection, path: Path, known: int = len(MIGRATIONS)) -> int:
    """Check that the database belongs to tqchat and return its version. Writes nothing."""
    # In one transaction: another process may be creating the database.
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
    if version < 0:
        raise DatabaseUnreadable(path, f"its format is damaged: {version}")
    return version


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    value: int = connection.execute(f"PRAGMA {name}").fetchone()[0]
    return value

"""A conversation in memory: shows writes that are not in the file yet, and records them as statements."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from tqchat.store.database_file import Rows

Statement = tuple[str, Any]
"""SQL and its parameters."""

_TABLES = (("conversations", "id"), ("messages", "conversation_id"))
"""The tables of a conversation, with the column that holds its id."""
_SCHEMA = """
    SELECT sql FROM sqlite_master
    WHERE tbl_name IN ('conversations', 'messages') AND type IN ('table', 'index') AND sql IS NOT NULL
    ORDER BY type DESC
"""
"""Tables and their indexes, without the search index."""


class _Recorder(sqlite3.Connection):
    """A connection that records the statements that change rows."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.recorded: list[Statement] = []

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        if sql.split(maxsplit=1)[0] in ("INSERT", "UPDATE", "DELETE"):
            self.recorded.append((sql, parameters))
        return super().execute(sql, parameters)


class Replica:
    """All rows of one conversation, in a database in memory. Any thread may use it, one at a time.

    Args:
        file: Where to copy the conversation from; the replica is empty if it is not there.
    """

    def __init__(self, file: Rows, conversation_id: str) -> None:
        self._id = conversation_id
        self._connection = sqlite3.connect(
            ":memory:", isolation_level=None, check_same_thread=False, factory=_Recorder
        )
        self._connection.row_factory = sqlite3.Row
        for row in file.rows(_SCHEMA):
            self._connection.execute(row["sql"])
        # Rows of a damaged file are copied as they are; what is written later is checked.
        self._connection.execute("PRAGMA ignore_check_constraints = ON")
        self._connection.execute("BEGIN")
        for sql, rows in _copy(file, conversation_id):
            self._connection.executemany(sql, rows)
        self._connection.execute("COMMIT")
        self._connection.execute("PRAGMA ignore_check_constraints = OFF")
        self._connection.execute("PRAGMA foreign_keys = ON")

    def rows(self, statement: str, *values: object) -> list[sqlite3.Row]:
        """The result rows of a read-only statement."""
        return self._connection.execute(statement, values).fetchall()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction, rolled back if the block raises."""
        self._connection.recorded.clear()
        self._connection.execute("BEGIN")
        try:
            yield self._connection
            self._connection.execute("COMMIT")
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise

    @property
    def recorded(self) -> list[Statement]:
        """The statements of the last transaction."""
        return list(self._connection.recorded)

    def whole(self) -> list[Statement]:
        """Statements that write the whole conversation into a file that does not have it."""
        # Without the row numbers: other rows may have them there. Their order stays.
        return [(sql, row) for sql, rows in _copy(self, self._id, without=("number",)) for row in rows]


def _copy(
    file: Rows, conversation_id: str, without: Collection[str] = ()
) -> Iterator[tuple[str, list[tuple[object, ...]]]]:
    """Statements that insert all rows of a conversation, each with the values of these rows."""
    for table, column in _TABLES:
        rows = file.rows(f"SELECT * FROM {table} WHERE {column} = ? ORDER BY number", conversation_id)
        if rows:
            names = [name for name in dict(rows[0]) if name not in without]
            marks = ", ".join("?" for _ in names)
            sql = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})"
            yield sql, [tuple(row[name] for name in names) for row in rows]

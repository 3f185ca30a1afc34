"""The SQLite file: how it is opened, read and written, and how its errors are told."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from tqchat.paths import make_private_folder
from tqchat.store.errors import DatabaseUnreadable, translate
from tqchat.store.migrations import check, migrate

_BUSY_SECONDS = 5.0


class DatabaseFile:
    """The open file. Used from the thread that opened it; other processes may have the same file open.

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
                self._seen = self._version()
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
        # What is deleted is overwritten, not just forgotten.
        self._connection.execute("PRAGMA secure_delete = ON")
        self._connection.execute("PRAGMA foreign_keys = OFF")
        migrate(self._connection, self.path)
        self._connection.execute("PRAGMA foreign_keys = ON")

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

    def changed(self) -> bool:
        """Whether another process (or another opening here) has written since the last call. Cheap."""
        with self._translated():
            version = self._version()
        changed, self._seen = version != self._seen, version
        return changed

    def _version(self) -> int:
        return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    def rows(self, statement: str, *values: object) -> list[sqlite3.Row]:
        """The rows of one statement that reads."""
        with self._translated():
            return self._connection.execute(statement, values).fetchall()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """One state of the database for all that is read in the block, whatever others write meanwhile."""
        with self._translated():
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
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

"""The SQLite file: opening, transactions, and translation of SQLite's errors."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from tqchat.paths import make_private_folder
from tqchat.store.errors import DatabaseUnreadable, SearchIndexDamaged, from_os_error, from_sqlite_error
from tqchat.store.migrations import check_version, migrate, repair_search_index

BUSY_TIMEOUT_S = 5.0
"""Longest wait of a write for another program's lock."""

_creating = threading.Lock()


class Rows(Protocol):
    """Something that can be queried: the file, or a conversation in memory."""

    def rows(self, statement: str, *values: object) -> list[sqlite3.Row]:
        """The result rows of a read-only statement."""


_reopening = threading.Lock()


class DatabaseFile:
    """An open SQLite file. Use it on one thread at a time; other processes may open the same file.

    Args:
        busy_timeout_s: How long to wait for another program's lock.

    Raises:
        DatabaseTooNew: if a newer tqchat wrote the file.
        DatabaseUnreadable: if the file is damaged, belongs to another program or cannot be opened. The file
            is not changed.
        StoreFull: if the disk has no space to create it.
    """

    def __init__(self, path: Path, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self.path = path
        self._busy_timeout_s = busy_timeout_s
        self._open()

    def _open(self) -> None:
        path = self.path
        make_private_folder(path.parent)
        if path.exists() and not path.is_file():
            reason = "it is a directory" if path.is_dir() else "it is no regular file"
            raise DatabaseUnreadable(path, reason)
        try:
            with _creating:
                _create(path)
                self._connection = sqlite3.connect(
                    path, timeout=self._busy_timeout_s, isolation_level=None, check_same_thread=False
                )
        except OSError as error:
            raise from_os_error(error, path) from error
        except sqlite3.Error as error:
            raise from_sqlite_error(error, path) from error
        self._connection.row_factory = sqlite3.Row
        self._connection.text_factory = partial(str, encoding="utf-8", errors="replace")
        self._index_is_damaged = False
        try:
            with self._translate_errors():
                self._prepare()
                self._seen_version = self._version()
            self._opened = [_identity(file) for file in self._files()]
        except BaseException:
            self._connection.close()
            raise

    def _files(self) -> list[Path]:
        """The database, its write-ahead log and the log's index."""
        return [self.path, *(self.path.with_name(self.path.name + suffix) for suffix in ("-wal", "-shm"))]

    def is_replaced(self) -> bool:
        """Whether the file was removed, or another one is in its place. Cheap."""
        return _identity(self.path) != self._opened[0]

    def reopen(self) -> None:
        """Open the file that is at the path now; create it if there is none.

        Raises:
            DatabaseTooNew, DatabaseUnreadable, StoreFull: as for a new one. The removed file, which only
                this process has left, can be read on.
        """
        # One at a time: between the comparison and the removal another connection could make a new log.
        with _reopening:
            # The new file would take a log that the removed one left behind for its own. The connection is
            # still open, so no other file can have the same identity.
            for file, opened in zip(self._files()[1:], self._opened[1:], strict=True):
                if opened is not None and _identity(file) == opened:
                    file.unlink(missing_ok=True)
            DatabaseFile(self.path, self._busy_timeout_s).close()  # before this one is closed for good
            self._connection.close()
            self._open()

    def _prepare(self) -> None:
        # Before the first write: a file of another program must not change.
        check_version(self._connection, self.path)
        self._use_wal()
        # FULL instead of WAL's usual NORMAL: NORMAL flushes the log only at checkpoints, so a commit survives
        # kill -9 but not a power loss. One flush per message costs little next to generating a reply.
        # macOS needs F_FULLFSYNC to reach the medium; elsewhere the next two pragmas do nothing.
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA fullfsync = ON")
        self._connection.execute("PRAGMA checkpoint_fullfsync = ON")
        # Overwrite deleted content with zeros.
        self._connection.execute("PRAGMA secure_delete = ON")
        self._connection.execute("PRAGMA foreign_keys = OFF")
        migrate(self._connection, self.path)
        repair_search_index(self._connection)
        self._connection.execute("PRAGMA foreign_keys = ON")

    def _use_wal(self) -> None:
        # SQLite does not wait for its lock when the journal mode changes, so two first starts could collide.
        deadline = time.monotonic() + self._busy_timeout_s
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def truncate_log(self) -> None:
        """Move the write-ahead log into the file and empty it: its old pages may hold deleted text.

        Does nothing while another process reads or writes; the last process that closes the file does it too.
        """
        with self._translate_errors():
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def changed(self) -> bool:
        """Whether another connection has written since the last call. Cheap."""
        with self._translate_errors():
            version = self._version()
        changed, self._seen_version = version != self._seen_version, version
        return changed

    def _version(self) -> int:
        return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    def rows(self, statement: str, *values: object) -> list[sqlite3.Row]:
        """The result rows of a read-only statement."""
        with self._translate_errors():
            return self._connection.execute(statement, values).fetchall()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """A read transaction: all reads in the block see the same state."""
        with self._translate_errors():
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A write transaction: committed to disk at the end of the block, rolled back if it raises."""
        with self._translate_errors():
            # IMMEDIATE takes the write lock first, so a read followed by a write cannot fail in between.
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                # After some errors, such as a full disk, SQLite has rolled back already.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            translated = from_sqlite_error(error, self.path)
            self._index_is_damaged |= isinstance(translated, SearchIndexDamaged)
            raise translated from error
        except UnicodeDecodeError as error:  # of names in a damaged schema, which an error names
            raise DatabaseUnreadable(self.path, "it is damaged") from error
        except MemoryError as error:  # of an absurd size in a damaged schema
            reason = "it is damaged, or there is not enough memory to read it"
            raise DatabaseUnreadable(self.path, reason) from error
        finally:
            if self._index_is_damaged and not self._connection.in_transaction:
                self._index_is_damaged = False
                with suppress(sqlite3.DatabaseError, MemoryError):  # the next call finds it damaged again
                    repair_search_index(self._connection, always=True)


def _create(path: Path) -> None:
    """Create an empty file if there is none.

    Raises:
        OSError: if it cannot be used.
    """
    try:
        # SQLite creates the WAL files with the mode of the database.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        # Not opened here: closing it would release the locks of this process's other connections.
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)) from None
        if not os.access(path, os.R_OK | os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from None


def _identity(file: Path) -> tuple[int, int] | None:
    """What tells a file from another one of the same name; ``None`` if there is none."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino

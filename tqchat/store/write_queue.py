"""Writes to the database on a thread of their own, so that no lock and no slow disk holds up a key."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tqchat.errors import TqchatError
from tqchat.store.database_file import DatabaseFile, Rows
from tqchat.store.errors import from_sqlite_error
from tqchat.store.message_tree import erase_from_index
from tqchat.store.replica import Replica, Statement

Job = Callable[[DatabaseFile], None]
"""Other work on the file, done before the first write."""

_BUSY_TIMEOUT_S = 1.0
_RETRY_INTERVAL_S = 0.5
_IDLE_S = 3.0
"""After so long without a write the write-ahead log is emptied: its old pages hold replaced text."""


@dataclass(frozen=True, eq=False)
class _Write:
    conversation_id: str
    statements: Sequence[Statement]
    creates: bool = False


class WriteQueue:
    """Writes conversations in order. Until a write is in the file, a replica of its conversation shows it.

    A write that fails (a full disk, a lock) stays in the queue and is tried again. If the file was removed or
    replaced, queued conversations are written whole into the one that is at its path then.

    Args:
        path: The database.
        on_written: Called on the thread of the queue when all is in the file.
        on_problem: Called there with a failure that is new, and with ``None`` when all is in the file again.
    """

    def __init__(
        self,
        path: Path,
        on_written: Callable[[], object] = lambda: None,
        on_problem: Callable[[Exception | None], object] = lambda problem: None,
    ) -> None:
        self._path, self._on_written, self._on_problem = path, on_written, on_problem
        self._state = threading.Condition(threading.RLock())
        self._jobs: deque[Job] = deque()
        self._writes: deque[_Write] = deque()
        self._replicas: dict[str, Replica] = {}
        self._problem: Exception | None = None
        self._retry_at = 0.0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="tqchat-database", daemon=True)

    # Called on the thread that uses the database.

    def start(self, *jobs: Job) -> None:
        """Start the thread: the jobs first, then the writes, which may be in the queue already."""
        self._jobs.extend(jobs)
        self._thread.start()

    @contextmanager
    def writing(
        self, file: Rows, conversation_id: str, creates: bool = False
    ) -> Iterator[sqlite3.Connection]:
        """A transaction on a conversation: done in its replica now, and queued for the file.

        Raises:
            StoreError: if it cannot be done, such as in a damaged conversation.
        """
        with self._state:
            replica = self._replicas.get(conversation_id)
            try:
                if replica is None:
                    replica = Replica(file, conversation_id)
                with replica.writing() as connection:
                    yield connection
            except sqlite3.Error as error:
                raise from_sqlite_error(error, self._path) from error
            self._replicas[conversation_id] = replica
            self._writes.append(_Write(conversation_id, replica.recorded, creates))
            self._state.notify_all()

    def keep(self, file: Rows, conversation_id: str) -> None:
        """Have a conversation written whole, in case that the file that is at the path now lacks it."""
        if not self.has_writes(conversation_id):
            with self.writing(file, conversation_id):
                pass

    def replicas(self) -> list[Replica]:
        """The conversations that may have writes in the queue."""
        with self._state:
            return list(self._replicas.values())

    def replica(self, conversation_id: str) -> Replica | None:
        """A conversation that may have writes in the queue."""
        with self._state:
            return self._replicas.get(conversation_id)

    def has_writes(self, conversation_id: str) -> bool:
        """Whether something of a conversation is not in the file yet."""
        with self._state:
            return any(write.conversation_id == conversation_id for write in self._writes)

    def forget_written(self) -> None:
        """Drop the replicas of conversations that are in the file: another process may change them."""
        with self._state:
            queued = {write.conversation_id for write in self._writes}
            self._replicas = {key: one for key, one in self._replicas.items() if key in queued}

    def flush(self, timeout_s: float) -> bool:
        """Wait until all is in the file; ``False`` if that took too long."""
        with self._state:
            self._retry_at = 0.0
            self._state.notify_all()
            return self._state.wait_for(lambda: not self._writes, timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Write what is queued and end the thread; ``False`` if something is not in the file."""
        written = self._thread.is_alive() and self.flush(timeout_s)
        with self._state:
            self._closing = True
            self._state.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout_s if written else 0)
        return not self._writes

    # On the thread of the queue.

    def _run(self) -> None:
        file: DatabaseFile | None = None
        is_tidy = False
        while (work := self._next(None if is_tidy else _IDLE_S)) is not None:
            try:
                if file is None:
                    file = DatabaseFile(self._path, _BUSY_TIMEOUT_S)
                elif file.is_replaced():
                    file.reopen()
                is_tidy = work is _tidy
                if isinstance(work, _Write):
                    self._write(file, work)
                else:
                    work(file)
                    self._finish([work])
            except (TqchatError, OSError) as error:
                if isinstance(error.__cause__, sqlite3.IntegrityError) and isinstance(work, _Write):
                    self._drop(work)  # trying again cannot help
                self._report(error)
        if file is not None:
            if not is_tidy:
                with suppress(TqchatError):
                    _tidy(file)
            file.close()

    def _next(self, idle_s: float | None) -> Job | _Write | None:
        """Wait for the next job or write; ``None`` at the end."""
        with self._state:
            while not self._closing:
                wait_s = self._retry_at - time.monotonic()
                if wait_s > 0:
                    self._state.wait(wait_s)
                elif self._jobs:
                    return self._jobs[0]
                elif self._writes:
                    return self._writes[0]
                elif not self._state.wait(idle_s):
                    return _tidy
        return None

    def _write(self, file: DatabaseFile, write: _Write) -> None:
        statements, done = write.statements, [write]
        with file.writing() as connection:
            query = "SELECT 1 FROM conversations WHERE id = ?"
            if not write.creates and not connection.execute(query, (write.conversation_id,)).fetchone():
                # Another file is in the place of the one that had it.
                with self._state:
                    statements = self._replicas[write.conversation_id].whole()
                    done = [one for one in self._writes if one.conversation_id == write.conversation_id]
            for sql, parameters in statements:
                connection.execute(sql, parameters)
            deletes = any(sql.startswith("DELETE") for sql, _ in statements)
            if deletes:
                erase_from_index(connection)
        if deletes:
            file.truncate_log()
        self._finish(done)

    def _finish(self, done: Sequence[Job | _Write]) -> None:
        with self._state:
            self._jobs = deque(one for one in self._jobs if one not in done)
            self._writes = deque(one for one in self._writes if one not in done)
            empty = not self._writes
            had_problem = self._problem is not None
            if empty:
                self._problem = None
            self._state.notify_all()
        if empty:
            self._on_written()
            if had_problem:
                self._on_problem(None)

    def _drop(self, write: _Write) -> None:
        """Give up a write, and show the conversation as the file has it."""
        with self._state:
            self._writes.remove(write)
            self.forget_written()
            self._state.notify_all()

    def _report(self, error: Exception) -> None:
        with self._state:
            self._retry_at = time.monotonic() + _RETRY_INTERVAL_S
            if not self._writes:
                return  # nothing of the user's waits
            is_new, self._problem = str(error) != str(self._problem), error
        if is_new:
            self._on_problem(error)


def _tidy(file: DatabaseFile) -> None:
    """Erase what was replaced: titles from the index, everything from the log."""
    with file.writing() as connection:
        erase_from_index(connection, ("titles_index",))
    file.truncate_log()

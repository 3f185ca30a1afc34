"""Errors of the transcript store, with messages for the user."""

from __future__ import annotations

import errno
import glob
import os
import resource
import shutil
import sqlite3
import tempfile
from pathlib import Path

from tqchat.errors import TqchatError

_MIN_FREE_BYTES = 1 << 20


class StoreError(TqchatError):
    """An operation on stored conversations failed."""


class DatabaseTooNew(StoreError):
    """A newer tqchat wrote the database."""

    def __init__(self, path: Path, version: int, known: int) -> None:
        super().__init__(
            f"{path} was written by a newer tqchat (format {version}; this version supports up to {known}). "
            "Nothing was changed: update tqchat, or set TQCHAT_HOME to another folder."
        )


class DatabaseUnreadable(StoreError):
    """The file is damaged, belongs to another program, or cannot be opened."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"The conversations in {path} cannot be read ({reason}); "
            "restore a backup of this file, or move it away to start with an empty database."
        )


class DatabaseBusy(StoreError):
    """Another process held the database's lock until the timeout."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is locked by another program; close that program and try again.")


class StoreFull(StoreError):
    """The disk is full. Earlier data is intact."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"The disk of {path.parent} is full; free some space and try again. "
            "Everything saved earlier is intact."
        )


class UnknownConversation(StoreError):
    """No conversation, or more than one, matches the id."""

    exit_code = 2

    def __init__(self, conversation_id: str, matches: int = 0) -> None:
        super().__init__(
            f"{matches} conversations have an id that starts with {conversation_id!r}; give more characters."
            if matches
            else f"There is no conversation {conversation_id!r}; `tqchat ls` lists all conversations."
        )


class ConversationInUse(StoreError):
    """Another process holds the conversation's lease. ``pid`` is 0 if its process id is unknown."""

    def __init__(self, conversation_id: str, pid: int) -> None:
        self.conversation_id, self.pid = conversation_id, pid
        who = f" (process {pid})" if pid else ""
        super().__init__(
            f"This conversation is open in another tqchat{who}; continue there, or close it there first."
        )


class UnknownMessage(StoreError):
    """There is no such message."""

    def __init__(self, message_id: str) -> None:
        super().__init__(f"There is no message {message_id!r} in this conversation.")


def from_sqlite_error(error: sqlite3.Error, path: Path) -> StoreError:
    """Translate an SQLite error into a StoreError."""
    # The low byte of an extended code is the primary code.
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _disk_is_full(path)):
        return StoreFull(path)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return DatabaseBusy(path)
    return DatabaseUnreadable(path, str(error))


def _disk_is_full(path: Path) -> bool:
    """Whether writing fails for lack of space: SQLite reports a WAL file that cannot grow, a quota and a file
    size limit all as a plain I/O error."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    try:
        sizes = [file.stat().st_size for file in path.parent.glob(f"{glob.escape(path.name)}*")]
        if limit != resource.RLIM_INFINITY and max(sizes, default=0) + _MIN_FREE_BYTES > limit:
            return True
        if shutil.disk_usage(path.parent).free < _MIN_FREE_BYTES:
            return True
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            probe.write(bytes(1 << 14))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return False

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
from tqchat.text import one_line

_MIN_FREE_BYTES = 1 << 20
_MAX_REASON_CHARS = 200


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


class DatabaseNotWritable(DatabaseUnreadable):
    """The file can only be read, or its folder does not allow the files that SQLite needs beside it."""

    def __init__(self, path: Path, reason: str) -> None:
        StoreError.__init__(
            self,
            f"The conversations in {path} cannot be written ({reason}). `tqchat ls`, `show`, `search` and "
            "`export` can still read them; make the file and its folder writable, or set TQCHAT_HOME to "
            "another folder.",
        )


class DatabaseUnavailable(DatabaseUnreadable):
    """The system does not give access to the file; nothing is known about its content."""

    def __init__(self, path: Path, reason: str) -> None:
        StoreError.__init__(
            self,
            f"The conversations in {path} cannot be read ({reason}); allow access to that, or set "
            "TQCHAT_HOME to another folder.",
        )


class DiskFailed(DatabaseUnreadable):
    """The disk reports errors."""

    def __init__(self, path: Path, reason: str) -> None:
        StoreError.__init__(
            self,
            f"Reading or writing {path} failed ({reason}); check the disk, and copy the file to another one.",
        )


class SearchIndexDamaged(StoreError):
    """The search index was damaged and has been made anew; the conversations are intact."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"The search index in {path} was damaged; it was made anew from the conversations, which are "
            "intact. Try again."
        )


class DatabaseBusy(StoreError):
    """Another process held the database's lock until the timeout."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is locked by another program; close that program and try again.")


class StoreFull(StoreError):
    """The disk is full, or cannot hold more files. Earlier data is intact."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"The disk of {path.parent} cannot hold another file (no inodes are free); delete some files and "
            "try again. Everything saved earlier is intact."
            if _has_no_inodes(path.parent)
            else f"The disk of {path.parent} is full; free some space and try again. "
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
    extended = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    code = extended & 0xFF
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _disk_is_full(path)):
        return StoreFull(path)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return DatabaseBusy(path)
    names_index = any(name in str(error) for name in ("messages_index", "titles_index"))
    if extended == sqlite3.SQLITE_CORRUPT_VTAB or (code == sqlite3.SQLITE_ERROR and names_index):
        return SearchIndexDamaged(path)
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return _no_access(path, str(error))
    if code == sqlite3.SQLITE_IOERR:
        return DiskFailed(path, str(error))
    return DatabaseUnreadable(path, one_line(str(error))[:_MAX_REASON_CHARS])


def from_os_error(error: OSError, path: Path) -> StoreError:
    """Translate an error of opening the database's file into a StoreError."""
    reason = (error.strerror or str(error)).lower()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(path)
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return _no_access(path, reason)
    if error.errno == errno.EIO:
        return DiskFailed(path, reason)
    return DatabaseUnreadable(path, reason)


def _no_access(path: Path, reason: str) -> StoreError:
    """Why a database cannot be opened for writing, by looking at it."""
    try:
        about = os.statvfs(path.parent)
        if path.exists() and not path.is_file():
            return DatabaseUnreadable(path, "it is no regular file")
        if about.f_flag & os.ST_RDONLY:
            return DatabaseNotWritable(path, "the disk is read-only")
    except OSError as error:
        return DatabaseUnavailable(path, (error.strerror or str(error)).lower())
    if path.exists() and not os.access(path, os.R_OK):
        return DatabaseUnavailable(path, "permission denied")
    if not os.access(path.parent, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.W_OK)):
        return DatabaseNotWritable(path, "permission denied")
    if _has_no_inodes(path.parent):
        return StoreFull(path)
    return DatabaseNotWritable(path, reason)


def _has_no_inodes(folder: Path) -> bool:
    try:
        about = os.statvfs(folder)
    except OSError:
        return False
    return about.f_files > 0 and about.f_favail == 0


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

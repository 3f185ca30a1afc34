"""What can go wrong with stored conversations, in words a person can act on."""

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

_A_LITTLE = 1 << 20


class StoreError(TqchatError):
    """The conversation database cannot do what was asked."""


class DatabaseTooNew(StoreError):
    """The database was written by a later tqchat."""

    def __init__(self, path: Path, version: int, known: int) -> None:
        super().__init__(
            f"{path} was written by a newer tqchat (format {version}, this one knows up to {known}); "
            "update tqchat, or set TQCHAT_HOME to another folder. Nothing was changed."
        )


class DatabaseUnreadable(StoreError):
    """The file is not tqchat's database, is damaged, or may not be opened."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"The conversations in {path} cannot be read ({reason}); "
            "move that file away to start afresh, or put a good copy in its place."
        )


class DatabaseBusy(StoreError):
    """Another process kept the database locked for too long."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"Another program keeps {path} locked; close it and try again.")


class StoreFull(StoreError):
    """The disk has no room. What was stored before is whole."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"There is no room left on the disk of {path.parent}; free some and try again. "
            "What was stored before is whole."
        )


class UnknownConversation(StoreError):
    """No conversation, or more than one, has that id."""

    exit_code = 2

    def __init__(self, conversation_id: str, matches: int = 0) -> None:
        super().__init__(
            f"{matches} conversations have an id that begins with {conversation_id!r}; write more of it."
            if matches
            else f"There is no conversation {conversation_id!r}; `tqchat ls` shows those there are."
        )


class ConversationInUse(StoreError):
    """Another process has the conversation open. ``pid`` is its id, 0 if that cannot be told."""

    def __init__(self, conversation_id: str, pid: int) -> None:
        self.conversation_id, self.pid = conversation_id, pid
        who = f" (process {pid})" if pid else ""
        super().__init__(
            f"This conversation is open in another tqchat{who}; write there, or close it there first."
        )


class UnknownMessage(StoreError):
    """The conversation has no such message."""

    def __init__(self, message_id: str) -> None:
        super().__init__(f"There is no message {message_id!r} in this conversation.")


def translate(error: sqlite3.Error, path: Path) -> StoreError:
    """The error that a person should see for SQLite's own."""
    # Extended codes keep the kind of failure in the low byte.
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _disk_is_full(path)):
        return StoreFull(path)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return DatabaseBusy(path)
    return DatabaseUnreadable(path, str(error))


def _disk_is_full(path: Path) -> bool:
    """Whether nothing more can be written: SQLite reports a log file that cannot grow, a quota and a limit on
    the size of files all as an I/O error, without saying why."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    try:
        sizes = [file.stat().st_size for file in path.parent.glob(f"{glob.escape(path.name)}*")]
        if limit != resource.RLIM_INFINITY and max(sizes, default=0) + _A_LITTLE > limit:
            return True
        if shutil.disk_usage(path.parent).free < _A_LITTLE:
            return True
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            probe.write(bytes(1 << 14))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return False

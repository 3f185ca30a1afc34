"""Leases: a process's exclusive right to write a conversation.

A lease is an advisory file lock (flock). The operating system releases it when the process ends, even after
``kill -9``. The lock file contains the process id."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tqchat.paths import UnusableFolder, make_private_folder
from tqchat.store.errors import ConversationInUse, StoreError, StoreFull

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}", re.ASCII)
_ACQUIRE_TIMEOUT_S = 0.2
"""Retry time, because ``holder_pid`` locks the file for a moment."""

_PID = re.compile(rb"[0-9\n\0]{0,32}")
"""Content of a lock file; zeros after a power loss."""

_held_files: set[Path] = set()
"""Lock files held by this process, because flock refuses even the holder a second descriptor."""


class LeaseUnavailable(StoreError):
    """The file system does not support locks, or the leases folder is unusable."""

    def __init__(self, folder: Path, error: OSError) -> None:
        reason = (error.strerror or str(error)).lower()
        super().__init__(
            f"Conversations cannot be locked in {folder} ({reason}); "
            "set TQCHAT_HOME to a folder on another disk."
        )


class Lease:
    """The exclusive right to write a conversation, until released or the process ends."""

    def __init__(self, conversation_id: str, file: Path, descriptor: int) -> None:
        self.conversation_id = conversation_id
        self._file, self._descriptor = file, descriptor

    def release(self) -> None:
        """Release the lease. Calling it again does nothing."""
        if self._descriptor < 0:
            return
        # Unlink before unlocking: a waiting process then sees that the file is gone and creates a new one.
        self._file.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1
        _held_files.discard(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


class Leases:
    """The leases of one database's conversations, in a folder beside it.

    Args:
        database: Path of the database.
    """

    def __init__(self, database: Path) -> None:
        self.folder = database.absolute().parent / "leases"

    def acquire(self, conversation_id: str) -> Lease:
        """Acquire a conversation's lease.

        Raises:
            ConversationInUse: if a process holds it (possibly this one).
            LeaseUnavailable, StoreFull: if the lock file cannot be created or locked.
        """
        file = self._file(conversation_id)
        deadline = time.monotonic() + _ACQUIRE_TIMEOUT_S
        while True:
            try:
                make_private_folder(self.folder)
                descriptor = _open(file, os.O_RDWR | os.O_CREAT)
            except UnusableFolder as error:
                raise self._acquire_error(error.error) from error
            except OSError as error:
                raise self._acquire_error(error) from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = _read_pid(descriptor)
                os.close(descriptor)
                if time.monotonic() > deadline:
                    raise ConversationInUse(conversation_id, pid) from None
                time.sleep(0.01)
                continue
            except OSError as error:
                os.close(descriptor)
                raise self._acquire_error(error) from error
            if not _is_same_file(descriptor, file):
                os.close(descriptor)  # the previous holder removed it between open and flock
                continue
            _write_pid(descriptor)
            _held_files.add(file)
            return Lease(conversation_id, file, descriptor)

    def remove_dead(self) -> None:
        """Delete the lock files of processes that were killed."""
        try:
            files = [file for file in self.folder.iterdir() if _ID.fullmatch(file.name)]
        except OSError:
            return
        for file in files:
            try:
                Lease(file.name, file, _lock(file)).release()
            except OSError:
                continue  # held, or no lock file

    def holder_pid(self, conversation_id: str) -> int | None:
        """Id of the process that holds a conversation's lease; 0 if unknown, ``None`` if it is free."""
        file = self._file(conversation_id)
        if file in _held_files:
            return os.getpid()
        try:
            descriptor = _open(file, os.O_RDONLY)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read_pid(descriptor)
        except OSError:
            return None
        finally:
            os.close(descriptor)
        return None

    def check(self, conversation_id: str) -> None:
        """Check that no other process holds a conversation's lease.

        Raises:
            ConversationInUse: if one does.
        """
        if not _ID.fullmatch(conversation_id) or self._file(conversation_id) in _held_files:
            return
        if (pid := self.holder_pid(conversation_id)) is not None:
            raise ConversationInUse(conversation_id, pid)

    def _file(self, conversation_id: str) -> Path:
        if not _ID.fullmatch(conversation_id):
            raise StoreError(f"{conversation_id!r} is not a valid conversation id.")
        return self.folder / conversation_id

    def _acquire_error(self, error: OSError) -> StoreError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StoreFull(self.folder)
        return LeaseUnavailable(self.folder, error)


def _lock(file: Path) -> int:
    """Open and lock a lock file that nobody holds; the descriptor.

    Raises:
        OSError: if it is held, or not a regular file.
    """
    descriptor = _open(file, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_same_file(descriptor, file):
            raise OSError(errno.EINVAL, "no lock file")
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _open(file: Path, flags: int) -> int:
    """Open a lock file; never anything else in its place, such as a pipe, a link or somebody's file.

    Raises:
        OSError: if it cannot be opened or is no lock file.
    """
    # A pipe would wait for its other end, and a link may lead to a file that the process id would overwrite.
    descriptor = os.open(file, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, f"{file.name} is no regular file", str(file))
        if not _PID.fullmatch(os.pread(descriptor, 33, 0)):
            raise OSError(errno.EINVAL, f"{file.name} is no lock file of tqchat", str(file))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _write_pid(descriptor: int) -> None:
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except OSError:
        pass  # a full disk; the lock works without the process id


def _read_pid(descriptor: int) -> int:
    text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else 0


def _is_same_file(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False

"""Who may write a conversation: one process at a time, and never one that is dead.

A lease is a lock that the operating system holds for the process (flock) and drops when it ends, ``kill -9``
included. The file that it is on tells others which process that is."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tqchat.paths import make_private_folder
from tqchat.store.errors import ConversationInUse, StoreError, StoreFull

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}", re.ASCII)
_PATIENCE = 0.2
"""Seconds. Asking who holds a lease locks its file for an instant, which must not look like a holder."""

_mine: set[Path] = set()
"""The files that this process has leases on: flock treats two of its own openings as strangers."""


class LeaseUnavailable(StoreError):
    """The file system cannot lock files, or the folder of leases cannot be used."""

    def __init__(self, folder: Path, error: OSError) -> None:
        reason = (error.strerror or str(error)).lower()
        super().__init__(
            f"Conversations cannot be locked in {folder} ({reason}); "
            "set TQCHAT_HOME to a folder on another disk."
        )


class Lease:
    """A conversation that only this process may write, until it is released or the process ends."""

    def __init__(self, conversation_id: str, file: Path, descriptor: int) -> None:
        self.conversation_id = conversation_id
        self._file, self._descriptor = file, descriptor

    def release(self) -> None:
        """Let others have it. Releasing twice does nothing."""
        if self._descriptor < 0:
            return
        # While it is still locked: whoever waits for this very file sees that it is gone and makes another.
        self._file.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1
        _mine.discard(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


class Leases:
    """The leases on the conversations of one database; they lie beside it.

    Args:
        database: The database's file.
    """

    def __init__(self, database: Path) -> None:
        self.folder = database.absolute().parent / "leases"

    def acquire(self, conversation_id: str) -> Lease:
        """Take the lease of a conversation.

        Raises:
            ConversationInUse: if a process has it, this one included; it names the process.
            LeaseUnavailable, StoreFull: if it cannot be taken here at all.
        """
        file = self._file(conversation_id)
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                make_private_folder(self.folder)
                descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise self._unusable(error) from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = _pid(descriptor)
                os.close(descriptor)
                if time.monotonic() > deadline:
                    raise ConversationInUse(conversation_id, pid) from None
                time.sleep(0.01)
                continue
            except OSError as error:
                os.close(descriptor)
                raise self._unusable(error) from error
            if not _is_at(descriptor, file):
                os.close(descriptor)  # its last holder removed it while we opened it
                continue
            _sign(descriptor)
            _mine.add(file)
            return Lease(conversation_id, file, descriptor)

    def holder(self, conversation_id: str) -> int | None:
        """The process that has a conversation's lease; 0 if its id cannot be told, ``None`` if none has."""
        file = self._file(conversation_id)
        if file in _mine:
            return os.getpid()
        try:
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _pid(descriptor)
        except OSError:
            return None
        finally:
            os.close(descriptor)
        return None

    def check(self, conversation_id: str) -> None:
        """Nothing, unless another process has the lease.

        Raises:
            ConversationInUse: if one has.
        """
        if not _ID.fullmatch(conversation_id) or self._file(conversation_id) in _mine:
            return
        if (pid := self.holder(conversation_id)) is not None:
            raise ConversationInUse(conversation_id, pid)

    def _file(self, conversation_id: str) -> Path:
        if not _ID.fullmatch(conversation_id):
            raise StoreError(f"{conversation_id!r} cannot be the id of a conversation.")
        return self.folder / conversation_id

    def _unusable(self, error: OSError) -> StoreError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StoreFull(self.folder)
        return LeaseUnavailable(self.folder, error)


def _sign(descriptor: int) -> None:
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except OSError:
        pass  # a full disk: the lock is what counts, the number only helps a person


def _pid(descriptor: int) -> int:
    text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else 0


def _is_at(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False

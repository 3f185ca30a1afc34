"""Disks that are slow or full, for what is written to temporary files."""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tqchat.kv.storage import write_behind


class Disk:
    """Passes writes on while it is open.

    Attributes:
        written: Bytes written so far.
        reserves: Whether it reserves space, rather than to say that it cannot.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.written, self.reserves = 0, True
        self.is_open = threading.Event()
        self.is_open.set()
        real, reserve = os.pwrite, os.posix_fallocate

        def pwrite(descriptor: int, content: memoryview, offset: int) -> int:
            self.is_open.wait()
            count = real(descriptor, content, offset)
            self.written += count
            return count

        def posix_fallocate(descriptor: int, offset: int, count: int) -> None:
            if not self.reserves:
                raise OSError(errno.EOPNOTSUPP, "not supported")
            reserve(descriptor, offset, count)

        monkeypatch.setattr(os, "pwrite", pwrite)
        monkeypatch.setattr(os, "posix_fallocate", posix_fallocate)
        # Tiny caches are written as large ones are, and blocked threads are not waited for.
        monkeypatch.setattr(write_behind, "SMALL_BYTES", 0)
        monkeypatch.setattr(write_behind, "STOP_WAIT_S", 0)


@contextmanager
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """A disk that no write is left on."""
    disk = Disk(monkeypatch)
    try:
        yield disk
    finally:
        disk.is_open.set()


@contextmanager
def full(size: int = 0) -> Iterator[None]:
    """No file grows beyond ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

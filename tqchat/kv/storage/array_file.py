"""Arrays in an open file."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import tempfile
import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import mlx.core as mx
import numpy as np

from tqchat.files import spill_folder
from tqchat.kv.storage.reading import in_threads, read_array, read_fully
from tqchat.kv.storage.write_behind import WriteBehind

READ_PART_BYTES = 4 << 20
"""Most that one thread reads at a time. Filling new memory takes longer than the reading itself."""


@dataclass(frozen=True)
class StoredArray:
    """An array in a file."""

    file: ArrayFile
    offset: int
    shape: tuple[int, ...]
    dtype: mx.Dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def itemsize(self) -> int:
        return self.dtype.size

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.itemsize

    @property
    def is_lost(self) -> bool:
        """Whether it could not be written."""
        return self.file.is_lost(self)

    def read(self) -> mx.array:
        """The array, evaluated.

        Raises:
            OSError: if the file cannot be read or is not what was written.
        """
        return self.file.read(self)

    def content(self) -> memoryview:
        """Its bytes; raises as ``read`` does."""
        return self.file.content(self)


class ArrayFile:
    """An open file of arrays.

    Args:
        file: Read and written here only, by position.
        folder: The folder that it takes space in.
        sha256: What the file must contain, checked before the first array is read; ``None`` if this process
            writes it.

    Attributes:
        saved: The file of a saved cache that holds some of the arrays.
        saved_arrays: Names of those.
    """

    def __init__(self, file: BinaryIO, folder: Path, sha256: str | None = None) -> None:
        self._file, self._unverified = file, sha256
        self.folder = folder
        self.size = 0
        self.saved: Any = None
        self.saved_arrays: frozenset[str] = frozenset()
        self._writer = WriteBehind(file)
        # When the last reference is gone, or the program ends, nobody needs the rest.
        weakref.finalize(self, self._writer.stop)

    @classmethod
    def temporary(cls, folder: Path | None = None) -> ArrayFile:
        """A file without a name: it vanishes with the last reference to it, after a kill as well.

        Args:
            folder: Where to make it; by default the system's folder for large temporary files.

        Raises:
            OSError: if it cannot be made.
        """
        folder = folder or spill_folder()
        return cls(tempfile.TemporaryFile(dir=folder), folder)

    def reserve(self, count: int) -> None:
        """Make sure that the disk has space for ``count`` more bytes.

        Raises:
            OSError: if it has not.
        """
        if count:
            _reserve(self._file.fileno(), self.size, count)

    def write(self, arrays: Mapping[str, mx.array]) -> dict[str, StoredArray]:
        """Append arrays. They are written by another thread, and stay in memory until then.

        Raises:
            OSError: if an earlier write failed.
        """
        stored, waiting = {}, {}
        for name, array in arrays.items():
            one = stored[name] = StoredArray(self, self.size, array.shape, array.dtype)
            self.size += one.nbytes
            if one.nbytes:
                waiting[one.offset] = array
        self._writer.add(waiting)
        return stored

    def wait(self, most: int = 0, timeout_s: float | None = None) -> bool:
        """See ``WriteBehind.wait``."""
        return self._writer.wait(most, timeout_s)

    def holding(self, most: int) -> AbstractContextManager[None]:
        """See ``WriteBehind.holding``."""
        return self._writer.holding(most)

    def drop_failed(self) -> None:
        """See ``WriteBehind.drop_failed``."""
        self._writer.drop_failed()

    def is_lost(self, stored: StoredArray) -> bool:
        """See ``StoredArray.is_lost``."""
        return self._writer.is_lost(stored.offset)

    def read(self, stored: StoredArray) -> mx.array:
        """See ``StoredArray.read``."""
        self._verify()
        if not stored.nbytes:
            return mx.zeros(stored.shape, stored.dtype)
        if (waiting := self._writer.find(stored.offset)) is not None:
            return waiting.array[...]
        return read_array(stored.shape, stored.dtype, lambda memory: self._read_into(memory, stored.offset))

    def content(self, stored: StoredArray) -> memoryview:
        """See ``StoredArray.content``."""
        self._verify()
        if stored.nbytes and (waiting := self._writer.find(stored.offset)) is not None:
            return np.ascontiguousarray(waiting.content).data.cast("B")
        content = np.empty(stored.nbytes, dtype=np.uint8).data
        self._read_into(content, stored.offset)
        return content

    def _read_into(self, buffer: memoryview, offset: int) -> None:
        descriptor = self._file.fileno()

        def read(start: int) -> None:
            read_fully(descriptor, [buffer[start : start + READ_PART_BYTES]], offset + start)

        in_threads(read, range(0, len(buffer), READ_PART_BYTES))

    def _verify(self) -> None:
        if self._unverified is None:
            return
        self._file.seek(0)
        if hashlib.file_digest(self._file, "sha256").hexdigest() != self._unverified:  # type: ignore[arg-type]
            raise OSError(0, "a file is not what was written")
        self._unverified = None


def _reserve(descriptor: int, offset: int, count: int) -> None:
    """Reserve space in a file; where the system cannot, only check that the disk has it now."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, offset, count)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
        else:
            return
    disk = os.fstatvfs(descriptor)
    if disk.f_bavail * disk.f_frsize < count:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

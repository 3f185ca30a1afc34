"""Arrays in an open file."""

from __future__ import annotations

import errno
import hashlib
import io
import math
import os
import tempfile
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import mlx.core as mx
import numpy as np

from tqchat.files import spill_folder
from tqchat.kv.storage.write_behind import WriteBehind

READ_THREADS = 8
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
        source = _NpyFile(stored, self._read_into)
        loaded: Any = mx.load(source, format="npy")  # type: ignore[arg-type]
        if source.error is not None:
            raise source.error
        array: mx.array = loaded
        if array.dtype != stored.dtype:
            array = array.view(stored.dtype)
            mx.eval(array)
        return array

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
            part, at = buffer[start : start + READ_PART_BYTES], offset + start
            while len(part):
                count = os.preadv(descriptor, [part], at)
                if not count:
                    raise OSError(0, "a file is shorter than what was written")
                part, at = part[count:], at + count

        starts = range(0, len(buffer), READ_PART_BYTES)
        reads: list[Future[None]] = []
        if len(starts) > 1:
            with suppress(RuntimeError):  # no more threads: the program is ending
                reads += (_readers().submit(read, start) for start in starts)
        wait(reads)  # all of them, as after an error the buffer may be freed
        for one in reads:
            one.result()
        for start in starts[len(reads) :]:
            read(start)

    def _verify(self) -> None:
        if self._unverified is None:
            return
        self._file.seek(0)
        if hashlib.file_digest(self._file, "sha256").hexdigest() != self._unverified:  # type: ignore[arg-type]
            raise OSError(0, "a file is not what was written")
        self._unverified = None


class _NpyFile:
    """A stored array as a file in numpy's format, for ``mx.load``.

    MLX has it read into the array's own memory; on CUDA it then copies to the GPU, where an array made from
    host memory would stay in managed memory, which is slow.

    Attributes:
        error: Why the array could not be read. MLX ends the process if ``readinto`` raises.
    """

    closed = False

    def __init__(self, stored: StoredArray, read_into: Callable[[memoryview, int], None]) -> None:
        try:
            kind = np.dtype(str(stored.dtype).removeprefix("mlx.core."))
        except TypeError:  # bfloat16
            kind = np.dtype(f"u{stored.itemsize}")
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": kind.str, "fortran_order": False, "shape": stored.shape}
        )
        self._header, self._stored, self._read_into = header.getvalue(), stored, read_into
        self._position = 0
        self.error: Exception | None = None

    def seek(self, position: int, whence: int = 0) -> int:
        self._position = position
        return position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:
        target = memoryview(buffer).cast("B")
        start, self._position = self._position, self._position + len(target)
        if start < len(self._header):
            target[:] = self._header[start : self._position]
            return len(target)
        try:
            self._read_into(target, self._stored.offset + start - len(self._header))
        except Exception as error:
            self.error = error
        return len(target)


@cache
def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(READ_THREADS, thread_name_prefix="tqchat-read")


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

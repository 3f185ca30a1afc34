"""Arrays in an open file."""

from __future__ import annotations

import hashlib
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import mlx.core as mx
import numpy as np

from tqchat.files import spill_folder


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

    def read(self) -> mx.array:
        """The array, evaluated.

        Raises:
            OSError: if the file cannot be read or is not what was written.
        """
        return self.file.read(self)


class ArrayFile:
    """An open file of arrays.

    Args:
        file: Read and written here only.
        folder: The folder that it takes space in.
        sha256: What the file must contain, checked before the first array is read; ``None`` if this process
            writes it.

    Attributes:
        saved: The file of a saved cache that holds the same arrays.
    """

    def __init__(self, file: BinaryIO, folder: Path, sha256: str | None = None) -> None:
        self._file, self._unverified = file, sha256
        self.folder = folder
        self.size = 0
        self.saved: Any = None

    @classmethod
    def temporary(cls, folder: Path | None = None) -> ArrayFile:
        """A file without a name: it vanishes with the last reference to it, after a kill as well.

        Args:
            folder: Where to make it; by default the system's folder for large temporary files.

        Raises:
            OSError: if there is no space, here and from ``write``.
        """
        folder = folder or spill_folder()
        return cls(tempfile.TemporaryFile(dir=folder), folder)

    def write(self, array: mx.array) -> StoredArray:
        """Append an array."""
        stored = StoredArray(self, self.size, array.shape, array.dtype)
        # A slice of storage with spare capacity is not contiguous.
        content = np.asarray(mx.contiguous(array).reshape(-1).view(mx.uint8))
        self._file.seek(stored.offset)
        self._file.write(content.data)
        self._file.flush()
        self.size += content.nbytes
        return stored

    def read(self, stored: StoredArray) -> mx.array:
        """See ``StoredArray.read``."""
        self._verify()
        content = np.empty(stored.nbytes, dtype=np.uint8)
        self._file.seek(stored.offset)
        if self._file.readinto(content.data) != content.nbytes:  # type: ignore[attr-defined]
            raise OSError(0, "a file is shorter than what was written")
        array = mx.array(content).view(stored.dtype).reshape(stored.shape)
        mx.eval(array)
        return array

    def _verify(self) -> None:
        if self._unverified is None:
            return
        self._file.seek(0)
        if hashlib.file_digest(self._file, "sha256").hexdigest() != self._unverified:  # type: ignore[arg-type]
            raise OSError(0, "a file is not what was written")
        self._unverified = None

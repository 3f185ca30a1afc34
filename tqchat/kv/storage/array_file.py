"""Arrays in an unnamed temporary file."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from tqchat.files import spill_folder


@dataclass(frozen=True)
class StoredArray:
    """Where an array lies in its file, and what it is."""

    offset: int
    shape: tuple[int, ...]
    dtype: mx.Dtype


class ArrayFile:
    """A temporary file without a name: it vanishes with the last reference to it, after a kill as well.

    Args:
        folder: Where to make it; by default the system's folder for large temporary files.

    Raises:
        OSError: if there is no space, here and from ``write``.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or spill_folder()
        self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115  open as long as it is used
        self.size = 0

    def write(self, array: mx.array) -> StoredArray:
        """Append an array."""
        stored = StoredArray(self.size, array.shape, array.dtype)
        # A slice of storage with spare capacity is not contiguous.
        content = np.asarray(mx.contiguous(array).reshape(-1).view(mx.uint8))
        self._file.seek(stored.offset)
        self._file.write(content.data)
        self._file.flush()
        self.size += content.nbytes
        return stored

    def read(self, stored: StoredArray) -> mx.array:
        """The array, evaluated."""
        content = np.empty(math.prod(stored.shape) * stored.dtype.size, dtype=np.uint8)
        self._file.seek(stored.offset)
        if self._file.readinto(content.data) != content.nbytes:
            raise OSError(0, "a temporary file is shorter than what was written")
        array = mx.array(content).view(stored.dtype).reshape(stored.shape)
        mx.eval(array)
        return array

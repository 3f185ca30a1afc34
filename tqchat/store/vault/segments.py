"""Write-once safetensors files with a SHA-256 checksum.

Unlike MLX's own functions, these write array by array, report a full disk, and do not read lazily."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from tqchat.errors import TqchatError
from tqchat.files import Unreadable, open_regular

if TYPE_CHECKING:
    import mlx.core as mx

    from tqchat.kv.storage.array_file import StoredArray

TEMPORARY_PREFIX = "new-"
SUFFIX = ".safetensors"
EARLIER_PREFIX = "earlier-"
"""Prefix of files with the tokens of earlier schemes, which are deleted first when space is short."""

_TYPES = {
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "BOOL": "bool_",
}
_FLUSH_BYTES = 8 << 20
"""Bytes between flushes and between calls of ``interrupted``."""
MAX_HEADER_BYTES = 16 << 20
_MAX_EMPTY_DIMENSION = 1 << 16
"""Largest dimension of an array without tokens, whose heads and width can exceed the bytes of its file."""


class Interrupted(Exception):
    """The write was interrupted; its partial file is removed."""


class SegmentError(TqchatError):
    """A segment is missing, truncated or changed."""


class Entry(NamedTuple):
    """An array in a file's header."""

    name: str
    kind: str
    shape: list[int]
    bytes: int

    @property
    def dtype(self) -> mx.Dtype:
        import mlx.core as mx

        dtype: mx.Dtype = getattr(mx, _TYPES[self.kind])
        return dtype


@dataclass(frozen=True)
class StoredFile:
    """Name, size and checksum of a written file."""

    name: str
    bytes: int
    sha256: str


def write(
    folder: Path,
    arrays: Mapping[str, mx.array] | Mapping[str, StoredArray],
    interrupted: Callable[[], bool] = lambda: False,
    prefix: str = "",
    durable: bool = True,
) -> StoredFile:
    """Write arrays to a new file in ``folder``, evaluating or reading and flushing one part at a time.

    Args:
        prefix: Of the file's name.
        durable: Whether the file is flushed to disk; if not, a power loss can damage it.

    Raises:
        Interrupted: if ``interrupted`` returns true, called before each part. No file is left.
        OSError: if writing fails. No file is left.
    """
    header = _header(arrays)
    stem = uuid.uuid4().hex
    temporary, final = folder / f"{TEMPORARY_PREFIX}{stem}{SUFFIX}", folder / f"{prefix}{stem}{SUFFIX}"
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            digest = hashlib.sha256(header)
            file.write(header)
            unflushed = 0
            for array in arrays.values():
                content = _bytes(array)
                for start in range(0, len(content), _FLUSH_BYTES):
                    if interrupted():
                        raise Interrupted
                    part = content[start : start + _FLUSH_BYTES]
                    digest.update(part)
                    file.write(part)
                    unflushed += len(part)
                    if (
                        durable and unflushed >= _FLUSH_BYTES
                    ):  # one long flush at the end would not be interruptible
                        _flush(file)
                        unflushed = 0
            if durable:
                _flush(file)
            size = file.tell()
        temporary.replace(final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return StoredFile(final.name, size, digest.hexdigest())


def file_size(arrays: Mapping[str, mx.array] | Mapping[str, StoredArray]) -> int:
    """Size of the file of these arrays, in bytes."""
    return len(_header(arrays)) + sum(array.nbytes for array in arrays.values())


def read(folder: Path, expected: StoredFile) -> dict[str, mx.array]:
    """Read a file's arrays into memory and verify its size and checksum.

    Allocates no more than the file's size, whatever its header says.

    Raises:
        SegmentError: if the file is missing, unreadable or not what was written.
    """
    path = folder / expected.name
    try:
        with open_regular(path) as file:
            header, entries = read_header(file, expected)
            digest = hashlib.sha256(header)
            arrays = {}
            for entry in entries:
                buffer = bytearray(entry.bytes)
                if file.readinto(buffer) != entry.bytes:
                    raise SegmentError("a file is truncated")
                digest.update(buffer)
                arrays[entry.name] = _array(buffer, entry)
    except (Unreadable, OSError) as error:
        raise _segment_error(error) from error
    if digest.hexdigest() != expected.sha256:
        raise SegmentError("the checksum of a file does not match")
    return arrays


def open_arrays(folder: Path, expected: StoredFile) -> dict[str, StoredArray]:
    """A file's arrays, which are read and verified when they are used; the file stays open as long.

    Raises:
        SegmentError: if the file is missing, unreadable or has another size.
    """
    from tqchat.kv.storage.array_file import ArrayFile, StoredArray

    try:
        with ExitStack() as opened:
            file = opened.enter_context(open_regular(folder / expected.name))
            header, entries = read_header(file, expected)
            arrays = ArrayFile(file, folder, expected.sha256)
            opened.pop_all()  # closed with the last array
    except (Unreadable, OSError) as error:
        raise _segment_error(error) from error
    arrays.saved = expected
    found, at = {}, len(header)
    for entry in entries:
        found[entry.name] = StoredArray(arrays, at, tuple(entry.shape), entry.dtype)
        at += entry.bytes
    arrays.saved_arrays = frozenset(found)
    return found


def _segment_error(error: Unreadable | OSError) -> SegmentError:
    if isinstance(error, FileNotFoundError):
        return SegmentError("a file is missing")
    if isinstance(error, Unreadable):
        return SegmentError(f"a file {error.reason}")
    return SegmentError(f"a file cannot be read: {error.strerror or error}")


def read_header(file: BinaryIO, expected: StoredFile) -> tuple[bytes, tuple[Entry, ...]]:
    """A file's bytes before its arrays, and what its header says of each array.

    Raises:
        SegmentError: if it has another size than expected, or its header is damaged.
    """
    size = os.fstat(file.fileno()).st_size
    if size != expected.bytes:
        raise SegmentError("a file has the wrong size")
    prefix = file.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
    if length > min(size - 8, MAX_HEADER_BYTES):
        raise SegmentError("a file is truncated")
    text = file.read(length)
    return prefix + text, _entries(text, size - 8 - length)


def sync_folder(folder: Path) -> None:
    """Flush a folder's directory entries to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _header(arrays: Mapping[str, mx.array] | Mapping[str, StoredArray]) -> bytes:
    names = {name: kind for kind, name in _TYPES.items()}
    names["bool"] = "BOOL"
    entries: dict[str, Any] = {}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        kind = names[str(array.dtype).removeprefix("mlx.core.")]
        entries[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


@lru_cache(maxsize=2)  # the segments of a cache have the same header, except the first and the last
def _entries(text: bytes, size: int) -> tuple[Entry, ...]:
    """Name, dtype, shape and byte count of each array in file order; they must fill ``size`` exactly."""
    try:
        header = json.loads(text)
        entries = sorted(header.items(), key=lambda entry: entry[1]["data_offsets"])
        found, at = [], 0
        for name, entry in entries:
            start, end = entry["data_offsets"]
            kind, shape = entry["dtype"], entry["shape"]
            width = {"BOOL": 1}.get(kind) or int(kind.lstrip("BFIU")) // 8
            # The product of a long list of numbers would take minutes.
            most = max(size, _MAX_EMPTY_DIMENSION)
            valid_shape = len(shape) <= 8 and all(type(n) is int and 0 <= n <= most for n in shape)
            if (
                kind not in _TYPES
                or not valid_shape
                or type(end) is not int
                or start != at
                or end - start != math.prod(shape) * width
            ):
                raise ValueError(name)
            found.append(Entry(name, kind, shape, end - start))
            at = end
        if at != size:
            raise ValueError("its arrays do not fill it")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SegmentError("the header of a file is damaged") from error
    return tuple(found)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _bytes(array: mx.array | StoredArray) -> memoryview:
    import mlx.core as mx

    if not isinstance(array, mx.array):
        return array.content()
    if not array.size:
        return memoryview(b"")
    # Slices of preallocated storage are not contiguous; the copy is freed once written.
    flat = mx.contiguous(array).reshape(-1).view(mx.uint8)
    mx.eval(flat)
    return memoryview(flat)  # type: ignore[arg-type]


def _array(buffer: bytearray, entry: Entry) -> mx.array:
    import mlx.core as mx

    if not buffer:
        return mx.zeros(entry.shape, entry.dtype)
    array = mx.array(memoryview(buffer)).view(entry.dtype).reshape(entry.shape)  # type: ignore[arg-type]
    mx.eval(array)
    return array

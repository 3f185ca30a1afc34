"""Reads the files of a saved cache straight into the arrays of the whole sequence.

Read one after the other (``segments.read``), a cache of many segments is copied three times, in thousands of
small arrays. Here each byte is read once, to its final place, and hashed there, by several threads.
"""

from __future__ import annotations

import hashlib
import math
import os
import resource
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import mlx.core as mx

from tqchat.files import Unreadable, open_regular
from tqchat.kv import ranges
from tqchat.kv.storage.reading import READ_THREADS, in_threads, read_array, read_fully, read_small_array
from tqchat.kv.storage.token_store import RoomyArray
from tqchat.store.vault import segments
from tqchat.store.vault.segments import Entry, SegmentError, StoredFile

if TYPE_CHECKING:
    from hashlib import _Hash

    from tqchat.store.vault.manifest import Manifest

_MIN_THREAD_BYTES = 256 << 10
"""Bytes per thread: with fewer, handing them over takes as long as reading them."""
_MAX_ROWS = 4096
"""Batch entries and heads of an array; no cache has as many."""
TOKENS = "tokens"


class _CannotJoin(Exception):
    """The files are damaged or do not form one sequence; reading them one by one tells which."""


class _Layout:
    """Offsets of the arrays of a file; most segments of a cache have the same layout.

    Attributes:
        entries: By name, in file order.
        offsets: Positions in the file, by name.
        shapes: By name.
    """

    def __init__(self, entries: Sequence[Entry], header_bytes: int) -> None:
        starts = accumulate((entry.bytes for entry in entries), initial=header_bytes)
        self.entries = {entry.name: entry for entry in entries}
        self.offsets = {entry.name: start for entry, start in zip(entries, starts, strict=False)}
        self.shapes = {entry.name: entry.shape for entry in entries}


@dataclass
class _File:
    """An open file of the cache.

    Attributes:
        tokens: Tokens that its range has, of which the first ``used`` belong to the cache.
        digest: Of what has been read, always the first ``position`` bytes.
    """

    file: BinaryIO
    tokens: int
    used: int
    sha256: str
    layout: _Layout
    digest: _Hash
    position: int

    def read(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill buffers with what follows in the file."""
        if offset != self.position:
            raise _CannotJoin
        read_fully(self.file.fileno(), buffers, offset)
        for buffer in buffers:
            self.digest.update(buffer)
            self.position += len(buffer)


class _Part(NamedTuple):
    """An array of one file within an array of all of them.

    Attributes:
        kept: Tokens of it that belong to the sequence, from ``start`` on.
    """

    file: _File
    offset: int
    tokens: int
    kept: int
    start: int


def read(folder: Path, manifest: Manifest) -> dict[str, Any] | None:
    """The arrays of a manifest's segments and rest, joined, for ``ranges.rebuild``, with their tokens.

    Returns:
        ``mx.array`` by name, or ``RoomyArray``; ``None`` if a file is damaged or the arrays cannot be joined.
    """
    stored = [(piece.file, piece.end - piece.start, piece.used - piece.start) for piece in manifest.pieces]
    rest = manifest.tokens - sum(used for _, _, used in stored)
    stored.append((manifest.rest, rest, rest))
    if len(stored) > max_files():
        return None
    layouts: dict[bytes, _Layout] = {}
    try:
        with ExitStack() as opened:
            files = [
                _open(opened, folder, expected, tokens, used, layouts) for expected, tokens, used in stored
            ]
            arrays = {name: _read_array(name, files) for name in _order(layouts.values())}
            if any(file.digest.hexdigest() != file.sha256 for file in files):
                return None
            return arrays
    except (_CannotJoin, CycleError, SegmentError, Unreadable, OSError):
        return None


def max_files() -> int:
    """Files that may be open at a time: half of what the system allows a process, which is 256 on macOS and
    often 1,024 on Linux. Caches of more files are read one by one.
    """
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2


def _open(
    opened: ExitStack,
    folder: Path,
    expected: StoredFile,
    tokens: int,
    used: int,
    layouts: dict[bytes, _Layout],
) -> _File:
    file = opened.enter_context(open_regular(folder / expected.name))
    header, entries = segments.read_header(file, expected)
    if (layout := layouts.get(header)) is None:
        layout = layouts[header] = _Layout(entries, len(header))
    if layout.shapes.get(TOKENS) != [tokens]:
        raise _CannotJoin
    return _File(file, tokens, used, expected.sha256, layout, hashlib.sha256(header), len(header))


def _order(layouts: Iterable[_Layout]) -> list[str]:
    """The names of all arrays in an order in which every file can be read from beginning to end."""
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for layout in layouts:
        names = list(layout.entries)
        for name, follower in pairwise(names):
            sorter.add(follower, name)
        sorter.add(names[0])
    return list(sorter.static_order())


def _read_array(name: str, files: Sequence[_File]) -> mx.array | RoomyArray:
    holding = [file for file in files if name in file.layout.entries]
    entry = holding[0].layout.entries[name]
    shape = entry.shape
    if name == TOKENS:
        axis = 0
    elif ranges.is_joined(name) and len(shape) == 4:
        axis = 2
    elif len(holding) == 1:
        part = _Part(holding[0], holding[0].layout.offsets[name], 1, 1, 0)
        return _filled(shape, entry.dtype, lambda memory: _fill(memory, 1, entry.bytes, [part], 1))
    else:
        raise _CannotJoin
    parts, total = _parts(name, holding, axis)
    capacity = ranges.capacity_to_read(name, total)
    rows, token_bytes = math.prod(shape[:axis]), math.prod(shape[axis + 1 :]) * entry.dtype.size
    if not rows * token_bytes:  # latent attention has values without width
        return mx.zeros([*shape[:axis], total, *shape[axis + 1 :]], entry.dtype)
    if rows > _MAX_ROWS or not total:
        raise _CannotJoin
    whole = [*shape[:axis], capacity, *shape[axis + 1 :]]
    array = _filled(whole, entry.dtype, lambda memory: _fill(memory, rows, token_bytes, parts, capacity))
    return array if capacity == total else RoomyArray(array, total)


def _filled(shape: Sequence[int], dtype: mx.Dtype, fill: Callable[[memoryview], None]) -> mx.array:
    size = math.prod(shape) * dtype.size
    if not size:
        return mx.zeros(shape, dtype)
    return (read_array if size >= _MIN_THREAD_BYTES else read_small_array)(shape, dtype, fill)


def _parts(name: str, files: Sequence[_File], axis: int) -> tuple[list[_Part], int]:
    """The parts of an array that is joined along an axis, and how many tokens they keep."""
    parts: list[_Part] = []
    total = 0
    first = files[0].layout.entries[name]
    for file in files:
        entry = file.layout.entries[name]
        if entry is not first and (
            entry.kind != first.kind or _token_shape(entry, axis) != _token_shape(first, axis)
        ):
            raise _CannotJoin
        kept = tokens = entry.shape[axis]
        if file.used < file.tokens:
            most: int | None = file.used
            if name != TOKENS:
                most = ranges.tokens_of_range(name, file.layout.shapes, file.used)
            kept = tokens if most is None else min(most, tokens)
        parts.append(_Part(file, file.layout.offsets[name], tokens, kept, total))
        total += kept
    return parts, total


def _token_shape(entry: Entry, axis: int) -> list[int]:
    return [*entry.shape[:axis], 1, *entry.shape[axis + 1 :]] if len(entry.shape) > axis else []


def _fill(memory: memoryview, rows: int, token_bytes: int, parts: Sequence[_Part], capacity: int) -> None:
    """Read the parts of an array into its memory, ``rows`` times ``capacity`` tokens; the room behind the
    last gets zeros.
    """
    row_bytes = capacity * token_bytes

    def read(some: Sequence[_Part]) -> None:
        for part in some:
            size, kept = part.tokens * token_bytes, part.kept * token_bytes
            starts = [row * row_bytes + part.start * token_bytes for row in range(rows)]
            if kept == size:
                part.file.read(part.offset, [memory[start : start + size] for start in starts])
                continue
            all_tokens = memoryview(bytearray(rows * size))
            part.file.read(part.offset, [all_tokens])
            for row, start in enumerate(starts):
                memory[start : start + kept] = all_tokens[row * size : row * size + kept]

    groups = min(_threads(), max(1, len(memory) // _MIN_THREAD_BYTES))
    each = -(-len(parts) // groups)
    in_threads(read, [parts[at : at + each] for at in range(0, len(parts), each)])
    end = (parts[-1].start + parts[-1].kept) * token_bytes
    for start in range(0, len(memory) if end < row_bytes else 0, row_bytes):
        memory[start + end : start + row_bytes] = bytes(row_bytes - end)


@cache
def _threads() -> int:
    return min(READ_THREADS, os.cpu_count() or 1)

"""One save of a cache: splits new tokens into segments and writes them."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqchat.store.vault import segments
from tqchat.store.vault.manifest import (
    Piece,
    Pieces,
    SavedCheckpoint,
    SavedEarlier,
    covered_tokens,
    layer_names,
    trim_pieces,
)
from tqchat.store.vault.segments import EARLIER_PREFIX, Interrupted, StoredFile

if TYPE_CHECKING:
    from tqchat.kv.checkpoint import Checkpoint

MIN_SEGMENT_TOKENS = 64
"""Fewer immutable tokens than this are not made a segment of their own yet."""
MAX_SEGMENT_TOKENS = 1024
"""Limits the tokens lost with a damaged segment, and how long one flush takes."""


class CacheWriter:
    """Writes one state of a cache: immutable tokens as new segments, everything else as one file."""

    def __init__(
        self,
        folder: Path,
        cache: list[Any],
        tokens: Sequence[int],
        pieces: Pieces,
        checkpoints: Sequence[Checkpoint],
        interrupted: Callable[[], bool],
        durable: bool = True,
    ) -> None:
        from tqchat.kv import checkpoint, ranges
        from tqchat.kv.prompt_cache import flat_layers
        from tqchat.kv.storage.earlier_files import earlier_files

        self._folder, self._cache, self._interrupted = folder, cache, interrupted
        self._durable = durable
        self._tokens = array("I", tokens)
        immutable = ranges.immutable_tokens(cache)
        self.prefix_is_usable = ranges.is_fully_ranged(cache)
        self.pieces = trim_pieces(_present(folder, pieces), immutable)
        self.written = 0
        end = covered_tokens(self.pieces)
        while immutable - end >= MIN_SEGMENT_TOKENS:
            end = min(end + MAX_SEGMENT_TOKENS, immutable)
        self._end = end
        self.structure, self._rest = ranges.rest(cache, end)
        self._rest = {"tokens": self._ids(end, len(self._tokens))} | self._rest
        self._checkpoints = []
        for one in checkpoints:
            if one.stored is not None and not _is_there(folder, one.stored):
                one.stored = None
            self._checkpoints.append((one, *checkpoint.describe(one)))
        kept_layers = {number: one.layers for number, one in enumerate(checkpoints)}
        self._earlier = earlier_files(layer_names(flat_layers(cache), kept_layers))
        for kept in self._earlier:
            file = kept.file
            if file.saved is not None and not (
                kept.arrays.keys() <= file.saved_arrays and _is_there(folder, file.saved)
            ):
                file.saved = None

    def pending_ranges(self) -> list[tuple[int, int]]:
        """The token ranges (start, end) that need new segments."""
        start = covered_tokens(self.pieces)
        return [
            (a, min(a + MAX_SEGMENT_TOKENS, self._end)) for a in range(start, self._end, MAX_SEGMENT_TOKENS)
        ]

    def pending_bytes(self) -> int:
        """Bytes that the save writes, those of earlier schemes excluded."""
        parts = [self._arrays(start, end) for start, end in self.pending_ranges()]
        parts += [arrays for one, _, arrays in self._checkpoints if one.stored is None]
        return sum(map(segments.file_size, parts)) + segments.file_size(self._rest)

    def pending_earlier_bytes(self) -> int:
        """Bytes of tokens of earlier schemes that are not on disk."""
        return sum(segments.file_size(one.arrays) for one in self._earlier if one.file.saved is None)

    @property
    def reused_bytes(self) -> int:
        """Bytes of the existing segments that the save reuses."""
        stored = [one.stored for one, _, _ in self._checkpoints if one.stored is not None]
        return sum(file.bytes for file in [*(piece.file for piece in self.pieces), *stored])

    def write_segment(self, start: int, end: int) -> None:
        """Write a token range as a segment."""
        file = self._write(self._arrays(start, end))
        self.pieces = (*self.pieces, Piece(file, start, end, end))

    def write_checkpoints(self) -> tuple[SavedCheckpoint, ...]:
        """Write the checkpoints that are not on disk; returns the manifest entries of all."""
        saved = []
        for one, layers, arrays in self._checkpoints:
            if one.stored is None:
                one.stored = self._write(arrays)
            saved.append(SavedCheckpoint(one.stored, one.tokens, layers))
        return tuple(saved)

    def write_earlier(self, *, new: bool) -> tuple[SavedEarlier, ...]:
        """Write the tokens of earlier schemes that are not on disk, if ``new``; the manifest entries of those
        that are."""
        saved = []
        for one in self._earlier:
            if one.file.saved is None and new:
                with suppress(OSError):  # without them nothing is lost but exactness of going back
                    one.file.saved = segments.write(
                        self._folder, one.arrays, self._interrupted, EARLIER_PREFIX, self._durable
                    )
                    one.file.saved_arrays = frozenset(one.arrays)
                    self.written += one.file.saved.bytes
            if one.file.saved is not None:
                saved.append(SavedEarlier(one.file.saved, one.sides))
        return tuple(saved)

    def write_rest(self) -> StoredFile:
        """Write the arrays outside segments: raw tail, windows, recurrent state."""
        return self._write(self._rest)

    def _write(self, arrays: dict[str, Any]) -> StoredFile:
        if self._interrupted():
            raise Interrupted
        file = segments.write(self._folder, arrays, self._interrupted, durable=self._durable)
        self.written += file.bytes
        return file

    def _arrays(self, start: int, end: int) -> dict[str, Any]:
        from tqchat.kv import ranges

        return {"tokens": self._ids(start, end)} | ranges.immutable_arrays(self._cache, start, end)

    def _ids(self, start: int, end: int) -> Any:
        import mlx.core as mx

        return mx.array(self._tokens[start:end].tolist(), dtype=mx.uint32)


def _present(folder: Path, pieces: Pieces) -> Pieces:
    """The leading pieces whose files still exist: another process may have pruned them."""
    for index, piece in enumerate(pieces):
        if not _is_there(folder, piece.file):
            return pieces[:index]
    return pieces


def _is_there(folder: Path, file: StoredFile) -> bool:
    try:
        return (folder / file.name).stat().st_size == file.bytes
    except OSError:
        return False

"""One save of a cache: which token ranges become segments, and what is written each time."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqchat.store.vault import segments
from tqchat.store.vault.manifest import Piece, Pieces, Saved, covered, cut
from tqchat.store.vault.segments import Interrupted, StoredFile

if TYPE_CHECKING:
    from tqchat.kv.checkpoint import Checkpoint

LEAST_TOKENS = 64
"""Fewer settled tokens than this wait for more before they become a segment."""
MOST_TOKENS = 1024
"""No segment holds more: what is damaged costs no more than that, and flushing one takes a moment."""


class Saving:
    """A save under way: which ranges are still to be written, and what they take."""

    def __init__(
        self,
        folder: Path,
        cache: list[Any],
        tokens: Sequence[int],
        pieces: Pieces,
        checkpoints: Sequence[Checkpoint],
        interrupted: Callable[[], bool],
    ) -> None:
        from tqchat.kv import checkpoint, ranges

        self._folder, self._cache, self._interrupted = folder, cache, interrupted
        self._tokens = array("I", tokens)
        self._settled = ranges.settled(cache)
        self.prefix_is_usable = ranges.can_be_cut(cache)
        self.pieces = cut(_present(folder, pieces), self._settled)
        self.written = 0
        end = covered(self.pieces)
        while self._settled - end >= LEAST_TOKENS:
            end = min(end + MOST_TOKENS, self._settled)
        self._end = end
        self.structure, self._rest = ranges.rest(cache, end)
        self._rest = {"tokens": self._ids(end, len(self._tokens))} | self._rest
        self._checkpoints = []
        for one in checkpoints:
            if one.stored is not None and not _is_there(folder, one.stored):
                one.stored = None
            self._checkpoints.append((one, *checkpoint.described(one)))

    def due(self) -> list[tuple[int, int]]:
        """The token ranges that become segments now."""
        start = covered(self.pieces)
        return [(a, min(a + MOST_TOKENS, self._end)) for a in range(start, self._end, MOST_TOKENS)]

    def bytes_due(self) -> int:
        """What is written if the save comes to its end."""
        parts = [self._arrays(start, end) for start, end in self.due()]
        parts += [arrays for one, _, arrays in self._checkpoints if one.stored is None]
        return sum(map(segments.size_of, parts)) + segments.size_of(self._rest)

    @property
    def bytes_kept(self) -> int:
        """What the segments take that are there already."""
        stored = [one.stored for one, _, _ in self._checkpoints if one.stored is not None]
        return sum(file.bytes for file in [*(piece.file for piece in self.pieces), *stored])

    def write_segment(self, start: int, end: int) -> None:
        """Write one range; it counts as soon as this returns."""
        file = self._write(self._arrays(start, end))
        self.pieces = (*self.pieces, Piece(file, start, end, end))

    def write_checkpoints(self) -> tuple[Saved, ...]:
        """Write those that are new; what the manifest says of all of them."""
        told = []
        for one, layers, arrays in self._checkpoints:
            if one.stored is None:
                one.stored = self._write(arrays)
            told.append(Saved(one.stored, one.tokens, layers))
        return tuple(told)

    def write_rest(self) -> StoredFile:
        """Write everything else."""
        return self._write(self._rest)

    def _write(self, arrays: dict[str, Any]) -> StoredFile:
        if self._interrupted():
            raise Interrupted
        file = segments.write(self._folder, arrays, self._interrupted)
        self.written += file.bytes
        return file

    def _arrays(self, start: int, end: int) -> dict[str, Any]:
        from tqchat.kv import ranges

        return {"tokens": self._ids(start, end)} | ranges.settled_arrays(self._cache, start, end)

    def _ids(self, start: int, end: int) -> Any:
        import mlx.core as mx

        return mx.array(self._tokens[start:end].tolist(), dtype=mx.uint32)


def _present(folder: Path, pieces: Pieces) -> Pieces:
    """The leading pieces whose files are there: another process may have made room."""
    for index, piece in enumerate(pieces):
        if not _is_there(folder, piece.file):
            return pieces[:index]
    return pieces


def _is_there(folder: Path, file: StoredFile) -> bool:
    try:
        return (folder / file.name).stat().st_size == file.bytes
    except OSError:
        return False

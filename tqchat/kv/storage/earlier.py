"""Tokens as they were stored under earlier schemes, kept on disk, so that going back to one loses nothing.

Written to a temporary file when the scheme changes, and saved with the cache (``earlier_files``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import mlx.core as mx

from tqchat.kv.scheme import RAW, FormatSpec
from tqchat.kv.storage.array_file import ArrayFile, StoredArray
from tqchat.kv.storage.rounding_history import Rounding
from tqchat.kv.storage.side import Side

Role = str
"""``key`` or ``value``."""


@dataclass(frozen=True)
class EarlierSide:
    """A side of a layer as it was when its scheme was changed.

    Attributes:
        arrays: Of ``Side.arrays``, all in one file.
        dtype: Of raw tokens.
        first: Position of its first token.
        end: Position after the last token that the conversation still has.
        rounding: What its tokens carried from still earlier schemes.
        number: Tells it from other sides in the file.
    """

    arrays: dict[str, StoredArray]
    head_dim: int
    dtype: mx.Dtype
    first: int
    end: int
    rounding: Rounding
    number: int

    @property
    def file(self) -> ArrayFile:
        return next(iter(self.arrays.values())).file

    @property
    def is_lost(self) -> bool:
        """Whether the disk failed before all of it was written."""
        return any(array.is_lost for array in self.arrays.values())

    def restore(self, side: Side, first: int) -> int:
        """Restore an empty side from its tokens at positions from ``first`` on.

        Returns:
            Position after the last of them.

        Raises:
            OSError: if the file cannot be read or is not what was written; the side is unchanged.
        """
        arrays = {name: stored.read() for name, stored in self.arrays.items()}
        side.restore(arrays, self.head_dim, self.dtype)
        side.trim(self.first + side.length - self.end)
        side.drop_front(min(side.length, first - self.first))
        return first + side.length

    def holds(self, arrays: Mapping[str, mx.array]) -> bool:
        """Whether arrays of ``Side.arrays`` have the names, shapes and dtypes of those in the file."""
        kinds = {name: (array.shape, array.dtype) for name, array in self.arrays.items()}
        return kinds == {name: (array.shape, array.dtype) for name, array in arrays.items()}


class EarlierSides:
    """The sides of one layer under earlier schemes, by role and format. Immutable."""

    def __init__(self, sides: dict[tuple[Role, FormatSpec], EarlierSide] | None = None) -> None:
        self._sides = sides or {}

    def get(self, role: Role, spec: FormatSpec) -> EarlierSide | None:
        side = self._sides.get((role, spec))
        return None if side is None or side.is_lost else side

    def finer(self, role: Role, than: FormatSpec) -> tuple[FormatSpec, EarlierSide] | None:
        """The side of the finest format, if that has more bits than another."""
        found = [(spec, side) for of, spec, side in self if of == role and not side.is_lost]
        finest = max(found, key=lambda one: one[0].bits, default=None)
        return finest if finest is not None and finest[0].bits > than.bits else None

    def __iter__(self) -> Iterator[tuple[Role, FormatSpec, EarlierSide]]:
        for (role, spec), side in self._sides.items():
            yield role, spec, side

    @property
    def formats(self) -> frozenset[tuple[Role, FormatSpec]]:
        """The formats of which tokens are kept."""
        return frozenset(key for key, side in self._sides.items() if not side.is_lost)

    def with_side(self, role: Role, spec: FormatSpec, side: EarlierSide) -> EarlierSides:
        return EarlierSides(self._sides | {(role, spec): side})

    def without(self, role: Role, spec: FormatSpec) -> EarlierSides:
        return EarlierSides({key: side for key, side in self._sides.items() if key != (role, spec)})

    def before(self, end: int) -> EarlierSides:
        """Without the tokens from position ``end`` on, nor sides that have nothing packed before it."""
        if not self._sides:
            return self
        shorter = {key: replace(side, end=min(side.end, end)) for key, side in self._sides.items()}
        return EarlierSides({key: side for key, side in shorter.items() if _is_useful(key[1], side)})


def _is_useful(spec: FormatSpec, side: EarlierSide) -> bool:
    sinks = side.arrays.get("sinks_0")
    return side.end > side.first + (0 if spec == RAW or sinks is None else sinks.shape[2])

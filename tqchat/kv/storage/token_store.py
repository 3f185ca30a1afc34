"""Where tokens are kept: arrays that grow along the token axis."""

from __future__ import annotations

import copy
from typing import Self

import mlx.core as mx

from tqchat.kv.codec.formats import Block

GROWTH = 256
"""Tokens by which long storage grows, as in mlx-lm's ``KVCache``."""


class TokenStore:
    """Arrays ``[batch, heads, tokens, ...]`` that grow along the token axis, with room kept ready.

    Attributes:
        arrays: Without a gap between rows: kernels are told of them by ``room`` and ``start`` alone.
        room: Tokens that the arrays have room for.
        start: The first token's place in them.
        length: Tokens held.
        origin: The same as long as the first token is, in snapshots too.
    """

    def __init__(self, growth: int = GROWTH) -> None:
        self.growth = growth
        self.arrays: Block = ()
        self.room = self.start = self.length = 0
        self.origin = object()

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the arrays as they are."""
        return sum(array.nbytes for array in self.arrays)

    @property
    def bytes(self) -> int:
        """The share of ``allocated_bytes`` that belongs to tokens held."""
        return self.allocated_bytes // self.room * self.length if self.room else 0

    def append(self, block: Block) -> None:
        """Add a block's tokens at the end."""
        count = block[0].shape[2]
        if self.start + self.length + count > self.room:
            self._grow(block)
        end = self.start + self.length + count
        for array, part in zip(self.arrays, block, strict=True):
            array[:, :, end - count : end] = part
        self.length += count

    def _grow(self, block: Block) -> None:
        """Make room for a block.

        Never exactly as much as needed: MLX turns an assignment of a whole array into an alias of its source.
        A slice of a prompt would keep the whole prompt alive, and lie in memory as it does.
        """
        more = (block[0].shape[2] // self.growth + 1) * self.growth
        held = self.view()
        blank = tuple(mx.zeros((*b.shape[:2], more, *b.shape[3:]), b.dtype) for b in block)
        self.arrays = (
            tuple(mx.concatenate([a, z], axis=2) for a, z in zip(held, blank, strict=True))
            if self.length
            else blank
        )
        self.room, self.start = self.length + more, 0

    def view(self, start: int = 0, end: int | None = None) -> Block:
        """The tokens ``[start, end)`` of those held, as slices of their own: appending later does not change
        them.
        """
        end = self.length if end is None else min(end, self.length)
        return tuple(array[:, :, self.start + start : self.start + end] for array in self.arrays)

    def snapshot(self) -> Self:
        """The tokens held, in a store of their own that nothing done to this one reaches."""
        twin = copy.copy(self)
        # The same arrays by other handles: to assign to one changes what it stands for, and no other.
        twin.arrays = tuple(array[...] for array in self.arrays)
        return twin

    def take_front(self, count: int) -> Block:
        """Remove and return the first ``count`` tokens; the rest moves to storage of its own size."""
        front, rest = self.view(0, count), self.view(count)
        left = self.length - count
        self.clear()
        if left:
            self.append(rest)
        return front

    def drop_front(self, count: int) -> None:
        """Forget the first ``count`` tokens; their room is given back once it is as much as growth adds."""
        if not count:
            return
        self.start += count
        self.length -= count
        self.origin = object()
        if not self.length:
            self.clear()
        elif self.start >= self.growth:
            self.take_front(0)

    def trim(self, count: int) -> None:
        """Forget the last ``count`` tokens; their room stays allocated while any are left."""
        if not count:
            return
        self.length -= count
        if not self.length:
            self.clear()

    def clear(self) -> None:
        self.arrays = ()
        self.room = self.start = self.length = 0
        self.origin = object()


MOST_REWRITTEN = 512
"""Tokens of a tail that are written again with each one that comes: no more than packing leaves raw."""


class Tail(TokenStore):
    """A store of raw vectors, one array ``[batch, heads, tokens, head_dim]``, whose last token may wait until
    somebody asks for the array, or a kernel that reads the token writes it as well: for each layer and token
    that is two steps of a model less.

    Attributes:
        length: Tokens held, the one that waits among them.
        parts: The array; and, if a token waits, the array without it, and that token,
            ``[batch, heads, 1, head_dim]``.
    """

    parts: Block = ()
    _takes: tuple[tuple[int, ...], mx.Dtype] | None = None

    @property
    def waits(self) -> bool:
        """Whether a token waits."""
        return len(self.parts) == 2

    @property
    def arrays(self) -> Block:
        """The array, with every token in it."""
        self.write()
        return self.parts

    @arrays.setter
    def arrays(self, arrays: Block) -> None:
        self.parts = arrays
        if arrays:
            batch, heads, _, dim = arrays[0].shape
            self._takes = (batch, heads, 1, dim), arrays[0].dtype

    def append_one(self, token: mx.array) -> None:
        """Add a token, ``[batch, heads, 1, head_dim]``, and let it wait if it is like those of a tail that is
        not long.
        """
        if (
            len(self.parts) != 1
            or self.start
            or self.length > MOST_REWRITTEN
            or (token.shape, token.dtype) != self._takes
        ):
            self.append((token,))
            return
        if self.length == self.room:
            self._grow((token,))
        self.parts = self.parts[0], token
        self.length += 1

    @property
    def allocated_bytes(self) -> int:
        return self.parts[0].nbytes if self.parts else 0

    def drop_front(self, count: int) -> None:
        self.write()
        super().drop_front(count)

    def trim(self, count: int) -> None:
        self.write()
        super().trim(count)

    def write(self) -> None:
        """Write the token that waits, if one does."""
        if len(self.parts) == 2:
            held, token = self.parts
            held[:, :, self.length - 1 : self.length] = token
            self.parts = (held,)

    def written(self, array: mx.array) -> None:
        """Note that the token waits no more: ``array`` is the one held, with the token in it."""
        self.parts = (array,)

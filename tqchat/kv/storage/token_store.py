"""Growing arrays of tokens."""

from __future__ import annotations

import copy
from typing import Self

import mlx.core as mx

from tqchat.kv.codec.base import Block

GROWTH_TOKENS = 256
"""Tokens by which long storage grows, as in mlx-lm's ``KVCache``."""


class TokenStore:
    """Arrays ``[batch, heads, tokens, ...]`` that grow along the token axis and keep spare capacity.

    Attributes:
        arrays: Row-contiguous, because kernels address them by ``capacity`` and ``start`` alone.
        capacity: Length of the arrays' token axis.
        start: Index of the first token held.
        length: Tokens held.
        front_revision: Object that is replaced when the first token changes; snapshots share it.
    """

    def __init__(self, growth: int = GROWTH_TOKENS) -> None:
        self.growth = growth
        self.arrays: Block = ()
        self.capacity = self.start = self.length = 0
        self.front_revision = object()

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the arrays, spare capacity included."""
        return sum(array.nbytes for array in self.arrays)

    @property
    def bytes(self) -> int:
        """Bytes of the tokens held."""
        return self.allocated_bytes // self.capacity * self.length if self.capacity else 0

    def append(self, block: Block) -> None:
        """Append the tokens of a block."""
        count = block[0].shape[2]
        if self.start + self.length + count > self.capacity:
            self._grow(block)
        end = self.start + self.length + count
        for array, part in zip(self.arrays, block, strict=True):
            array[:, :, end - count : end] = part
        self.length += count

    def _grow(self, block: Block) -> None:
        """Allocate capacity for a block.

        Always more than the block needs: MLX turns an assignment to a whole array into an alias of its
        source, so a slice of a prompt would keep the whole prompt alive, with its strides.
        """
        added = (block[0].shape[2] // self.growth + 1) * self.growth
        held = self.view()
        spare = tuple(mx.zeros((*b.shape[:2], added, *b.shape[3:]), b.dtype) for b in block)
        self.arrays = (
            tuple(mx.concatenate([a, z], axis=2) for a, z in zip(held, spare, strict=True))
            if self.length
            else spare
        )
        self.capacity, self.start = self.length + added, 0

    def view(self, start: int = 0, end: int | None = None) -> Block:
        """Tokens ``[start, end)`` as slices; later appends do not change them."""
        end = self.length if end is None else min(end, self.length)
        return tuple(array[:, :, self.start + start : self.start + end] for array in self.arrays)

    def snapshot(self) -> Self:
        """A copy that is not affected by later changes to this store."""
        copied = copy.copy(self)
        # New array objects: item assignment rebinds one object and leaves others unchanged.
        copied.arrays = tuple(array[...] for array in self.arrays)
        return copied

    def take_front(self, count: int) -> Block:
        """Remove and return the first ``count`` tokens; the rest moves to new arrays."""
        front, rest = self.view(0, count), self.view(count)
        remaining = self.length - count
        self.clear()
        if remaining:
            self.append(rest)
        return front

    def drop_front(self, count: int) -> None:
        """Drop the first ``count`` tokens; their capacity is freed once it reaches one growth step."""
        if not count:
            return
        self.start += count
        self.length -= count
        self.front_revision = object()
        if not self.length:
            self.clear()
        elif self.start >= self.growth:
            self.take_front(0)

    def trim(self, count: int) -> None:
        """Drop the last ``count`` tokens; arrays are freed only when the store becomes empty."""
        if not count:
            return
        self.length -= count
        if not self.length:
            self.clear()

    def clear(self) -> None:
        self.arrays = ()
        self.capacity = self.start = self.length = 0
        self.front_revision = object()


MAX_DEFERRED_TAIL_TOKENS = 512
"""Longest tail whose newest token is written by the attention kernel, which copies the whole tail for that.

Only a prompt that is not packed yet is longer.
"""


class Tail(TokenStore):
    """Store of raw vectors, one array ``[batch, heads, tokens, head_dim]``, with a deferred last token.

    Writing the newest token is deferred until the array is read, or until an attention kernel writes it along
    with its own work, which saves two operations per layer and token.

    Attributes:
        length: Tokens held, a pending one included.
        parts: The array, and the pending token ``[batch, heads, 1, head_dim]`` if there is one.
    """

    parts: Block = ()
    _token_shape: tuple[tuple[int, ...], mx.Dtype] | None = None

    @property
    def has_pending(self) -> bool:
        """Whether the newest token has not been written to the array."""
        return len(self.parts) == 2

    @property
    def arrays(self) -> Block:
        """The array with every token written."""
        self.write_pending()
        return self.parts

    @arrays.setter
    def arrays(self, arrays: Block) -> None:
        self.parts = arrays
        if arrays:
            batch, heads, _, dim = arrays[0].shape
            self._token_shape = (batch, heads, 1, dim), arrays[0].dtype

    def append_deferred(self, token: mx.array) -> None:
        """Append a token ``[batch, heads, 1, head_dim]``, written later if possible.

        It is written at once if the tail is long, or the token's shape or dtype differs from the tail's.
        """
        if (
            len(self.parts) != 1
            or self.start
            or self.length > MAX_DEFERRED_TAIL_TOKENS
            or (token.shape, token.dtype) != self._token_shape
        ):
            self.append((token,))
            return
        if self.length == self.capacity:
            self._grow((token,))
        self.parts = self.parts[0], token
        self.length += 1

    @property
    def allocated_bytes(self) -> int:
        return self.parts[0].nbytes if self.parts else 0

    def drop_front(self, count: int) -> None:
        self.write_pending()
        super().drop_front(count)

    def trim(self, count: int) -> None:
        self.write_pending()
        super().trim(count)

    def write_pending(self) -> None:
        """Write the pending token, if any."""
        if len(self.parts) == 2:
            held, token = self.parts
            held[:, :, self.length - 1 : self.length] = token
            self.parts = (held,)

    def mark_written(self, array: mx.array) -> None:
        """Replace the array by ``array``, which contains the pending token."""
        self.parts = (array,)

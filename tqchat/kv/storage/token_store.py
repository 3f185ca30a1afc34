"""Growing arrays of tokens."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import mlx.core as mx

from tqchat.kv.codec.base import Block, concatenate
from tqchat.kv.kernels.device import MIN_INPUT_SIZE
from tqchat.kv.kernels.workspace import ThreadWorkspace, copy_with_room
from tqchat.kv.storage.write_behind import in_own_buffer

GROWTH_TOKENS = 256
"""Tokens by which long storage grows, as in mlx-lm's ``KVCache``."""


PACKED_GROWTH_SHARE = 16
"""Packed storage grows by this share of its length if that is more. Growing moves all of it and takes new
memory, about as long as ten steps of a 3B model on a GPU, and one packed token in sixteen is as much as one
raw token in sixty.
"""


MAX_LAZY_MOVE_BYTES = 8 << 20
"""Larger arrays are moved at once, so that the old ones are released before the next layer's are moved."""


@dataclass(frozen=True)
class RoomyArray:
    """Tokens in an array with room for more behind them, for ``TokenStore.restore``.

    Attributes:
        array: ``[batch, heads, capacity, ...]``, evaluated, with zeros behind the tokens.
        tokens: Fewer than the capacity.
    """

    array: mx.array
    tokens: int

    @property
    def shape(self) -> tuple[int, ...]:
        batch, heads, _, *rest = self.array.shape
        return (batch, heads, self.tokens, *rest)

    @property
    def ndim(self) -> int:
        return self.array.ndim

    @property
    def dtype(self) -> mx.Dtype:
        return self.array.dtype

    @property
    def itemsize(self) -> int:
        return self.array.itemsize

    def view(self) -> mx.array:
        """The tokens."""
        return self.array[:, :, : self.tokens]


def capacity_for(tokens: int) -> int:
    """Capacity to restore a long store with, so that the next append need not move it."""
    return (tokens // GROWTH_TOKENS + 1) * GROWTH_TOKENS


class Taken(NamedTuple):
    """Tokens taken out of a store, in the memory that they are in.

    Attributes:
        memory: Arrays ``[batch, heads, capacity, ...]``; launches may not have written all tokens yet.
        start: Index of the first token.
    """

    memory: Block
    capacity: int
    start: int
    tokens: int

    def first(self, count: int) -> Taken:
        """The first ``count`` tokens, or all."""
        return self._replace(tokens=min(count, self.tokens))

    def part(self, start: int, end: int) -> Taken:
        """Tokens ``[start, end)``."""
        return Taken(self.memory, self.capacity, self.start + start, end - start)

    def view(self) -> Block:
        """The tokens as slices."""
        return tuple(array[:, :, self.start : self.start + self.tokens] for array in self.memory)


def taken_whole(block: Block) -> Taken:
    """All tokens of a block."""
    tokens = block[0].shape[2]
    return Taken(block, tokens, 0, tokens)


class _Slots:
    """Number of slots of a buffer used by any of the stores that share it."""

    def __init__(self, used: int = 0) -> None:
        self.used = used


class TokenStore:
    """Arrays ``[batch, heads, tokens, ...]`` that grow along the token axis and keep spare capacity.

    A launch of a kernel can append tokens in the arrays' own memory, without moving it or copying them there.
    MLX orders operations by their outputs, but here an input is written. So launches only write to slots
    that no store has used, which nothing else reads; and all but the launches that follow wait for them.

    Args:
        growth: Tokens by which it grows.
        share: One part in so many of its length by which it grows, if that is more.

    Attributes:
        memory: The arrays that launches read and write; all others read ``arrays``. Row-contiguous, because
            kernels address them by ``capacity`` and ``start`` alone.
        capacity: Length of the arrays' token axis.
        start: Index of the first token held.
        length: Tokens held.
        expected: Tokens that it is going to hold: the next growth makes room for as many.
        front_revision: Object that is replaced when the first token changes; snapshots share it.
    """

    def __init__(self, growth: int = GROWTH_TOKENS, share: int = 0) -> None:
        self.growth, self.share = growth, share
        self.memory: Block = ()
        # Output and workspace of the last launch that wrote to the memory.
        self._written: tuple[mx.array, ThreadWorkspace] | None = None
        self._slots = _Slots()
        self.capacity = self.start = self.length = self.expected = 0
        self.front_revision = object()

    @property
    def arrays(self) -> Block:
        """The arrays, once launches have written all tokens."""
        if self._written is not None:
            mx.eval(self._written[0])
            self._written = None
        return self.memory

    @arrays.setter
    def arrays(self, arrays: Block) -> None:
        self.memory, self._written, self._slots = arrays, None, _Slots()

    @property
    def unsubmitted(self) -> Block:
        """What to evaluate so that another thread can use the store."""
        return self.memory if self._written is None else (self._written[0],)

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the arrays, spare capacity included."""
        return sum(array.nbytes for array in self.memory)

    @property
    def bytes(self) -> int:
        """Bytes of the tokens held."""
        return self.allocated_bytes // self.capacity * self.length if self.capacity else 0

    def append(self, block: Block) -> None:
        """Append the tokens of a block."""
        count = block[0].shape[2]
        end = self.start + self.length + count
        if end > self.capacity:
            self._grow(count, block, block)
        else:
            for array, part in zip(self.arrays, block, strict=True):
                array[:, :, end - count : end] = part
        self.length += count
        # MLX has assigned to a copy, unless no other store had the buffer.
        self._slots = _Slots(self.start + self.length)

    @property
    def end(self) -> int:
        """Index behind the last token."""
        return self.start + self.length

    def make_slots(self, count: int, workspace: ThreadWorkspace) -> bool:
        """Make room where a launch can write the next ``count`` tokens, from ``end`` on.

        ``add_written`` follows.

        Args:
            workspace: Of the launch.

        Returns:
            Whether there is: not if the store is empty, or another one may have tokens there.
        """
        end = self.start + self.length
        if not self.memory or self._slots.used > end:
            return False
        if self._written is not None and self._written[1] is not workspace:
            mx.eval(self.arrays)
        if end + count > self.capacity:
            self._make_room(count, workspace)
        return True

    def add_written(self, count: int, output: mx.array, workspace: ThreadWorkspace) -> None:
        """Record that a launch writes the next ``count`` tokens.

        Args:
            output: Of the launch, which runs after all earlier ones of its workspace.
        """
        self.length += count
        self._slots.used = self.start + self.length
        self._written = output, workspace

    def launch_arrays(self, workspace: ThreadWorkspace) -> Block:
        """The arrays for a launch of a workspace."""
        same = self._written is None or self._written[1] is workspace
        return self.memory if same else self.arrays

    def _make_room(self, count: int, workspace: ThreadWorkspace) -> None:
        """Grow by at least ``count`` tokens, by launches after those that have written some."""
        held = [array[:, :, self.start : self.start + self.length] for array in self.memory]
        if min(array.size for array in held) < MIN_INPUT_SIZE:
            self._grow(count, self.memory)
            return
        capacity = self.length + self._added_capacity(count)
        after = workspace.before if self._written is None else self._written[0]
        self._move_to(tuple(copy_with_room(array, capacity, after) for array in held), capacity)
        if self.allocated_bytes > MAX_LAZY_MOVE_BYTES:
            mx.eval(self.memory)

    def _move_to(self, arrays: Block, capacity: int) -> None:
        """Take other arrays, which begin with the tokens held."""
        self.arrays = arrays
        self.capacity, self.start = capacity, 0
        self._slots.used = self.length

    def restore(self, block: Sequence[mx.array | RoomyArray]) -> None:
        """Fill an empty store with the tokens of a block; roomy arrays are taken as they are."""
        roomy = [part for part in block if isinstance(part, RoomyArray)]
        if len(roomy) < len(block) or len({(part.tokens, part.array.shape[2]) for part in roomy}) > 1:
            self.append(tuple(part.view() if isinstance(part, RoomyArray) else part for part in block))
            return
        self.arrays = tuple(part.array for part in roomy)
        self.capacity, self.start, self.length = roomy[0].array.shape[2], 0, roomy[0].tokens
        self._slots.used = self.length

    def _grow(self, count: int, like: Block, appended: Block = ()) -> None:
        """Move to arrays with room for at least ``count`` more tokens.

        Always larger than needed: MLX turns an assignment to a whole array into an alias of its source, so a
        slice of a prompt would keep the whole prompt alive, with its strides.

        Args:
            like: Any number of such tokens.
            appended: The tokens, to put them there at once.
        """
        held = self.view() if self.length else ()
        added = self._added_capacity(count)
        spare = added - (count if appended else 0)
        room = tuple(mx.zeros((*one.shape[:2], spare, *one.shape[3:]), one.dtype) for one in like)
        groups = [block for block in (held, appended, room) if block]
        arrays = tuple(concatenate(parts, axis=2) for parts in zip(*groups, strict=True))
        self._move_to(arrays, self.length + added)

    def _added_capacity(self, count: int) -> int:
        """Tokens beyond those held that the next arrays have room for, ``count`` of them needed."""
        needed = (count // self.growth + 1) * self.growth
        return max(needed, self._least_growth, self.expected - self.length)

    @property
    def _least_growth(self) -> int:
        share = self.length // self.share if self.share else 0
        return max(self.growth, share // self.growth * self.growth)

    def view(self, start: int = 0, end: int | None = None) -> Block:
        """Tokens ``[start, end)`` as slices; later appends do not change them."""
        end = self.length if end is None else min(end, self.length)
        return tuple(array[:, :, self.start + start : self.start + end] for array in self.arrays)

    def snapshot(self) -> Self:
        """A copy that is not affected by later changes to this store."""
        copied = copy.copy(self)
        # New array objects: item assignment rebinds one object and leaves others unchanged.
        copied.arrays = tuple(array[...] for array in self.arrays)
        copied._slots = self._slots
        return copied

    def pop_front(self, count: int, workspace: ThreadWorkspace) -> Taken:
        """Remove and return the first ``count`` tokens; the rest stays where it is, and others follow.

        Args:
            workspace: Of the launches that read the tokens; for a tail see ``can_pop_for``.
        """
        front = Taken(self.launch_arrays(workspace), self.capacity, self.start, count)
        self._drop_in_place(count)
        return front

    def _drop_in_place(self, count: int) -> None:
        self.start += count
        self.length -= count
        self.front_revision = object()

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
        self._drop_in_place(count)
        if not self.length:
            self.clear()
        elif self.start >= self.growth:
            self.take_front(0)

    def free_spare_room(self) -> None:
        """Free room for more tokens than are held or expected, except as much as growing leaves."""
        needed = max(self.start + self.length, self.expected)
        if self.length and self.capacity > needed + self._least_growth:
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
"""Longest tail whose newest token is written by the attention kernel: reading it afterwards copies it whole.

Only a prompt that is not packed yet is longer.
"""


class TailWriter(Protocol):
    """Launches that write tokens into the memory of tails, of which MLX does not know."""

    @property
    def order(self) -> ThreadWorkspace:
        """The workspace that orders them."""

    def copy_of(self, array: mx.array, capacity: int) -> mx.array:
        """A copy of an array that these launches wrote to, with so much capacity, computed after them."""


class Tail(TokenStore):
    """Store of raw vectors, one array ``[batch, heads, tokens, head_dim]``, with a deferred last token.

    Writing the newest token is deferred until the array is read, or until an attention kernel writes it into
    the memory of the array along with its own work, which saves two operations per layer and token.

    All but the launches that follow read a copy of the array that is computed after them, instead of waiting.

    Attributes:
        length: Tokens held, a pending one included.
        pending: The token that is not in the array yet, ``[batch, heads, 1, head_dim]``.
        writer: Whose launches have written to ``memory``, if any.
        token_shape: Shape of a token; ``None`` if empty.
    """

    pending: mx.array | None = None
    writer: TailWriter | None = None
    token_shape: tuple[int, ...] | None = None
    _dtype: mx.Dtype | None = None

    @property
    def arrays(self) -> Block:
        """The array with every token written, in the order of the graph."""
        self.write_pending()
        if self.writer is not None:
            self._copy_written()
        return self.memory

    @arrays.setter
    def arrays(self, arrays: Block) -> None:
        self.pending = self.writer = self.token_shape = None
        self.memory, self._slots = arrays, _Slots()
        if arrays:
            batch, heads, _, dim = arrays[0].shape
            self.token_shape, self._dtype = (batch, heads, 1, dim), arrays[0].dtype

    @property
    def unsubmitted(self) -> Block:
        # What launches have written is copied when another thread needs it.
        return self.arrays if self.writer is None else ()

    def append_deferred(self, token: mx.array) -> None:
        """Append a token ``[batch, heads, 1, head_dim]``, written later if possible.

        It is written at once if the tail is long, the token's shape or dtype differs from the tail's, or
        another tail may have a token in its place.
        """
        if (
            self.length > MAX_DEFERRED_TAIL_TOKENS
            or token.shape != self.token_shape
            or token.dtype != self._dtype
        ):
            self.append((token,))
            return
        if self.start + self.length == self.capacity:
            self._make_room_for(token)
        if not self.defer(token):
            self.append((token,))

    def defer(self, token: mx.array) -> bool:
        """Append a token of the tail's shape and dtype as pending.

        Returns:
            Whether its slot is there and was never used, and no other token is pending.
        """
        if not self.has_unused_slot:
            return False
        self.pending = token
        self._count_one()
        return True

    @property
    def has_unused_slot(self) -> bool:
        """Whether the slot of the next token is there and was never used, and no token is pending."""
        slot = self.start + self.length
        return self.pending is None and slot < self.capacity and self._slots.used <= slot

    def add_one_written(self, writer: TailWriter) -> None:
        """Record that a launch appends a token in the unused slot."""
        self._count_one()
        self.writer = writer

    def _count_one(self) -> None:
        self.length += 1
        self._slots.used = self.start + self.length

    def _make_room_for(self, token: mx.array) -> None:
        """Grow by at least a token."""
        if self.writer is None or self.pending is not None:
            self._grow(1, (token,))
            return
        capacity = self.length + self._added_capacity(1)
        (held,) = (array[:, :, self.start : self.start + self.length] for array in self.memory)
        self._move_to((self.writer.copy_of(held, capacity),), capacity)

    def can_pop_for(self, workspace: ThreadWorkspace) -> bool:
        """Whether a launch of a workspace can read the tokens in the memory, all of them written."""
        return self.pending is None and (self.writer is None or self.writer.order is workspace)

    def with_own_buffer(self) -> Self:
        """A copy, into which the pending token can be written without changing this tail."""
        copied = copy.copy(self)
        if self.memory:
            (memory,) = self.memory
            written = memory if self.writer is None else self.writer.copy_of(memory, self.capacity)
            copied.memory, copied.writer = (in_own_buffer(written),), None
            copied._slots = _Slots(self.start + self.length)
        return copied

    def trim(self, count: int) -> None:
        if count:
            self.pending = None
        super().trim(count)

    def write_pending(self) -> None:
        """Write the pending token, if any."""
        if (token := self.pending) is None:
            return
        if self.writer is not None:
            self._copy_written()
        end = self.start + self.length
        for array in self.memory:
            array[:, :, end - 1 : end] = token
        self.pending = None

    def launch_arrays(self, workspace: ThreadWorkspace) -> Block:
        """The array, and the pending token if there is one, for a launch of a workspace.

        The array is copied first if launches of another one have written to it.
        """
        if self.writer is not None and self.writer.order is not workspace:
            self._copy_written()
        return self.memory if self.pending is None else (*self.memory, self.pending)

    def mark_written(self, writer: TailWriter) -> None:
        """Record that a launch has written the pending token."""
        self.pending, self.writer = None, writer

    def _copy_written(self) -> None:
        assert self.writer is not None
        self.memory = tuple(self.writer.copy_of(array, self.capacity) for array in self.memory)
        self.writer, self._slots = None, _Slots(self.start + self.length)

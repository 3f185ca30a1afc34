"""One side (the keys or the values) of a layer: sinks, packed tokens, fine tokens and tail."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Self

import mlx.core as mx

from tqchat.kv.codec.base import Block, Format, RawFormat, concatenate
from tqchat.kv.codec.fitting import NO_STATISTICS, QueryStatistics
from tqchat.kv.codec.formats import make_fine_format, make_format
from tqchat.kv.codec.turbo import Prepared, TurboFormat
from tqchat.kv.kernels.decode import decode
from tqchat.kv.kernels.device import MIN_INPUT_SIZE, kernels
from tqchat.kv.kernels.encode import encode
from tqchat.kv.kernels.in_place import Vectors
from tqchat.kv.kernels.workspace import ThreadWorkspace, copy_with_room
from tqchat.kv.scheme import FINE, FINE_BITS, RAW, TILE, FormatSpec, Scheme, fitted_shapes
from tqchat.kv.storage.rounding_history import NO_ROUNDING, Rounding
from tqchat.kv.storage.threads import thread_key
from tqchat.kv.storage.token_store import (
    GROWTH_TOKENS,
    PACKED_GROWTH_SHARE,
    Tail,
    Taken,
    TokenStore,
    taken_whole,
)

PACK_CHUNK_TOKENS = 512
"""Least tokens encoded or decoded at a time, to bound the temporaries of a long prompt."""

PACK_CHUNK_VECTORS = 6144
"""Vectors of all heads encoded at a time, if that is more: with fewer, two threads search for paths at the
speed of one.
"""

GPU_PACK_CHUNK_TOKENS = 4096
"""The same on a GPU, where a kernel encodes without temporaries and launches cost more than small chunks."""

MAX_DECODE_CHUNKS = 4
"""Most parts in which a side is decoded, if they are longer than ``PACK_CHUNK_TOKENS``."""

BATCH_PACKING_FROM_TOKENS = 256
"""Encoded tokens from which a GPU packs several tiles together during decode, where launching costs more than
encoding a tile.
"""

GPU_TOKENS_PER_PACK = 32, 256
"""Fewest and most of these tokens."""

ENCODED_PER_PACKED_TOGETHER = 128
"""Between them, the encoded tokens for each that is packed together, so that few more tokens than the tail
are raw.
"""

MOST_IN_PLACE = 2
"""Times the tokens usually packed together, the most whose memory is kept when they leave the tail."""

FINE_GROWTH_TOKENS = 64
"""Tokens by which the fine part grows, which is short."""

GPU_GROWTH_TOKENS = 64
"""More tokens by which the tail and the fine part grow on a GPU, where tokens leave them in place: they move
only once the room behind them is used.
"""


def _tokens_per_pack(encoded: int) -> int:
    """Tokens packed together during decode after so many encoded ones."""
    if encoded < BATCH_PACKING_FROM_TOKENS or kernels() is None:
        return TILE
    fewest, most = GPU_TOKENS_PER_PACK
    # Powers of two: a launch is traced for each number.
    return min(most, max(fewest, 1 << (encoded // ENCODED_PER_PACKED_TOGETHER).bit_length() - 1))


def decode_fine(format_: Format, block: Block) -> mx.array:
    """Fine tokens as float32 vectors, in one kernel where available."""
    decoded = decode(format_, (), block, (), mx.float32)
    return format_.decode(block) if decoded is None else decoded


def _more_growth() -> int:
    return 0 if kernels() is None else GPU_GROWTH_TOKENS


_RAW = RawFormat()


class Encoded(NamedTuple):
    """Numbers of encoded tokens of a side: of all, and of the packed ones, which are the oldest."""

    encoded: int
    packed: int


@dataclass(frozen=True)
class Encoding:
    """Vectors to be encoded and appended to a store.

    Attributes:
        taken: The vectors, raw or fine.
        decoder: The format of fine ones.
        is_long: Whether it is one of several parts, each of which is evaluated before the next.
        is_usual: Whether its format is the store's, not another for tokens that were rounded before.
        workspace: Of the launches that may append them in the store's memory, or ``None``.
    """

    store: TokenStore
    format: Format
    taken: Taken
    decoder: Format | None = None
    is_long: bool = False
    is_usual: bool = True
    workspace: ThreadWorkspace | None = None

    @property
    def x(self) -> mx.array:
        """The vectors, ``[batch, heads, tokens, head_dim]``, which no launch has to write any more."""
        block = self.taken.view()
        return block[0] if self.decoder is None else decode_fine(self.decoder, block)

    @property
    def count(self) -> int:
        """Vectors of all heads."""
        batch, heads, *_ = self.taken.memory[0].shape
        return batch * heads * self.taken.tokens

    @property
    def can_be_in_place(self) -> bool:
        """Whether a launch may append the vectors in the store's memory."""
        is_short = self.workspace is not None and not self.is_long
        return is_short and self.is_usual and isinstance(self.format, TurboFormat)

    @property
    def in_place(self) -> Vectors:
        """The vectors for such a launch."""
        decoder, encoder = self.decoder, self.format
        assert isinstance(encoder, TurboFormat) and (decoder is None or isinstance(decoder, TurboFormat))
        return Vectors(self.taken, decoder, encoder, self.store)

    def vectors(self, after: mx.array | None) -> mx.array:
        """The vectors for operations that MLX orders.

        Args:
            after: An output of a workspace's launches; those before it may have written the vectors.
        """
        if after is None:
            return self.x
        if self.decoder is not None or self.count * self.taken.memory[0].shape[3] < MIN_INPUT_SIZE:
            mx.eval(after)
            return self.x
        return copy_with_room(self.x, self.taken.tokens, after)

    def append(self, block: Block) -> None:
        """Append the vectors, encoded."""
        self.store.append(block)
        if self.is_long:
            mx.eval(self.store.arrays)


@dataclass(frozen=True)
class FoldedQueries:
    """Queries prepared for products with each part of a side.

    Attributes:
        raw: The queries, float32 ``[batch, heads, rows, head_dim]``.
        stored: ``Format.fold`` of the queries, float32 ``[batch, heads, rows, stored_dim]``.
        sinks: Scores of the sinks, float32 ``[batch, heads, rows, sinks]``.
    """

    raw: mx.array
    stored: mx.array | None = None
    sinks: mx.array | None = None


class Side:
    """The keys or the values of one layer: ``[sinks | packed | fine | recent]`` in token order.

    Tokens are appended raw to ``recent``. ``pack_due`` encodes the oldest of them in whole tiles, after the
    first ``scheme.sinks`` tokens and leaving at least ``scheme.tail`` raw. The newest ``scheme.fine`` encoded
    tokens are at ``FINE_BITS``, and are encoded again when they are packed. A raw side never packs: all of
    its tokens are in ``recent``.

    Attributes:
        format: Of the packed tokens.
        fine_format: Of the fine ones, with the rotation and the fit of ``format``.
        least_packed: Fewest tokens packed at a time in single steps, if that is more than usual.
        revision: Object replaced by every change except appends that fit the capacity of ``recent``;
            snapshots share it.
    """

    def __init__(self, scheme: Scheme, role: Literal["key", "value"]) -> None:
        self.scheme = scheme
        self.role = role
        self.spec: FormatSpec = scheme.key if role == "key" else scheme.value
        self.head_dim = 0
        self.dtype = mx.float16
        self.least_packed = 0
        self.revision = object()
        self.set_format(RawFormat())
        self.sinks = TokenStore(growth=1)
        self.packed = TokenStore(share=PACKED_GROWTH_SHARE)
        self.fine = TokenStore(FINE_GROWTH_TOKENS + _more_growth())
        self.recent = Tail(GROWTH_TOKENS if self.spec.kind == "raw" else TILE + _more_growth())
        self._decoded: tuple[tuple[object, ...], tuple[object, ...], mx.array] | None = None
        self._sinks_cache: tuple[object, int, mx.array] | None = None
        self._kept: tuple[list[tuple[Block, int, int]], Any] | None = None

    def set_format(self, packed: Format) -> None:
        """Set the format of packed tokens, and that of fine ones with it."""
        self.format = packed
        self.fine_format = make_fine_format(packed)

    @property
    def stores(self) -> dict[str, TokenStore]:
        """The stores in token order, by name; the names are part of saved caches."""
        return {"sinks": self.sinks, "packed": self.packed, "fine": self.fine, "recent": self.recent}

    @property
    def length(self) -> int:
        return self.sinks.length + self.encoded + self.recent.length

    @property
    def encoded(self) -> int:
        """Tokens that are packed or fine."""
        return self.packed.length + self.fine.length

    @property
    def bytes(self) -> int:
        """Bytes of the tokens held and of the fitted vectors; shared arrays excluded."""
        return sum(store.bytes for store in self.stores.values()) + self._fitted_bytes

    @property
    def allocated_bytes(self) -> int:
        return sum(store.allocated_bytes for store in self.stores.values()) + self._fitted_bytes

    @property
    def working_bytes(self) -> int:
        """Bytes of the arrays kept between steps that are computed from the others: float32 copies of the
        sinks, what ``Prepared`` copies, and the format's.
        """
        sinks = 0 if self._sinks_cache is None else self._sinks_cache[2].nbytes
        prepared = None if self._kept is None else self._kept[1]
        copied = prepared.copied_bytes if isinstance(prepared, Prepared) else 0
        return sinks + copied + self.format.working_bytes

    def release_working_arrays(self) -> None:
        """Release what ``working_bytes`` counts; the next step computes it again."""
        self._sinks_cache = None
        self._forget_encoded()
        self.format.release_working_arrays()

    @property
    def _fitted_bytes(self) -> int:
        return sum(array.nbytes for array in self.format.fitted.values())

    @property
    def shape(self) -> tuple[int, int]:
        """Batch size and heads; (0, 0) while empty."""
        for store in (self.packed, self.fine, self.sinks):
            if store.memory:
                batch, heads, *_ = store.memory[0].shape
                return batch, heads
        batch, heads, *_ = self.recent.token_shape or (0, 0)
        return batch, heads

    def snapshot(self) -> Self:
        """A copy that is not affected by later changes to this side."""
        copied = copy.copy(self)
        copied.sinks, copied.packed = self.sinks.snapshot(), self.packed.snapshot()
        copied.fine, copied.recent = self.fine.snapshot(), self.recent.snapshot()
        copied._kept = None
        return copied

    def first(self, count: int) -> Self:
        """The side without its last tokens, which are recent; valid until the side changes."""
        if count == self.length:
            return self
        shortened = copy.copy(self)
        self.recent.write_pending()
        shortened.recent = copy.copy(self.recent)
        shortened.recent.length -= self.length - count
        return shortened

    def free_spare_room(self) -> None:
        """Free room for packed tokens that none are expected for."""
        memory = self.packed.memory
        self.packed.free_spare_room()
        if self.packed.memory is not memory:
            self.revision = object()
            self._forget_encoded()

    def append(self, x: mx.array) -> None:
        """Append vectors ``[batch, heads, tokens, head_dim]`` of one float dtype."""
        if not self.head_dim:
            self.set_head_dim(x.shape[-1])
        self.dtype = x.dtype
        recent = self.recent
        capacity, start = recent.capacity, recent.start
        if x.shape[2] == 1 and self.encoded:
            recent.append_deferred(x)
        else:
            recent.append((x,))
        if recent.capacity != capacity or recent.start != start:
            self.revision = object()

    def set_head_dim(self, head_dim: int) -> None:
        """Set the vector width; formats that would not save memory at that width become raw."""
        self.head_dim = head_dim
        if not self.spec.saves_memory(head_dim):
            self.spec = RAW

    @property
    def is_due(self) -> bool:
        """Whether a single-token step should pack."""
        return self.tokens_until_due <= 0

    @property
    def tokens_until_due(self) -> int:
        """Single tokens to append until ``is_due``; a very large number on a raw side."""
        if self.spec.kind == "raw":
            return 1 << 30
        needed = max(self.scheme.least_to_encode(self._has_begun), self.scheme.tail + self._pack_threshold)
        return needed + self._missing_sinks - self.recent.length

    @property
    def _pack_threshold(self) -> int:
        """Tokens beyond the tail that trigger packing during decode."""
        return max(_tokens_per_pack(self.encoded), self.least_packed)

    @property
    def _missing_sinks(self) -> int:
        """Raw tokens that become sinks before any is encoded."""
        return self.scheme.sinks if not self.sinks.length else 0

    @property
    def _leaving_tail(self) -> int:
        """Raw tokens behind the sinks to encode."""
        if self.spec.kind == "raw":
            return 0
        return self.scheme.packable(self.recent.length - self._missing_sinks, self._has_begun)

    @property
    def _has_begun(self) -> bool:
        """Whether tokens have been encoded, or the format is fitted already."""
        return self.encoded > 0 or bool(self.format.fitted)

    @property
    def due(self) -> Encoded:
        """The encoded tokens that ``pack_due`` leaves."""
        leaving = self._leaving_tail
        surplus = self.scheme.surplus(self.fine.length + leaving)
        return Encoded(self.encoded + leaving, self.packed.length + surplus)

    @property
    def due_in_prompt(self) -> Encoded:
        """``due`` between chunks of a prompt: tokens that would be fine stay raw, as the next chunk packs
        them.
        """
        encoded = self.encoded + max(0, self._leaving_tail - self.scheme.fine)
        return Encoded(encoded, self.packed.length if encoded == self.encoded else encoded)

    def pack_due(
        self,
        statistics: QueryStatistics = NO_STATISTICS,
        rounding: Rounding = NO_ROUNDING,
        target: Encoded | None = None,
    ) -> None:
        """Encode the tokens that have left the tail, and pack those that have left the fine part.

        Arguments as for ``take_due``.
        """
        for encoding in self.take_due(statistics, rounding, target):
            encoding.append(encode(encoding.format, encoding.x))

    def take_due(
        self,
        statistics: QueryStatistics = NO_STATISTICS,
        rounding: Rounding = NO_ROUNDING,
        target: Encoded | None = None,
        workspace: ThreadWorkspace | None = None,
    ) -> list[Encoding]:
        """Take out what ``pack_due`` encodes; the side is complete again once that is appended, in order.

        The first call fits the format to all raw tokens.

        Args:
            statistics: Of the layer's queries; ``first_position`` is the position of the side's first token.
            rounding: What the tokens carry from earlier schemes, by position.
            target: The encoded tokens to leave, no fewer of each than ``due``, which is the default.
            workspace: Of launches that may encode in place (see ``can_pack_in_place``).
        """
        target = self.due if target is None else target
        count, surplus = target.encoded - self.encoded, target.packed - self.packed.length
        if not (count or surplus):
            return []
        self.revision = object()
        self._forget_encoded()  # Their references would prevent growth in place.
        if count and (unfitted := self.vectors_to_fit(statistics)) is not None:
            self.set_format(self.format.fit(*unfitted))
        first = statistics.first_position + self.sinks.length + self.packed.length
        packs_fine = min(surplus, self.fine.length)
        encodings: list[Encoding] = []
        if packs_fine:
            if target.encoded == target.packed:
                workspace = None  # the fine part stays empty
            encodings += self._take_fine(first, packs_fine, rounding, workspace)
            first += packs_fine
        if count:
            if workspace is None:
                due = taken_whole(self.recent.take_front(count))
            else:
                due = self.recent.pop_front(count, workspace)
            raw = surplus - packs_fine
            if raw:
                encodings += self._encodings(
                    self.packed, self.spec, due.first(raw), None, first, rounding, workspace
                )
            first += raw + self.fine.length
            if raw < count:
                encodings += self._encodings(
                    self.fine, FINE, due.part(raw, count), None, first, rounding, workspace
                )
        return encodings

    def can_pack_in_place(self, workspace: ThreadWorkspace) -> bool:
        """Whether launches of a workspace can encode what is due in the memory of the stores.

        Not the first tokens, which formats are fitted to, and not those of a prompt: they would take up
        memory until the tail moves.
        """
        needs_fit = not self.format.fitted and bool(fitted_shapes(self.spec, self.role, self.head_dim))
        few = self._leaving_tail <= MOST_IN_PLACE * _tokens_per_pack(self.encoded)
        return self.encoded > 0 and few and not needs_fit and self.recent.can_pop_for(workspace)

    def vectors_to_fit(self, statistics: QueryStatistics) -> tuple[mx.array, QueryStatistics] | None:
        """Separate the sinks; what ``Format.fit`` is called with before the next packing.

        Returns:
            All raw vectors behind the sinks, and the statistics from there on; ``None`` if the format is
            fitted, or needs no fit.
        """
        if sinks := self._missing_sinks:
            self.revision = object()
            self.sinks.append(self.recent.take_front(sinks))
        if isinstance(self.format, RawFormat):
            self.set_format(make_format(self.spec, self.head_dim, self.role))
        if self.format.fitted or not fitted_shapes(self.spec, self.role, self.head_dim):
            return None
        behind_sinks = statistics.first_position + self.sinks.length
        return self.recent.view()[0], replace(statistics, first_position=behind_sinks)

    def _take_fine(
        self, first: int, count: int, rounding: Rounding, workspace: ThreadWorkspace | None
    ) -> list[Encoding]:
        """Take out the oldest ``count`` fine tokens, of which ``first`` is the position of the first."""
        if workspace is not None and self.spec != FINE:
            taken, decoder = self.fine.pop_front(count, workspace), self.fine_format
            return self._encodings(self.packed, self.spec, taken, decoder, first, rounding, workspace)
        if workspace is None:
            block = self.fine.take_front(count)
        else:
            block = self.fine.view(0, count)
            self.fine.pop_front(count, workspace)
        if self.spec == FINE:
            self.packed.append(block)
            return []
        taken = taken_whole((decode_fine(self.fine_format, block),))
        return self._encodings(self.packed, self.spec, taken, None, first, rounding, None)

    def _encodings(
        self,
        store: TokenStore,
        spec: FormatSpec,
        taken: Taken,
        decoder: Format | None,
        first: int,
        rounding: Rounding,
        workspace: ThreadWorkspace | None,
    ) -> list[Encoding]:
        """Encodings that bring vectors into a store.

        Args:
            spec: Of the store's format.
            decoder: The format of fine vectors; ``None`` for raw ones.
            first: Position of the first vector.
        """
        format_ = self.format_of(store)
        count = taken.tokens
        if kernels() is None:
            batch, heads, *_ = taken.memory[0].shape
            chunk = max(PACK_CHUNK_TOKENS, PACK_CHUNK_VECTORS // (batch * heads))
        else:
            chunk = GPU_PACK_CHUNK_TOKENS
        if not rounding.runs and count <= chunk:
            return [Encoding(store, format_, taken, decoder, workspace=workspace)]
        encodings = []
        for low, high, bits, _ in rounding.spans(first, first + count):
            is_usual = bits > spec.bits
            encoder = format_ if is_usual else format_.length_keeping
            for start in range(low, high, chunk):
                part = taken.part(start - first, min(start + chunk, high) - first)
                encodings.append(Encoding(store, encoder, part, decoder, count > chunk, is_usual, workspace))
        return encodings

    def format_of(self, store: TokenStore) -> Format:
        """The format of one of the two stores of encoded tokens."""
        return self.fine_format if store is self.fine else self.format

    def packed_positions(self, first: int) -> tuple[int, int]:
        """Range of the packed tokens' positions; ``first`` is that of the side's first token."""
        begin = first + self.sinks.length
        return begin, begin + self.packed.length

    def rounded(self, before: Rounding, first: int) -> Rounding:
        """What the tokens carry with the rounding of their present formats.

        Args:
            before: What they carry from earlier schemes.
            first: Position of the first token.
        """
        begin, end = self.packed_positions(first)
        packed = before.lowered(begin, end, self.spec.bits)
        return packed.lowered(end, end + self.fine.length, FINE_BITS) if self.fine.length else packed

    def _forget_encoded(self) -> None:
        """Release what is kept between steps of encoded tokens."""
        self._decoded = self._kept = None

    def take_fit_of(self, other: Side) -> None:
        """Take the fit of a side in another format, unless this one is fitted or needs more."""
        if self.spec.kind != "raw" and not self.format.fitted:
            fitted = make_format(self.spec, self.head_dim, self.role).with_fit_of(other.format)
            if fitted.fitted:
                self.set_format(fitted)

    def drop_front(self, count: int) -> None:
        """Drop the first ``count`` tokens from whichever stores hold them; the format stays fitted."""
        self.revision = object()
        self._forget_encoded()
        for store in self.stores.values():
            dropped = min(count, store.length)
            store.drop_front(dropped)
            count -= dropped

    def trim(self, count: int) -> None:
        """Drop the last ``count`` tokens from whichever stores hold them."""
        self.revision = object()
        for store in (self.recent, self.fine, self.packed, self.sinks):
            dropped = min(count, store.length)
            store.trim(dropped)
            count -= dropped
            if dropped and store is not self.recent:
                self._forget_encoded()
        if not self.encoded and self.format.fitted:
            self.set_format(RawFormat())  # fitted anew: what comes next may be another text
        if not self.encoded and self.sinks.length:
            # With nothing encoded, the sinks return to the raw tokens.
            rest = self.recent.view()
            raw = self.sinks.view()
            self.recent.clear()
            self.recent.append(raw)
            if rest and rest[0].shape[2]:
                self.recent.append(rest)
            self.sinks.clear()

    def fetch(self, dtype: mx.Dtype, keep_graph: bool = False) -> mx.array:
        """All vectors decoded, ``[batch, heads, tokens, head_dim]``, lazily: not computed unless evaluated.

        Args:
            keep_graph: Reuse the decoding graph in the next call, as building it takes a large part of a
                step. Only for callers that do not evaluate it: evaluated, it would hold a decoded copy.
        """
        if self.encoded:
            if not keep_graph and (decoded := self._decoded_by_kernel(dtype)) is not None:
                self._decoded = None
                return decoded
            parts = [self._decoded_front(dtype, keep_graph)]
        else:
            self._decoded = None
            parts = [array.astype(dtype) for array in self.sinks.view()]
        return concatenate([*parts, *(array.astype(dtype) for array in self.recent.view())], axis=2)

    def _decoded_by_kernel(self, dtype: mx.Dtype) -> mx.array | None:
        if not self.packed.length or (self.fine.length and kernels() is None):
            return None
        sinks, packed, fine, recent = (store.view() if store.length else () for store in self.stores.values())
        if fine:
            # To the kernel they are the first of the tail.
            tail = decode(self.fine_format, (), fine, recent, self.dtype)
            if tail is None:
                tail = concatenate([self.fine_format.decode(fine).astype(self.dtype), *recent], axis=2)
            recent = (tail,)
        return decode(self.format, sinks, packed, recent, dtype)

    def release_decoded(self) -> None:
        """Release the decoding graph kept by ``fetch``."""
        self._decoded = None

    def _decoded_front(self, dtype: mx.Dtype, keep_graph: bool) -> mx.array:
        """Sinks, packed and fine tokens, decoded."""
        store, fine = self.packed, self.fine
        objects = thread_key(), store.arrays, fine.arrays
        numbers = store.start, store.length, fine.start, fine.length, dtype
        if (cached := self._decoded) is not None:
            same_objects = all(a is b for a, b in zip(cached[0], objects, strict=True))
            if same_objects and cached[1] == numbers:
                self._decoded = cached if keep_graph else None
                return cached[2]
        parts = [array.astype(dtype) for array in self.sinks.view()]
        # Few chunks: a routed model never evaluates them, but building them takes Python for each.
        size = max(PACK_CHUNK_TOKENS, -(-store.length // MAX_DECODE_CHUNKS))
        for first in range(0, store.length, size):
            parts.append(self.format.decode(store.view(first, first + size)).astype(dtype))
        if fine.length:
            parts.append(decode_fine(self.fine_format, fine.view()).astype(dtype))
        decoded = concatenate(parts, axis=2)
        self._decoded = (objects, numbers, decoded) if keep_graph else None
        return decoded

    def fold(self, queries: mx.array) -> FoldedQueries:
        """Fold queries, float32 ``[batch, heads, rows, head_dim]``, for ``scores``."""
        stored = self.format.fold(queries) if self.encoded else None
        sinks = queries @ self._float_sinks.swapaxes(-1, -2) if self.sinks.length else None
        return FoldedQueries(queries, stored, sinks)

    def scores(self, folded: FoldedQueries, start: int = 0, end: int | None = None) -> mx.array:
        """Dot products with the keys of tokens ``[start, end)``: float32 ``[batch, heads, rows, tokens]``."""
        (sinks, sinks_end), (front, encoded_end), (recent, end) = self._ranges(start, end)
        parts = []
        if sinks < sinks_end:
            assert folded.sinks is not None
            parts.append(folded.sinks[..., sinks:sinks_end])
        if front < encoded_end:
            assert folded.stored is not None
            parts.append(self.format.multiply(folded.stored, self._prepared(front, encoded_end)))
        if recent < end:
            parts.append(_RAW.multiply(folded.raw, self.recent.view(recent, end)))
        return concatenate(parts)

    def combine(
        self, weights: mx.array, start: int = 0, end: int | None = None, depends_on: mx.array | None = None
    ) -> mx.array:
        """Weighted sums of the values of tokens ``[start, end)``: float32 ``[batch, heads, rows, head_dim]``.

        Args:
            weights: float32 ``[batch, heads, rows, tokens]``.
            depends_on: See ``Format.sum``.
        """
        (sinks, sinks_end), (front, encoded_end), (recent, end) = self._ranges(start, end)
        behind_sinks = sinks_end - sinks
        behind_encoded = behind_sinks + encoded_end - front
        sums: list[mx.array] = []
        if behind_sinks:
            sums.append(weights[..., :behind_sinks] @ self._float_sinks[:, :, sinks:sinks_end])
        if front < encoded_end:
            encoded = self._prepared(front, encoded_end)
            total = self.format.sum(weights[..., behind_sinks:behind_encoded], encoded, depends_on)
            sums.append(self.format.unfold(total))
        if recent < end:
            sums.append(_RAW.sum(weights[..., behind_encoded:], self.recent.view(recent, end)))
        return sum(sums[1:], sums[0])

    def _ranges(self, start: int, end: int | None) -> tuple[tuple[int, int], ...]:
        """The tokens ``[start, end)`` among the sinks, among the encoded tokens and in the tail."""
        end = self.length if end is None else end
        ranges = []
        for length in (self.sinks.length, self.encoded, self.recent.length):
            ranges.append((min(max(start, 0), length), min(max(end, 0), length)))
            start, end = start - length, end - length
        return tuple(ranges)

    @property
    def _float_sinks(self) -> mx.array:
        """The sinks as float32; cached, because every step needs them and appends do not change them."""
        cached, front_revision, length = self._sinks_cache, self.sinks.front_revision, self.sinks.length
        if cached is None or cached[0] is not front_revision or cached[1] != length:
            sinks = self.sinks.view()[0].astype(mx.float32)
            mx.async_eval(sinks)  # type: ignore[no-untyped-call]  # lazy arrays of one thread cannot be evaluated by another
            cached = self._sinks_cache = front_revision, length, sinks
        return cached[2]

    def _prepared(self, start: int, end: int) -> Any:
        """``Format.prepare`` of the encoded tokens ``[start, end)``; kept between steps if those are all."""
        if (start, end) != (0, self.encoded):
            return self._prepare(start, end)
        stores = self.packed, self.fine
        state = [(store.arrays, store.start, store.length) for store in stores]
        kept = self._kept
        if kept is None or any(
            a[0] is not b[0] or a[1:] != b[1:] for a, b in zip(kept[0], state, strict=True)
        ):
            kept = self._kept = state, self._prepare(start, end)
            mx.async_eval(kept[1])  # type: ignore[no-untyped-call]  # see ``_float_sinks``
        return kept[1]

    def _prepare(self, start: int, end: int) -> Any:
        """``_prepared``, made anew."""
        split = self.packed.length
        packed = self.packed.view(start, end) if start < split else ()
        fine = self.fine.view(max(start - split, 0), end - split) if end > split else ()
        return self.format.prepare(packed, fine)

    def arrays(self) -> dict[str, mx.array]:
        """Arrays needed to restore the side exactly, by name, without spare capacity."""
        named = {
            f"{name}_{i}": array
            for name, store in self.stores.items()
            if store.length
            for i, array in enumerate(store.view())
        }
        for kind, group in (("shared", self.format.shared), ("fitted", self.format.fitted)):
            named |= {f"{kind}_{name}": array for name, array in group.items()}
        return named

    def restore(self, arrays: dict[str, Any], head_dim: int, dtype: mx.Dtype) -> None:
        """Restore an empty side from ``arrays``, of which long stores' may be ``RoomyArray``.

        Args:
            dtype: Of raw tokens.

        Raises:
            ValueError: if the fitted vectors do not have the shape that the tokens need.
        """
        self.dtype = dtype
        if not head_dim:
            return
        shared, fitted = (
            {k.removeprefix(kind): v for k, v in arrays.items() if k.startswith(kind)}
            for kind in ("shared_", "fitted_")
        )
        self.set_head_dim(head_dim)
        check_fitted(self.spec, self.role, head_dim, arrays)
        if shared or fitted or "packed_0" in arrays or "fine_0" in arrays:
            self.set_format(make_format(self.spec, head_dim, self.role, shared, fitted))
        for name, store in self.stores.items():
            block: list[Any] = []
            while (array := arrays.get(f"{name}_{len(block)}")) is not None:
                block.append(array)
            if block:
                store.restore(block)
        self.revision = object()


def check_fitted(
    spec: FormatSpec, role: Literal["key", "value"], head_dim: int, arrays: Mapping[str, Any]
) -> None:
    """Check the shapes of fitted vectors among the arrays of a side, which may have none.

    Raises:
        ValueError: if they do not have the shape that its tokens need.
    """
    fitted = {name: (a.shape, a.itemsize) for name, a in arrays.items() if name.startswith("fitted_")}
    if not fitted:
        return
    # A side that was converted may be fitted with all of its tokens in the tail.
    stores = "packed_0", "fine_0", "recent_0"
    heads = next((arrays[name].shape[:2] for name in stores if name in arrays), ())
    expected = {
        f"fitted_{name}": ((*heads, shape.rows, shape.columns), shape.itemsize)
        for name, shape in fitted_shapes(spec, role, head_dim).items()
    }
    if fitted != expected:
        raise ValueError("the fitted vectors do not match the shape of the tokens")

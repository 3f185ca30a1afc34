"""One side (the keys or the values) of a layer: sinks, packed tokens and tail."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import mlx.core as mx

from tqchat.kv.codec.base import Block, Format, RawFormat
from tqchat.kv.codec.fitting import NO_STATISTICS, QueryStatistics
from tqchat.kv.codec.formats import make_format
from tqchat.kv.kernels.decode import decode
from tqchat.kv.kernels.device import kernels
from tqchat.kv.kernels.encode import encode
from tqchat.kv.scheme import RAW, TILE, FormatSpec, Scheme, fitted_shapes
from tqchat.kv.storage.rounding_history import NO_ROUNDING, Rounding
from tqchat.kv.storage.threads import thread_key
from tqchat.kv.storage.token_store import GROWTH_TOKENS, Tail, TokenStore

PACK_CHUNK_TOKENS = 512
"""Tokens encoded or decoded at a time, to bound the temporaries of a long prompt."""

GPU_PACK_CHUNK_TOKENS = 4096
"""The same on a GPU, where a kernel encodes without temporaries and launches cost more than small chunks."""

MAX_DECODE_CHUNKS = 4
"""Most parts in which a side is decoded, if they are longer than ``PACK_CHUNK_TOKENS``."""

GPU_TILES_PER_PACK = 4
"""Tiles packed together during decode on a GPU, where launching costs more than encoding a tile."""

BATCH_PACKING_FROM_TOKENS = 256
"""Packed tokens from which tiles are packed together: the extra raw tokens are then a small share."""


def _tokens_per_pack() -> int:
    """Tokens packed together during decode once ``BATCH_PACKING_FROM_TOKENS`` are packed."""
    return TILE if kernels() is None else GPU_TILES_PER_PACK * TILE


_RAW = RawFormat()


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
    """The keys or the values of one layer: ``[sinks | packed | recent]`` in token order.

    Tokens are appended raw to ``recent``. ``pack_due`` encodes the oldest of them in whole tiles, after the
    first ``scheme.sinks`` tokens and leaving at least ``scheme.tail`` raw. A raw side never packs: all of its
    tokens are in ``recent``.

    Attributes:
        revision: Object replaced by every change except appends that fit the capacity of ``recent``;
            snapshots share it.
    """

    def __init__(self, scheme: Scheme, role: Literal["key", "value"]) -> None:
        self.scheme = scheme
        self.role = role
        self.spec: FormatSpec = scheme.key if role == "key" else scheme.value
        self.head_dim = 0
        self.dtype = mx.float16
        self.revision = object()
        self.format: Format = RawFormat()
        self.sinks = TokenStore(growth=1)
        self.packed = TokenStore()
        self.recent = Tail(GROWTH_TOKENS if self.spec.kind == "raw" else _tokens_per_pack())
        self._decoded: tuple[object, Block, int, int, mx.Dtype, mx.array] | None = None
        self._sinks_cache: tuple[object, int, mx.array] | None = None
        self._prepared_cache: tuple[Block, int, int, Block] | None = None

    @property
    def stores(self) -> dict[str, TokenStore]:
        """The stores in token order, by name; the names are part of saved caches."""
        return {"sinks": self.sinks, "packed": self.packed, "recent": self.recent}

    @property
    def length(self) -> int:
        return self.sinks.length + self.packed.length + self.recent.length

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
        sinks, and the format's.
        """
        sinks = 0 if self._sinks_cache is None else self._sinks_cache[2].nbytes
        return sinks + self.format.working_bytes

    def release_working_arrays(self) -> None:
        """Release what ``working_bytes`` counts; the next step computes it again."""
        self._decoded = self._sinks_cache = self._prepared_cache = None
        self.format.release_working_arrays()

    @property
    def _fitted_bytes(self) -> int:
        return sum(array.nbytes for array in self.format.fitted.values())

    @property
    def shape(self) -> tuple[int, int]:
        """Batch size and heads; (0, 0) while empty."""
        # The tail last, because reading its arrays writes its pending token.
        for store in (self.packed, self.sinks, self.recent):
            if store.arrays:
                batch, heads, *_ = store.arrays[0].shape
                return batch, heads
        return 0, 0

    def snapshot(self) -> Self:
        """A copy that is not affected by later changes to this side."""
        copied = copy.copy(self)
        copied.sinks, copied.packed = self.sinks.snapshot(), self.packed.snapshot()
        copied.recent = self.recent.snapshot()
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

    def append(self, x: mx.array) -> None:
        """Append vectors ``[batch, heads, tokens, head_dim]`` of one float dtype."""
        if not self.head_dim:
            self.set_head_dim(x.shape[-1])
        self.dtype = x.dtype
        recent = self.recent
        capacity, start = recent.capacity, recent.start
        if x.shape[2] == 1 and self.packed.length:
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
        excess = self.recent.length - self.scheme.tail
        return excess >= TILE and excess >= self._pack_threshold and self._due[1] > 0

    @property
    def tokens_until_due(self) -> int:
        """Single tokens to append until ``is_due``; a very large number on a raw side."""
        if self.spec.kind == "raw":
            return 1 << 30
        sinks = self.scheme.sinks if not self.sinks.length else 0
        return self.scheme.tail + self._pack_threshold + sinks - self.recent.length

    @property
    def _pack_threshold(self) -> int:
        """Tokens beyond the tail that trigger packing during decode."""
        return _tokens_per_pack() if self.packed.length >= BATCH_PACKING_FROM_TOKENS else TILE

    @property
    def _due(self) -> tuple[int, int]:
        """Tokens to move to the sinks, and tokens behind them to pack."""
        if self.spec.kind == "raw":
            return 0, 0
        sinks = self.scheme.sinks if not self.sinks.length else 0
        return sinks, self.scheme.packable(self.recent.length - sinks)

    def pack_due(self, statistics: QueryStatistics = NO_STATISTICS, rounding: Rounding = NO_ROUNDING) -> None:
        """Pack the tokens that have left the tail. The first call fits the format to all raw tokens.

        Args:
            statistics: Of the layer's queries; ``first_position`` is the position of the side's first token.
            rounding: What the tokens carry from earlier schemes, by position.
        """
        sinks, count = self._due
        if not count:
            return
        self.revision = object()
        self._decoded = self._prepared_cache = None  # Their references would prevent growth in place.
        if sinks:
            self.sinks.append(self.recent.take_front(sinks))
        if isinstance(self.format, RawFormat):
            self.format = make_format(self.spec, self.head_dim, self.role)
        if not self.format.fitted:
            behind_sinks = statistics.first_position + self.sinks.length
            self.format = self.format.fit(
                self.recent.view()[0], replace(statistics, first_position=behind_sinks)
            )
        first = statistics.first_position + self.sinks.length + self.packed.length
        due = self.recent.take_front(count)
        chunk = PACK_CHUNK_TOKENS if kernels() is None else GPU_PACK_CHUNK_TOKENS
        for low, high, bits, _ in rounding.spans(first, first + count):
            encoder = self.format if bits > self.spec.bits else self.format.length_keeping
            for start in range(low, high, chunk):
                end = min(start + chunk, high)
                self.packed.append(encode(encoder, due[0][:, :, start - first : end - first]))
                if count > chunk:
                    mx.eval(self.packed.arrays)

    def packed_positions(self, first: int) -> tuple[int, int]:
        """Range of the packed tokens' positions; ``first`` is that of the side's first token."""
        begin = first + self.sinks.length
        return begin, begin + self.packed.length

    def take_fit_of(self, other: Side) -> None:
        """Take the fit of a side in another format, unless this one is fitted or needs more."""
        if self.spec.kind != "raw" and not self.format.fitted:
            fitted = make_format(self.spec, self.head_dim, self.role).with_fit_of(other.format)
            self.format = fitted if fitted.fitted else self.format

    def drop_front(self, count: int) -> None:
        """Drop the first ``count`` tokens from whichever stores hold them; the format stays fitted."""
        self.revision = object()
        self._decoded = self._prepared_cache = None
        for store in self.stores.values():
            dropped = min(count, store.length)
            store.drop_front(dropped)
            count -= dropped

    def trim(self, count: int) -> None:
        """Drop the last ``count`` tokens from whichever stores hold them."""
        self.revision = object()
        for store in (self.recent, self.packed, self.sinks):
            dropped = min(count, store.length)
            store.trim(dropped)
            count -= dropped
        if not self.packed.length:
            self._decoded = self._prepared_cache = None
            if self.format.fitted:
                self.format = RawFormat()  # fitted anew: what comes next may be another text
        if not self.packed.length and self.sinks.length:
            # With nothing packed, the sinks return to the raw tokens.
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
        if self.packed.length:
            if not keep_graph and (decoded := self._decoded_by_kernel(dtype)) is not None:
                self._decoded = None
                return decoded
            parts = [self._decoded_front(dtype, keep_graph)]
        else:
            self._decoded = None
            parts = [array.astype(dtype) for array in self.sinks.view()]
        return _concatenate([*parts, *(array.astype(dtype) for array in self.recent.view())], axis=2)

    def _decoded_by_kernel(self, dtype: mx.Dtype) -> mx.array | None:
        sinks, packed, recent = (store.view() if store.length else () for store in self.stores.values())
        return decode(self.format, sinks, packed, recent, dtype)

    def release_decoded(self) -> None:
        """Release the decoding graph kept by ``fetch``."""
        self._decoded = None

    def _decoded_front(self, dtype: mx.Dtype, keep_graph: bool) -> mx.array:
        """Sinks and packed tokens, decoded."""
        store, cached = self.packed, self._decoded
        if cached is not None:
            thread, arrays, start, length, cached_dtype, decoded = cached
            same_arrays = thread is thread_key() and arrays is store.arrays
            if same_arrays and (start, length, cached_dtype) == (store.start, store.length, dtype):
                self._decoded = cached if keep_graph else None
                return decoded
        parts = [array.astype(dtype) for array in self.sinks.view()]
        # Few chunks: a routed model never evaluates them, but building them takes Python for each.
        size = max(PACK_CHUNK_TOKENS, -(-store.length // MAX_DECODE_CHUNKS))
        for first in range(0, store.length, size):
            parts.append(self.format.decode(store.view(first, first + size)).astype(dtype))
        decoded = _concatenate(parts, axis=2)
        kept = thread_key(), store.arrays, store.start, store.length, dtype, decoded
        self._decoded = kept if keep_graph else None
        return decoded

    def fold(self, queries: mx.array) -> FoldedQueries:
        """Fold queries, float32 ``[batch, heads, rows, head_dim]``, for ``scores``."""
        stored = self.format.fold(queries) if self.packed.length else None
        sinks = queries @ self._float_sinks.swapaxes(-1, -2) if self.sinks.length else None
        return FoldedQueries(queries, stored, sinks)

    def scores(self, folded: FoldedQueries, start: int = 0, end: int | None = None) -> mx.array:
        """Dot products with the keys of tokens ``[start, end)``: float32 ``[batch, heads, rows, tokens]``."""
        parts = []
        for store, low, high in self._parts(start, end):
            if store is self.sinks:
                assert folded.sinks is not None
                parts.append(folded.sinks[..., low:high])
            elif store is self.packed:
                assert folded.stored is not None
                parts.append(self.format.multiply(folded.stored, self._prepared(low, high)))
            else:
                parts.append(_RAW.multiply(folded.raw, store.view(low, high)))
        return _concatenate(parts)

    def combine(
        self, weights: mx.array, start: int = 0, end: int | None = None, depends_on: mx.array | None = None
    ) -> mx.array:
        """Weighted sums of the values of tokens ``[start, end)``: float32 ``[batch, heads, rows, head_dim]``.

        Args:
            weights: float32 ``[batch, heads, rows, tokens]``.
            depends_on: See ``Format.sum``.
        """
        sums = []
        offset = 0
        for store, low, high in self._parts(start, end):
            part = weights[..., offset : offset + high - low]
            offset += high - low
            if store is self.sinks:
                sums.append(part @ self._float_sinks[:, :, low:high])
            elif store is self.packed:
                sums.append(self.format.unfold(self.format.sum(part, self._prepared(low, high), depends_on)))
            else:
                sums.append(_RAW.sum(part, store.view(low, high)))
        return sum(sums[1:], sums[0])

    def _parts(self, start: int, end: int | None) -> Iterator[tuple[TokenStore, int, int]]:
        """Stores that hold the tokens ``[start, end)``, each with the range inside it."""
        end = self.length if end is None else end
        offset = 0
        for store in self.stores.values():
            low, high = max(start - offset, 0), min(end - offset, store.length)
            offset += store.length
            if low < high:
                yield store, low, high

    @property
    def _float_sinks(self) -> mx.array:
        """The sinks as float32; cached, because every step needs them and appends do not change them."""
        cached, front_revision, length = self._sinks_cache, self.sinks.front_revision, self.sinks.length
        if cached is None or cached[0] is not front_revision or cached[1] != length:
            sinks = self.sinks.view()[0].astype(mx.float32)
            mx.async_eval(sinks)  # type: ignore[no-untyped-call]  # lazy arrays of one thread cannot be evaluated by another
            cached = self._sinks_cache = front_revision, length, sinks
        return cached[2]

    def _prepared(self, low: int, high: int) -> Block:
        """``Format.prepare`` of packed tokens ``[low, high)``; cached for the full range."""
        store = self.packed
        if (low, high) != (0, store.length):
            return self.format.prepare(store.view(low, high))
        cached = self._prepared_cache
        if cached is None or cached[0] is not store.arrays or cached[1:3] != (store.start, store.length):
            cached = store.arrays, store.start, store.length, self.format.prepare(store.view())
            mx.async_eval(cached[3])  # type: ignore[no-untyped-call]  # see ``_float_sinks``
            self._prepared_cache = cached
        return cached[3]

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
        """Restore an empty side from ``arrays``.

        Args:
            dtype: Of raw tokens.

        Raises:
            ValueError: if the fitted vectors do not have the shape that the packed tokens need.
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
        if shared or fitted or "packed_0" in arrays:
            self.format = make_format(self.spec, head_dim, self.role, shared, fitted)
        for name, store in self.stores.items():
            block: list[mx.array] = []
            while (array := arrays.get(f"{name}_{len(block)}")) is not None:
                block.append(array)
            if block:
                store.append(tuple(block))
        self.revision = object()


def check_fitted(
    spec: FormatSpec, role: Literal["key", "value"], head_dim: int, arrays: Mapping[str, Any]
) -> None:
    """Check the shapes of fitted vectors among the arrays of a side, if there are packed tokens.

    Raises:
        ValueError: if they do not have the shape that the packed tokens need.
    """
    if (packed := arrays.get("packed_0")) is None:
        return
    expected = {
        f"fitted_{name}": ((*packed.shape[:2], shape.rows, shape.columns), shape.itemsize)
        for name, shape in fitted_shapes(spec, role, head_dim).items()
    }
    fitted = {name: (a.shape, a.itemsize) for name, a in arrays.items() if name.startswith("fitted_")}
    if fitted and fitted != expected:
        raise ValueError("the fitted vectors do not match the shape of the packed tokens")


def _concatenate(parts: list[mx.array], axis: int = -1) -> mx.array:
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=axis)

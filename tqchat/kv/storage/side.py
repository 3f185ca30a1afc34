"""One side (keys or values) of a layer's cache: what every format shares."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import mlx.core as mx

from tqchat.kv.codec.fitting import NOTHING_SEEN, Seen
from tqchat.kv.codec.formats import Block, Format, RawFormat, make_format
from tqchat.kv.kernels.device import kernels
from tqchat.kv.kernels.encode import encode
from tqchat.kv.scheme import RAW, TILE, FormatSpec, Scheme
from tqchat.kv.storage.token_store import GROWTH, Tail, TokenStore

PACK_AT_ONCE = 512
"""Tokens encoded, or decoded, in one go at most, so that a long prompt's temporaries stay small."""

TILES_AT_ONCE = 4
"""Tiles packed together while tokens are generated on a GPU: it takes longer to ask for it than to do it."""

TOGETHER_FROM = 256
"""Packed tokens from which on tiles wait for each other: what waits is raw, and little against those."""


def _together() -> int:
    """Tokens that are packed together while tokens are generated."""
    return TILE if kernels() is None else TILES_AT_ONCE * TILE


_RAW = RawFormat()


@dataclass(frozen=True)
class Folded:
    """Queries as each part of a side is multiplied with them: made once for many products.

    Attributes:
        raw: The queries, float32 ``[batch, heads, rows, head_dim]``.
        stored: Folded for what is packed.
        sinks: The sinks' scores, float32 ``[batch, heads, rows, sinks]``.
        mean: What each packed vector's score gets besides, float32 ``[batch, heads, rows, 1]``.
    """

    raw: mx.array
    stored: mx.array | None = None
    sinks: mx.array | None = None
    mean: mx.array | None = None


class Side:
    """The keys or the values of one layer: ``[sinks | packed | recent]`` in token order.

    Everything is appended to ``recent``, raw. ``pack_due`` encodes the oldest of it, tile by tile, behind the
    first ``scheme.sinks`` tokens and leaving at least ``scheme.tail`` raw; on a GPU, several tiles at once.
    A raw side never packs: all its tokens are ``recent``.

    Attributes:
        revision: The same as long as nothing changes but for tokens that come and find room in ``recent``;
            in snapshots too.
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
        self.recent = Tail(GROWTH if self.spec.kind == "raw" else _together())
        self._decoded: tuple[Block, int, int, mx.Dtype, mx.array] | None = None
        self._kept_fixed: tuple[object, int, mx.array | None, mx.array | None] | None = None
        self._kept_opened: tuple[Block, int, int, Block] | None = None

    @property
    def stores(self) -> dict[str, TokenStore]:
        """The parts in token order, by name."""
        return {"sinks": self.sinks, "packed": self.packed, "recent": self.recent}

    @property
    def length(self) -> int:
        return self.sinks.length + self.packed.length + self.recent.length

    @property
    def bytes(self) -> int:
        """Bytes of the tokens held and of what the format was fitted to; what layers share is not in it."""
        return sum(store.bytes for store in self.stores.values()) + self._fitted_bytes

    @property
    def allocated_bytes(self) -> int:
        return sum(store.allocated_bytes for store in self.stores.values()) + self._fitted_bytes

    @property
    def _fitted_bytes(self) -> int:
        return sum(array.nbytes for array in self.format.fitted.values())

    @property
    def shape(self) -> tuple[int, int]:
        """Batch size and heads; (0, 0) while empty."""
        # The tail last: a token that waits there need not be written for this.
        for store in (self.packed, self.sinks, self.recent):
            if store.arrays:
                batch, heads, *_ = store.arrays[0].shape
                return batch, heads
        return 0, 0

    def snapshot(self) -> Self:
        """The side as it is now: what is appended, packed and trimmed later does not change it."""
        twin = copy.copy(self)
        twin.sinks, twin.packed = self.sinks.snapshot(), self.packed.snapshot()
        twin.recent = self.recent.snapshot()
        return twin

    def append(self, x: mx.array) -> None:
        """Add vectors ``[batch, heads, tokens, head_dim]`` of the storage's dtype."""
        if not self.head_dim:
            self.prepare(x.shape[-1])
        self.dtype = x.dtype
        recent = self.recent
        room, start = recent.room, recent.start
        if x.shape[2] == 1 and self.packed.length:
            recent.append_one(x)
        else:
            recent.append((x,))
        if recent.room != room or recent.start != start:
            self.revision = object()

    def prepare(self, head_dim: int) -> None:
        """Fix the vector width."""
        self.head_dim = head_dim
        if not self.spec.pays(head_dim):
            self.spec = RAW

    @property
    def is_due(self) -> bool:
        """Whether a single token's step is to encode some."""
        over = self.recent.length - self.scheme.tail
        return over >= TILE and over >= self._awaited and self._due[1] > 0

    @property
    def tokens_until_due(self) -> int:
        """How many more single tokens make it due; very many on a side that stays raw."""
        if self.spec.kind == "raw":
            return 1 << 30
        wanted = self.scheme.sinks if not self.sinks.length else 0
        return self.scheme.tail + self._awaited + wanted - self.recent.length

    @property
    def _awaited(self) -> int:
        """Tokens beyond the tail that are waited for before they are packed: few while few are packed."""
        return _together() if self.packed.length >= TOGETHER_FROM else TILE

    @property
    def _due(self) -> tuple[int, int]:
        """How many tokens are to become sinks, and how many behind them are to be packed."""
        if self.spec.kind == "raw":
            return 0, 0
        wanted = self.scheme.sinks if not self.sinks.length else 0
        return wanted, self.scheme.packable(self.recent.length - wanted)

    def pack_due(self, seen: Seen = NOTHING_SEEN) -> None:
        """Encode the tokens that have left the tail, fitting the format to all raw ones before the first.

        Args:
            seen: What is known of the layer; its ``first`` is the position of the side's first token.
        """
        wanted, count = self._due
        if not count:
            return
        self.revision = object()
        self._decoded = self._kept_opened = None  # They would keep what is packed from growing in place.
        if wanted:
            self.sinks.append(self.recent.take_front(wanted))
        if isinstance(self.format, RawFormat):
            self.format = make_format(self.spec, self.head_dim, self.role)
        if not self.format.fitted:
            seen = replace(seen, first=seen.first + self.sinks.length)
            self.format = self.format.fit(self.recent.view()[0], seen)
        due = self.recent.take_front(count)
        for start in range(0, count, PACK_AT_ONCE):
            block = encode(self.format, due[0][:, :, start : start + PACK_AT_ONCE])
            self.packed.append(block)
            if count > PACK_AT_ONCE:
                mx.eval(self.packed.arrays)

    def drop_front(self, count: int) -> None:
        """Forget the first ``count`` tokens, wherever they are stored; the format stays fitted."""
        self.revision = object()
        self._decoded = self._kept_opened = None
        for store in self.stores.values():
            gone = min(count, store.length)
            store.drop_front(gone)
            count -= gone

    def trim(self, count: int) -> None:
        """Forget the last ``count`` tokens, wherever they are stored."""
        self.revision = object()
        for store in (self.recent, self.packed, self.sinks):
            gone = min(count, store.length)
            store.trim(gone)
            count -= gone
        if not self.packed.length:
            self._decoded = self._kept_opened = None
        if not self.packed.length and self.sinks.length:
            # Nothing is packed any more: the sinks are simply the first raw tokens again.
            rest = self.recent.view()
            raw = self.sinks.view()
            self.recent.clear()
            self.recent.append(raw)
            if rest and rest[0].shape[2]:
                self.recent.append(rest)
            self.sinks.clear()

    def fetch(self, dtype: mx.Dtype, keep: bool = False) -> mx.array:
        """All vectors decoded, ``[batch, heads, tokens, head_dim]``; lazy, so free unless it is used.

        Args:
            keep: Keep the description of what is packed for the next time: to write it takes longer than much
                else of a step. Once evaluated it would be a decoded copy, so only for those who do not.
        """
        if self.packed.length:
            parts = [self._front(dtype, keep)]
        else:
            self._decoded = None
            parts = [array.astype(dtype) for array in self.sinks.view()]
        return _joined([*parts, *(array.astype(dtype) for array in self.recent.view())], axis=2)

    def forget_decoded(self) -> None:
        """Let go of the description that was kept."""
        self._decoded = None

    def _front(self, dtype: mx.Dtype, keep: bool) -> mx.array:
        """Sinks and what is packed, decoded."""
        store, known = self.packed, self._decoded
        if known is not None:
            arrays, start, length, known_dtype, decoded = known
            if arrays is store.arrays and (start, length, known_dtype) == (store.start, store.length, dtype):
                self._decoded = known if keep else None
                return decoded
        parts = [array.astype(dtype) for array in self.sinks.view()]
        for first in range(0, store.length, PACK_AT_ONCE):
            parts.append(self.format.decode(store.view(first, first + PACK_AT_ONCE)).astype(dtype))
        decoded = _joined(parts, axis=2)
        self._decoded = (store.arrays, store.start, store.length, dtype, decoded) if keep else None
        return decoded

    def fold(self, queries: mx.array) -> Folded:
        """Queries, float32 ``[batch, heads, rows, head_dim]``, as ``scores`` takes them."""
        stored = self.format.fold(queries) if self.packed.length else None
        fixed = self._fixed
        if fixed is None:
            return Folded(queries, stored)
        products, sinks = queries @ fixed.swapaxes(-1, -2), self.sinks.length
        mean = products[..., sinks:] if fixed.shape[2] > sinks else None
        return Folded(queries, stored, products[..., :sinks], mean)

    def scores(self, folded: Folded, start: int = 0, end: int | None = None) -> mx.array:
        """Dot products with the keys of tokens ``[start, end)``: float32 ``[batch, heads, rows, tokens]``."""
        parts = []
        for store, low, high in self._parts(start, end):
            if store is self.sinks:
                assert folded.sinks is not None
                parts.append(folded.sinks[..., low:high])
            elif store is self.packed:
                assert folded.stored is not None
                products = self.format.multiply(folded.stored, self._opened(low, high))
                parts.append(products if folded.mean is None else products + folded.mean)
            else:
                parts.append(_RAW.multiply(folded.raw, store.view(low, high)))
        return _joined(parts)

    def combine(
        self, weights: mx.array, start: int = 0, end: int | None = None, after: mx.array | None = None
    ) -> mx.array:
        """Sums of the values of tokens ``[start, end)``, float32 ``[batch, heads, rows, head_dim]``.

        Args:
            weights: float32 ``[batch, heads, rows, tokens]``.
            after: What is there before the weights are; see ``Format.sum``.
        """
        fixed, sinks = self._fixed, self.sinks.length
        sums, fixed_weights = [], []
        first = last = sinks
        used = 0
        for store, low, high in self._parts(start, end):
            own = weights[..., used : used + high - low]
            used += high - low
            if store is self.sinks:
                first, last = low, high
                fixed_weights.append(own)
            elif store is self.packed:
                sums.append(self.format.unfold(self.format.sum(own, self._opened(low, high), after)))
                if self.format.mean is not None:
                    last = sinks + 1
                    fixed_weights.append(own.sum(axis=-1, keepdims=True))
            else:
                sums.append(_RAW.sum(own, store.view(low, high)))
        if fixed_weights:
            assert fixed is not None
            sums.append(_joined(fixed_weights) @ fixed[:, :, first:last])
        return sum(sums[1:], sums[0])

    def _parts(self, start: int, end: int | None) -> Iterator[tuple[TokenStore, int, int]]:
        """The stores that hold the tokens ``[start, end)``, each with the range of its own that they are."""
        end = self.length if end is None else end
        offset = 0
        for store in self.stores.values():
            low, high = max(start - offset, 0), min(end - offset, store.length)
            offset += store.length
            if low < high:
                yield store, low, high

    @property
    def _fixed(self) -> mx.array | None:
        """What no token to come changes, float32 ``[batch, heads, sinks + 1, head_dim]``: sinks, and behind
        them the mean of what is packed, if it has one. Kept, as every step needs it.
        """
        mean = self.format.mean if self.packed.length else None
        known, origin, length = self._kept_fixed, self.sinks.origin, self.sinks.length
        if known is None or known[0] is not origin or known[1] != length or known[2] is not mean:
            parts = [*self.sinks.view(), *(() if mean is None else (mean,))]
            fixed = _joined([part.astype(mx.float32) for part in parts], axis=2) if parts else None
            if fixed is not None:
                mx.async_eval(fixed)  # type: ignore[no-untyped-call]  # another thread could not
            known = self._kept_fixed = origin, length, mean, fixed
        return known[3]

    def _opened(self, low: int, high: int) -> Block:
        """Packed tokens ``[low, high)`` as products with them read them; of all of them that is kept."""
        store = self.packed
        if (low, high) != (0, store.length):
            return self.format.open(store.view(low, high))
        known = self._kept_opened
        if known is None or known[0] is not store.arrays or known[1:3] != (store.start, store.length):
            known = store.arrays, store.start, store.length, self.format.open(store.view())
            mx.async_eval(known[3])  # type: ignore[no-untyped-call]  # as in ``_fixed``
            self._kept_opened = known
        return known[3]

    def arrays(self) -> dict[str, mx.array]:
        """Everything needed to continue bit for bit, by name; slack is left out."""
        named = {
            f"{name}_{i}": array
            for name, store in self.stores.items()
            if store.length
            for i, array in enumerate(store.view())
        }
        for kind, extra in (("shared", self.format.shared), ("fitted", self.format.fitted)):
            named |= {f"{kind}_{name}": array for name, array in extra.items()}
        return named

    def restore(self, arrays: dict[str, Any], head_dim: int, dtype: mx.Dtype) -> None:
        """The inverse of ``arrays``, into an empty side; ``dtype`` is that of its raw tokens."""
        self.dtype = dtype
        if not head_dim:
            return
        shared, fitted = (
            {k.removeprefix(kind): v for k, v in arrays.items() if k.startswith(kind)}
            for kind in ("shared_", "fitted_")
        )
        self.prepare(head_dim)
        if "packed_0" in arrays:
            shape = (*arrays["packed_0"].shape[:2], 1, head_dim)
            if any(array.shape != shape for array in fitted.values()):
                raise ValueError("what packed tokens were fitted to has not their shape")
        if shared or fitted or "packed_0" in arrays:
            self.format = make_format(self.spec, head_dim, self.role, shared, fitted)
        for name, store in self.stores.items():
            block: list[mx.array] = []
            while (array := arrays.get(f"{name}_{len(block)}")) is not None:
                block.append(array)
            if block:
                store.append(tuple(block))
        self.revision = object()


def _joined(parts: list[mx.array], axis: int = -1) -> mx.array:
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=axis)

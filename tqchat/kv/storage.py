"""One side (keys or values) of a layer's cache: what every format shares."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, Self

import mlx.core as mx

from tqchat.kv.fitting import NOTHING_SEEN, Seen
from tqchat.kv.formats import Block, Format, RawFormat, make_format
from tqchat.kv.kernels.device import kernels
from tqchat.kv.kernels.encode import encode
from tqchat.kv.scheme import RAW, TILE, FormatSpec, Scheme
from tqchat.kv.stores import GROWTH, Tail, TokenStore

PACK_AT_ONCE = 512
"""Tokens encoded, or decoded, in one go at most, so that a long prompt's temporaries stay small."""

TILES_AT_ONCE = 4
"""Tiles packed together while tokens are generated on a GPU: it takes longer to ask for it than to do it."""

TOGETHER_FROM = 256
"""Packed tokens from which on tiles wait for each other: what waits is raw, and little against those."""


def _together() -> int:
    """Tokens that are packed together while tokens are generated."""
    return TILE if kernels() is None else TILES_AT_ONCE * TILE


Piece = tuple[Format, Block]
"""Encoded tokens and the format that reads them."""


class Side:
    """The keys or the values of one layer: ``[sinks | packed | recent]`` in token order.

    Everything is appended to ``recent``, raw. ``pack_due`` encodes the oldest of it, tile by tile, behind the
    first ``scheme.sinks`` tokens and leaving at least ``scheme.tail`` raw; on a GPU, several tiles at once.
    A raw side never packs: all its tokens are ``recent``.
    """

    def __init__(self, scheme: Scheme, role: Literal["key", "value"]) -> None:
        self.scheme = scheme
        self.role = role
        self.spec: FormatSpec = scheme.key if role == "key" else scheme.value
        self.head_dim = 0
        self.dtype = mx.float16
        self.format: Format = RawFormat()
        self.sinks = TokenStore(growth=1)
        self.packed = TokenStore()
        self.recent = Tail(GROWTH if self.spec.kind == "raw" else _together())
        self._decoded: tuple[Block, int, int, mx.Dtype, mx.array] | None = None

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

    def pieces(self, start: int = 0, end: int | None = None, longest: int | None = None) -> Iterator[Piece]:
        """The tokens ``[start, end)`` as encoded blocks in token order, none longer than ``longest``."""
        end = self.length if end is None else end
        raw = RawFormat()
        offset = 0
        for form, store in ((raw, self.sinks), (self.format, self.packed), (raw, self.recent)):
            low, high = max(start - offset, 0), min(end - offset, store.length)
            offset += store.length
            if low >= high:
                continue
            block = store.view()
            step = longest or high - low
            for first in range(low, high, step):
                last = min(first + step, high)
                whole = first == 0 and last == store.length
                yield form, block if whole else tuple(array[:, :, first:last] for array in block)

    def append(self, x: mx.array) -> None:
        """Add vectors ``[batch, heads, tokens, head_dim]`` of the storage's dtype."""
        if not self.head_dim:
            self.prepare(x.shape[-1])
        self.dtype = x.dtype
        if x.shape[2] == 1 and self.packed.length:
            self.recent.append_one(x)
        else:
            self.recent.append((x,))

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
        self._decoded = None  # It would keep what is packed from growing in place.
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
        for store in self.stores.values():
            gone = min(count, store.length)
            store.drop_front(gone)
            count -= gone

    def trim(self, count: int) -> None:
        """Forget the last ``count`` tokens, wherever they are stored."""
        for store in (self.recent, self.packed, self.sinks):
            gone = min(count, store.length)
            store.trim(gone)
            count -= gone
        if not self.packed.length:
            self._decoded = None
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
        parts = [store.view()[0].astype(dtype) for store in (self.sinks, self.recent) if store.length]
        if self.packed.length:
            parts.insert(1 if self.sinks.length else 0, self._decode_packed(dtype, keep))
        else:
            self._decoded = None
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)

    def forget_decoded(self) -> None:
        """Let go of the description that was kept."""
        self._decoded = None

    def _decode_packed(self, dtype: mx.Dtype, keep: bool) -> mx.array:
        store, known = self.packed, self._decoded
        if known is not None:
            arrays, start, length, known_dtype, decoded = known
            if arrays is store.arrays and (start, length, known_dtype) == (store.start, store.length, dtype):
                self._decoded = known if keep else None
                return decoded
        block = store.view()
        parts = [
            self.format.decode(tuple(array[:, :, first : first + PACK_AT_ONCE] for array in block)).astype(
                dtype
            )
            for first in range(0, store.length, PACK_AT_ONCE)
        ]
        decoded = parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)
        self._decoded = (store.arrays, store.start, store.length, dtype, decoded) if keep else None
        return decoded

    def scores(self, queries: mx.array, start: int = 0, end: int | None = None) -> mx.array:
        """Dot products with the keys of tokens ``[start, end)``: float32 ``[batch, heads, rows, tokens]``."""
        parts = [form.scores(queries, block) for form, block in self.pieces(start, end)]
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=-1)

    def combine(self, weights: mx.array) -> mx.array:
        """Sums of all values, ``[batch, heads, rows, head_dim]``, under weights ``[batch, heads, rows,
        tokens]``.
        """
        total: mx.array | None = None
        start = 0
        for form, block in self.pieces():
            end = start + block[0].shape[2]
            part = form.combine(weights[..., start:end], block)
            total = part if total is None else total + part
            start = end
        assert total is not None
        return total

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
        if shared or fitted or "packed_0" in arrays:
            self.format = make_format(self.spec, head_dim, self.role, shared, fitted)
        for name, store in self.stores.items():
            block: list[mx.array] = []
            while (array := arrays.get(f"{name}_{len(block)}")) is not None:
                block.append(array)
            if block:
                store.append(tuple(block))

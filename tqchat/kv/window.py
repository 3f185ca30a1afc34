"""The KV cache of a sliding-window layer, in the protocol of mlx-lm's ``RotatingKVCache``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import RotatingKVCache

from tqchat.kv import untrusted
from tqchat.kv.cache import SchemeCache
from tqchat.kv.scheme import FP16, MIN_FIT_TOKENS, TILE, Scheme
from tqchat.kv.storage.observed_queries import NO_QUERIES
from tqchat.kv.storage.token_store import GROWTH_TOKENS

if TYPE_CHECKING:
    from tqchat.kv.attention.routing import Route


class WindowCache(SchemeCache):
    """Keys and values of the last ``max_size`` tokens under a ``Scheme``, in temporal order.

    Before an append all but the last ``max_size - 1`` tokens are dropped, so that new tokens see as much as
    in mlx-lm's ring buffer: a single token, or the first of several, sees ``max_size`` tokens including
    itself. There are no sinks: the first tokens leave the window like any others. The fit of the format is
    kept.
    """

    drops_tokens = True

    def __init__(self, max_size: int, scheme: Scheme = FP16, dtype: mx.Dtype | None = None) -> None:
        super().__init__(replace(scheme, sinks=0), dtype)
        self.max_size = max_size
        # Spare capacity in proportion to the window: 128 tokens should not reserve 256 more.
        growth = max(TILE, min(GROWTH_TOKENS, max_size // 8))
        for side in self.sides:
            for store in side.stores.values():
                store.growth = min(store.growth, growth)

    @property
    def tokens_before_append(self) -> int:
        return min(self.max_size - 1, self.offset)

    def append(self, keys: mx.array, values: mx.array) -> None:
        self.keep_last(self.max_size - 1)
        super().append(keys, values)

    @property
    def attends_row_by_row(self) -> bool:
        """Never: windows do not verify tokens, since they cannot be trimmed once they are full."""
        return False

    def keep_last(self, count: int) -> None:
        """Drop the oldest tokens until at most ``count`` are held."""
        for side in self.sides:
            if side.length > count:
                side.drop_front(side.length - count)

    def make_mask(
        self, N: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """The mask for ``N`` new tokens; ``window_size`` may be smaller than ``max_size``."""
        held = min(self.max_size - 1, self.offset)
        if N > 1:
            window_size = window_size or self.max_size
            if held + N <= window_size and not return_array:
                return "causal"
            mask: mx.array = create_causal_mask(N, held, window_size=window_size)
            return mask
        if window_size is None or held + 1 <= window_size:
            return None
        return mx.arange(held + 1) >= held + 1 - window_size

    def is_trimmable(self) -> bool:
        """Until the window is full: tokens that have left it cannot be restored."""
        return self.offset < self.max_size

    def size(self) -> int:
        return min(self.offset, self.max_size)

    def _description(self) -> dict[str, Any]:
        return super()._description() | {"max_size": self.max_size}

    def _init_from(self, description: dict[str, Any], scheme: Scheme, dtype: mx.Dtype | None) -> None:
        WindowCache.__init__(self, untrusted.whole(description["max_size"], 1), scheme, dtype)

    @property
    def is_complete(self) -> bool:
        keys, values = (side.length for side in self.sides)
        return min(self.offset, self.max_size - 1) <= keys == values <= self.offset


def raw_window_reason(max_size: int, scheme: Scheme) -> str | None:
    """Why ``scheme`` packs nothing in a window of this size; ``None`` if it does, or never packs."""
    if not scheme.compresses or scheme.packable(max_size):
        return None
    if scheme.fine:
        return (
            f"sliding window of {max_size} tokens: fewer than the {MIN_FIT_TOKENS} that formats are fitted to"
        )
    return f"sliding window of {max_size} tokens: no longer than the {scheme.tail} that stay raw"


def make_window(
    max_size: int, scheme: Scheme, dtype: mx.Dtype | None = None
) -> WindowCache | RotatingKVCache:
    """A cache for a sliding window; mlx-lm's own where the scheme would pack nothing."""
    if dtype is None and not (scheme.compresses and scheme.packable(max_size)):
        return RotatingKVCache(max_size)  # type: ignore[no-untyped-call]
    return WindowCache(max_size, scheme, dtype)


def convert_window(old: WindowCache | RotatingKVCache, scheme: Scheme) -> WindowCache | RotatingKVCache:
    """The same tokens under another scheme, from and to mlx-lm's ring buffer.

    A ``WindowCache`` stays one: a ring buffer has no place for what a later conversion goes back to.
    """
    if isinstance(old, WindowCache):
        new: WindowCache | RotatingKVCache = WindowCache(old.max_size, scheme, old.dtype)
    else:
        new = make_window(old.max_size, scheme)
    # Set by ``attach_ropes``, on mlx-lm's ring buffers as well.
    new.rope = getattr(old, "rope", None)  # type: ignore[union-attr]
    if isinstance(old, WindowCache) and isinstance(new, WindowCache) and not old.key_side.length:
        new.copy_from(old)
        return new
    if old.empty():
        return new
    if isinstance(new, WindowCache):
        new.copy_from(old if isinstance(old, WindowCache) else as_window(old))
        new.keep_last(new.max_size)
        new.pack_due()
        return new
    assert isinstance(old, RotatingKVCache)
    new.keys, new.values = (mx.contiguous(x[:, :, -new.max_size :]) for x in _in_temporal_order(old))
    new.offset, new._idx = old.offset, new.keys.shape[2]
    return new


def as_window(ring: RotatingKVCache) -> WindowCache:
    """The tokens of mlx-lm's ring buffer, raw, in a ``WindowCache``; not evaluated."""
    window = WindowCache(ring.max_size)
    if ring.keys is not None:
        for side, x in zip(window.sides, _in_temporal_order(ring), strict=True):
            side.append(x)
    window.offset = ring.offset
    # Set by ``observe_queries``.
    window.queries = getattr(ring, "queries", NO_QUERIES)
    window.rope = getattr(ring, "rope", None)
    return window


class RingRow:
    """mlx-lm's ring buffer as a row of a ``BatchCache``, for steps of one token through routed attention."""

    uses_placeholders = False

    def __init__(self, ring: RotatingKVCache, route: Route) -> None:
        self._ring, self._route = ring, route
        self._fetched: tuple[mx.array, mx.array] | None = None
        self.max_size = int(ring.max_size)

    @property
    def offset(self) -> int:
        return int(self._ring.offset)

    @property
    def tokens_before_append(self) -> int:
        return min(self.max_size - 1, self.offset)

    @property
    def is_routed(self) -> bool:
        return self._route.is_active

    def append(self, keys: mx.array, values: mx.array) -> None:
        self._fetched = self._ring.update_and_fetch(keys, values)  # type: ignore[no-untyped-call]

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """The window, in the order of the ring."""
        assert self._fetched is not None
        return self._fetched

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> Any:
        make: Callable[..., Any] = self._ring.make_mask
        return make(N, window_size=window_size, return_array=return_array)


def only_window(layer: Any) -> Any:
    """The cache without tokens that have left its window; the same object if there are none.

    After a prompt a window holds the whole of its last chunk until the next step.
    """
    if type(layer) is RotatingKVCache and layer.keys is not None and layer.keys.shape[2] > layer.max_size:
        ring = copy.copy(layer)
        ring.keys, ring.values = (
            mx.concatenate([x[:, :, : layer.keep], x[:, :, layer.keep - layer.max_size :]], axis=2)
            for x in _in_temporal_order(layer)
        )
        ring._idx = layer.max_size
        return ring
    if isinstance(layer, WindowCache) and layer.key_side.length > layer.max_size:
        window = copy.copy(layer)
        window.key_side, window.value_side = (side.snapshot() for side in layer.sides)
        window.keep_last(window.max_size)
        return window
    return layer


def _in_temporal_order(ring: RotatingKVCache) -> tuple[mx.array, mx.array]:
    in_order: Callable[[Any], mx.array] = ring._temporal_order
    return in_order(ring.keys), in_order(ring.values)

"""The cache of a sliding-window layer: the window's tokens and no others, packed where they have left the
tail.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import RotatingKVCache

from tqchat.kv.cache import SchemeCache
from tqchat.kv.scheme import FP16, TILE, Scheme
from tqchat.kv.storage.token_store import GROWTH


class WindowCache(SchemeCache):
    """Keys and values of the last ``max_size`` tokens under a ``Scheme``; speaks the protocol of mlx-lm's
    ``RotatingKVCache``.

    Tokens are in temporal order. Before new ones come in, all but the last ``max_size - 1`` are forgotten,
    so that each new token sees as much as mlx-lm's ring shows it: a single one ``max_size`` tokens, itself
    included, the first of several as well. There are no sinks: the conversation's first tokens leave like any
    others. What the format was fitted to stays, whichever tokens it was fitted on.
    """

    def __init__(self, max_size: int, scheme: Scheme = FP16, dtype: mx.Dtype | None = None) -> None:
        super().__init__(replace(scheme, sinks=0), dtype)
        self.max_size = max_size
        # Room is kept ready in proportion: a ring of 128 tokens should not reserve 256 more.
        growth = max(TILE, min(GROWTH, max_size // 8))
        for side in self.sides:
            for store in side.stores.values():
                store.growth = min(store.growth, growth)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        if keys.shape[2]:
            self.forget_all_but(self.max_size - 1)
        return super().update_and_fetch(keys, values)

    def forget_all_but(self, count: int) -> None:
        """Forget the oldest tokens until at most ``count`` are held."""
        for side in self.sides:
            if side.length > count:
                side.drop_front(side.length - count)

    def make_mask(
        self, N: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """The mask for ``N`` new tokens; ``window_size`` may be less than the ring holds."""
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
        """Until the window is full: what has left it cannot be had back."""
        return self.offset < self.max_size

    def size(self) -> int:
        return min(self.offset, self.max_size)

    def _description(self) -> dict[str, Any]:
        return super()._description() | {"max_size": self.max_size}

    def _begin(self, told: dict[str, Any], scheme: Scheme, dtype: mx.Dtype | None) -> None:
        WindowCache.__init__(self, int(told["max_size"]), scheme, dtype)

    def _holds_enough(self) -> bool:
        keys, values = (side.length for side in self.sides)
        return min(self.offset, self.max_size - 1) <= keys == values <= self.offset


def why_window_stays_raw(max_size: int, scheme: Scheme) -> str | None:
    """Why a scheme packs nothing in a window, in one line; ``None`` if it does, or packs nothing anywhere."""
    if not scheme.compresses or scheme.packable(max_size):
        return None
    return f"sliding window of {max_size} tokens: no longer than the {scheme.tail} that stay raw"


def make_window(
    max_size: int, scheme: Scheme, dtype: mx.Dtype | None = None
) -> WindowCache | RotatingKVCache:
    """The cache for a sliding window: mlx-lm's own, bit for bit, where there is nothing for ours to do."""
    if dtype is None and not (scheme.compresses and scheme.packable(max_size)):
        return RotatingKVCache(max_size)  # type: ignore[no-untyped-call]
    return WindowCache(max_size, scheme, dtype)


def convert_window(old: WindowCache | RotatingKVCache, scheme: Scheme) -> WindowCache | RotatingKVCache:
    """The same tokens under another scheme, to and from mlx-lm's ring, which is not in temporal order."""
    new = make_window(old.max_size, scheme, old.dtype if isinstance(old, WindowCache) else None)
    if old.empty() or (isinstance(old, WindowCache) and not old.key_side.length):
        return new
    if isinstance(new, WindowCache):
        if isinstance(old, WindowCache):
            new.take_over(old)
        else:
            for side, x in zip(new.sides, _temporal(old), strict=True):
                side.append(x)
            new.offset = old.offset
            # What ``observe_queries`` has left there.
            new.query_energy = getattr(old, "query_energy", None)
            new.queries_seen = getattr(old, "queries_seen", 0)
            new.rope = getattr(old, "rope", None)
        new.forget_all_but(new.max_size)
        new.pack_due()
        return new
    keys, values = old.decoded() if isinstance(old, WindowCache) else _temporal(old)
    new.keys, new.values = (mx.contiguous(x[:, :, -new.max_size :]) for x in (keys, values))
    new.offset, new._idx = old.offset, new.keys.shape[2]
    return new


def _temporal(ring: RotatingKVCache) -> tuple[mx.array, mx.array]:
    in_order: Callable[[Any], mx.array] = ring._temporal_order
    return in_order(ring.keys), in_order(ring.values)

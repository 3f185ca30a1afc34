"""Arrays that stand for decoded keys and values where only the routed attention is to use them."""

from __future__ import annotations

from functools import lru_cache

import mlx.core as mx

from tqchat.errors import TqchatError
from tqchat.kv.storage.threads import thread_key

PLACEHOLDER_CACHE_SIZE = 8
"""Sliding-window and full-attention layers alternate, so each length needs its own entry."""


class PlaceholderNotAttended(TqchatError):
    """A model computed with placeholders instead of passing them to the routed attention."""

    def __init__(self) -> None:
        super().__init__(
            "The last step did not attend through this cache, so its output is not valid: another library "
            "has replaced mlx-lm's scaled_dot_product_attention. Make a new cache with make_prompt_cache."
        )


@lru_cache(maxsize=8)
def _nan_array(dtype: mx.Dtype) -> mx.array:
    array = mx.full((1, 1, 1, 1), mx.nan, dtype=dtype)
    mx.eval(array)
    return array


class Placeholders:
    """NaN keys and values of any length, so that every use of them shows in the output.

    One instance per thread, because lazy arrays of one thread cannot be evaluated by another.

    Attributes:
        thread: ``thread_key`` of that thread.
    """

    def __init__(
        self, thread: object, heads: tuple[int, int], dims: tuple[int, int], dtypes: tuple[mx.Dtype, mx.Dtype]
    ) -> None:
        self.thread = thread
        self._parts = tuple((_nan_array(dtype), heads, dim) for dim, dtype in zip(dims, dtypes, strict=True))
        # Layers of a step that hold the same number of tokens share the arrays.
        self.of_length = lru_cache(maxsize=PLACEHOLDER_CACHE_SIZE)(self._make)

    def _make(self, tokens: int) -> tuple[mx.array, mx.array]:
        keys, values = (mx.broadcast_to(nan, (*heads, tokens, dim)) for nan, heads, dim in self._parts)
        return keys, values


_placeholders_for = lru_cache(maxsize=8)(Placeholders)


def placeholders_for(
    heads: tuple[int, int], dims: tuple[int, int], dtypes: tuple[mx.Dtype, mx.Dtype]
) -> Placeholders:
    """The calling thread's placeholders.

    Args:
        heads: Batch size and KV heads.
        dims: Head dimensions of keys and of values; ``dtypes`` likewise.
    """
    return _placeholders_for(thread_key(), heads, dims, dtypes)

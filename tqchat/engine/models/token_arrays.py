"""Token ids as arrays and back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import mlx.core as mx


def token_array(tokens: Iterable[int]) -> mx.array:
    """Token ids in the dtype of sampled ones, uint32: CUDA compiles a lookup for each dtype of indices."""
    return mx.array(list(tokens), dtype=mx.uint32)


def token_ids(tokens: mx.array) -> list[int]:
    """The ids in an array of one dimension, once they are computed."""
    ids: Any = tokens.tolist()
    return list(ids)

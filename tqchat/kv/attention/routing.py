"""The one place that hooks mlx-lm: its models' attention is handed to the cache where the cache is ours and
packed.

mlx-lm's model files import ``scaled_dot_product_attention`` by name, so the name is replaced in every loaded
model file as well as where it is defined. ``uninstall`` puts all of it back.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import mlx.core as mx
from mlx_lm.models import base

from tqchat.kv.cache import SchemeCache, owner

_NAME = "scaled_dot_product_attention"
_original = base.scaled_dot_product_attention


def routed_attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    cache: Any,
    scale: float,
    mask: Any,
    sinks: mx.array | None = None,
) -> mx.array:
    """mlx-lm's ``scaled_dot_product_attention``, handed to the cache if it packs and the model left what
    it fetched untouched.
    """
    if isinstance(cache, SchemeCache):
        if cache.can_attend(queries, keys, values):
            return cache.attend(queries, scale, mask, sinks)
        if cache.fetched(keys, values):
            cache.observe(queries)
            if cache.stands_in:
                keys, values = cache.decoded()
            output = _original(queries, keys, values, cache=cache, scale=scale, mask=mask, sinks=sinks)
            cache.attended()
            return output
    if (lender := owner(keys, values)) is not None:
        lender.evaluated()
    return _original(queries, keys, values, cache=cache, scale=scale, mask=mask, sinks=sinks)


def _model_files() -> Iterator[ModuleType]:
    for name, module in list(sys.modules.items()):
        if name.startswith("mlx_lm.models.") and module is not None:
            yield module


def _swap(old: Any, new: Any) -> None:
    for module in _model_files():
        if getattr(module, _NAME, None) is old:
            setattr(module, _NAME, new)


def install() -> None:
    """Route attention in every model file loaded so far; calling it again takes in those loaded since."""
    _swap(_original, routed_attention)
    SchemeCache.is_routed = True


def uninstall() -> None:
    """Give mlx-lm its own attention back."""
    SchemeCache.is_routed = False
    _swap(routed_attention, _original)

"""The hook into mlx-lm: attention over a packed ``SchemeCache`` is computed by the cache.

mlx-lm's model files import ``scaled_dot_product_attention`` by name, so ``install`` replaces the name in
every loaded model file and where it is defined. ``uninstall`` restores it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import mlx.core as mx
from mlx_lm.models import base

from tqchat.kv.cache import SchemeCache, cache_of

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
    """Replacement of mlx-lm's ``scaled_dot_product_attention``.

    Calls ``cache.attend`` if the cache holds packed tokens and the model passes on the fetched arrays
    unchanged; mlx-lm's function otherwise.
    """
    if isinstance(cache, SchemeCache):
        if cache.can_attend(queries, keys, values):
            return cache.attend(queries, scale, mask, sinks)
        if cache.is_last_fetch(keys, values):
            cache.observe(queries)
            if cache.uses_placeholders:
                keys, values = cache.decoded()
            output = _original(queries, keys, values, cache=cache, scale=scale, mask=mask, sinks=sinks)
            cache.finish_attention()
            return output
    if (shared := cache_of(keys, values)) is not None:
        shared.mark_shared()
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
    """Route attention in every loaded model file; call it again after loading others."""
    _swap(_original, routed_attention)
    SchemeCache.is_routed = True


def uninstall() -> None:
    """Restore mlx-lm's own attention."""
    SchemeCache.is_routed = False
    _swap(routed_attention, _original)

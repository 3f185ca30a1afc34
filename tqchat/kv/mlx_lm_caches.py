"""mlx-lm's own programs and functions with our caches."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx_lm.models import cache as mlx_cache

from tqchat.kv.attention import routing
from tqchat.kv.cache import SchemeCache
from tqchat.kv.prompt_cache import LatentCache, make_prompt_cache, mlx_lm_prompt_cache
from tqchat.kv.scheme import Scheme, parse_scheme
from tqchat.kv.window import WindowCache

_NAME = "make_prompt_cache"


def register() -> None:
    """Let ``mlx_lm.models.cache.load_prompt_cache`` read our caches: it looks classes up in its module."""

    def reader(cache_class: Any) -> Any:
        def from_state(state: Any) -> Any:
            routing.install()
            return cache_class.from_state(state)

        return SimpleNamespace(from_state=from_state)

    for cache_class in (SchemeCache, WindowCache, LatentCache):
        setattr(mlx_cache, cache_class.__name__, reader(cache_class))


class _Maker:
    """mlx-lm's ``make_prompt_cache`` under a scheme."""

    def __init__(self, scheme: Scheme, dtype: mx.Dtype | None) -> None:
        self.scheme, self.dtype = scheme, dtype

    def __call__(self, model: Module, max_kv_size: int | None = None) -> list[Any]:
        if max_kv_size is not None:
            raise ValueError("A cache of limited size (max_kv_size) has no scheme. Leave max_kv_size out.")
        return make_prompt_cache(model, self.scheme, dtype=self.dtype)


def use_scheme(scheme: str | Scheme | None, *, dtype: mx.Dtype | None = None) -> None:
    """Make mlx-lm's functions and programs create their prompt caches under ``scheme``; ``None`` ends it.

    For ``mlx_lm.generate``, ``mlx_lm.server`` and others that make a cache themselves.

    Args:
        dtype: Storage dtype of raw tokens; ``None`` keeps the model's.

    Raises:
        UnknownScheme: if there is no scheme of that name.
    """
    chosen = parse_scheme(scheme) if isinstance(scheme, str) else scheme
    for name, module in list(sys.modules.items()):
        found = getattr(module, _NAME, None) if name.startswith("mlx_lm.") else None
        if found is not mlx_lm_prompt_cache and not isinstance(found, _Maker):
            continue
        setattr(module, _NAME, mlx_lm_prompt_cache if chosen is None else _Maker(chosen, dtype))

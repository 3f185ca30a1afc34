"""Caches for a whole model: one per layer, compressing where that is possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx_lm.models import cache as mlx_cache

from tqchat.kv import routing
from tqchat.kv.cache import SchemeCache
from tqchat.kv.scheme import Scheme, parse_scheme


def make_prompt_cache(
    model: Module, scheme: str | Scheme = "fp16", *, dtype: mx.Dtype | None = None
) -> list[Any]:
    """The caches that ``model`` asks for, with every full-attention one under ``scheme``.

    What comes back goes straight into ``mlx_lm.stream_generate(..., prompt_cache=...)``. Sliding-window,
    recurrent and latent (MLA) layers keep the cache that mlx-lm made for them; ``memory_report`` names them
    and says why.

    Args:
        scheme: A scheme or its name.
        dtype: Storage dtype of raw tokens; ``None`` keeps the model's own.

    Raises:
        UnknownScheme: if there is no scheme of that name.
    """
    scheme = parse_scheme(scheme) if isinstance(scheme, str) else scheme
    routing.install()
    layers = mlx_cache.make_prompt_cache(model)
    if _has_latent_attention(model):
        return layers
    return [_replace(layer, lambda _: SchemeCache(scheme, dtype)) for layer in layers]


def convert(cache: list[Any], scheme: str | Scheme) -> list[Any]:
    """The same tokens under another scheme, in new caches; the old ones are left whole.

    Tokens that are packed under one format and stay under the same are taken over as they are. Going to a
    finer scheme keeps the rounding that history has. Work is evaluated layer by layer. To swap at once:
    ``cache[:] = convert(cache, "turbo0v4")``.

    Raises:
        UnknownScheme: if there is no scheme of that name.
    """
    scheme = parse_scheme(scheme) if isinstance(scheme, str) else scheme
    routing.install()
    converted = []
    for layer in cache:
        new = _replace(layer, lambda old: _convert_layer(old, scheme))
        mx.eval(new.state)
        converted.append(new)
    return converted


def _replace(layer: Any, make: Callable[[Any], SchemeCache]) -> Any:
    """``layer`` with its full-attention caches replaced, inside a ``CacheList`` too."""
    if type(layer) is mlx_cache.KVCache or isinstance(layer, SchemeCache):
        return make(layer)
    if isinstance(layer, mlx_cache.CacheList):
        return cache_list([_replace(inner, make) for inner in layer.caches])
    return layer


def flat_layers(cache: list[Any]) -> list[Any]:
    """The caches of a model one by one, those inside a ``CacheList`` too."""
    flat: list[Any] = []
    for layer in cache:
        flat += flat_layers(list(layer.caches)) if isinstance(layer, mlx_cache.CacheList) else [layer]
    return flat


def cache_list(parts: list[Any]) -> Any:
    """mlx-lm's ``CacheList`` of these caches."""
    make: Callable[..., Any] = mlx_cache.CacheList
    return make(*parts)


def _has_latent_attention(model: Module) -> bool:
    """Whether attention caches a shared latent instead of keys and values;

    what is then called keys and values are neither.
    """
    modules: list[Any] = model.modules()  # type: ignore[no-untyped-call]
    return any(hasattr(module, "kv_lora_rank") for module in modules)


def _convert_layer(old: Any, scheme: Scheme) -> SchemeCache:
    new = SchemeCache(scheme, old.dtype if isinstance(old, SchemeCache) else None)
    if old.empty():
        return new
    if isinstance(old, SchemeCache):
        new.query_energy, new.queries_seen = old.query_energy, old.queries_seen
        for target, source in zip(new.sides, old.sides, strict=True):
            same_packing = source.spec == target.spec and (old.scheme.tail, old.scheme.sinks) == (
                scheme.tail,
                scheme.sinks,
            )
            if same_packing:
                target.restore(source.arrays(), source.head_dim, source.dtype)
            else:
                target.append(source.fetch(source.dtype))
    else:
        for target, x in zip(new.sides, old.keys_and_values(), strict=True):
            target.append(x)
    new.offset = old.offset
    new.pack_due()
    return new

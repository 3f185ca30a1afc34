"""Caches for a whole model: one per layer, compressing where that is possible."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx_lm.models import cache as mlx_cache

from tqchat.kv.attention import routing
from tqchat.kv.attention.placeholders import only_attends
from tqchat.kv.cache import SchemeCache
from tqchat.kv.codec.rope import ropes
from tqchat.kv.kernels.launch import Exchange
from tqchat.kv.scheme import TILE, Scheme, parse_scheme
from tqchat.kv.window import WindowCache, convert_window, make_window


def make_prompt_cache(
    model: Module, scheme: str | Scheme = "fp16", *, dtype: mx.Dtype | None = None
) -> list[Any]:
    """The caches that ``model`` asks for, with those of full and sliding-window attention under ``scheme``.

    What comes back goes straight into ``mlx_lm.stream_generate(..., prompt_cache=...)``. Recurrent, chunked
    and latent (MLA) layers keep the cache that mlx-lm made for them; ``memory_report`` names them and says
    why.

    Args:
        scheme: A scheme or its name.
        dtype: Storage dtype of raw tokens; ``None`` keeps the model's own.

    Raises:
        UnknownScheme: if there is no scheme of that name.
    """
    scheme = parse_scheme(scheme) if isinstance(scheme, str) else scheme
    routing.install()
    cache = _make(model, scheme, dtype)
    stand_in(model, cache)
    return cache


def stand_in(model: Module, cache: list[Any]) -> None:
    """Spare a GPU's caches the description of what nobody decodes, where ``model`` can do without; what
    kernels need to work they share.

    On a CPU a step takes long enough not to notice, since the description is kept from one to the next.
    """
    ours = [
        layer for layer in flat_layers(cache) if isinstance(layer, SchemeCache) and layer.scheme.compresses
    ]
    if not ours or mx.default_device() == mx.cpu:
        return
    routing.install()  # Without it nothing stands in, and the trial would say yes to every model.
    scheme, dtype = replace(ours[0].scheme, tail=TILE), ours[0].dtype

    def make() -> tuple[list[Any], list[Any]]:
        trial = _make(model, scheme, dtype)
        return trial, flat_layers(trial)

    able = only_attends(model, make)
    exchange = Exchange()
    for layer in ours:
        layer.stands_in = able
        layer.share(exchange)


def _make(model: Module, scheme: Scheme, dtype: mx.Dtype | None) -> list[Any]:
    layers = mlx_cache.make_prompt_cache(model)
    if _has_latent_attention(model):
        return [_mark_latent(layer) for layer in layers]

    def make(layer: Any) -> Any:
        if isinstance(layer, mlx_cache.RotatingKVCache):
            return make_window(layer.max_size, scheme, dtype)
        return SchemeCache(scheme, dtype)

    return with_ropes([_replace(layer, make) for layer in layers], model)


def with_ropes(cache: list[Any], model: Module) -> list[Any]:
    """A model's caches, told how it turns their keys."""
    for layer, rope in zip(cache, ropes(model, len(cache)), strict=True):
        for part in flat_layers([layer]):
            if isinstance(part, (SchemeCache, mlx_cache.RotatingKVCache)):
                part.rope = rope  # type: ignore[union-attr]
    return cache


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
        new = converted_layer(layer, scheme)
        mx.eval(new.state)
        converted.append(new)
    return converted


def converted_layer(layer: Any, scheme: Scheme) -> Any:
    """A layer's cache under another scheme, not evaluated; itself if schemes do not reach it."""
    return _replace(layer, lambda old: _convert_layer(old, scheme))


def _replace(layer: Any, make: Callable[[Any], Any]) -> Any:
    """``layer`` with its caches of keys and values replaced, inside a ``CacheList`` too.

    Two of them in one list are left: the second holds an index over the first, and such models reach into
    both.
    """
    if isinstance(layer, mlx_cache.CacheList):
        parts = list(layer.caches)
        if sum(_is_replaceable(part) for part in parts) != 1:
            return layer
        return cache_list([_replace(part, make) for part in parts])
    return make(layer) if _is_replaceable(layer) else layer


def _is_replaceable(layer: Any) -> bool:
    if type(layer) is mlx_cache.RotatingKVCache:
        return int(layer.keep) == 0
    return type(layer) is mlx_cache.KVCache or isinstance(layer, SchemeCache)


class LatentCache(mlx_cache.KVCache):
    """mlx-lm's cache of keys and values, where the model keeps something else in it.

    Latent attention (MLA) stores one vector that all heads share, already a fraction of their keys and
    values, and reads it before it attends: a scheme would decode all of it at every step.
    """


def _mark_latent(layer: Any) -> Any:
    if isinstance(layer, mlx_cache.CacheList):
        return cache_list([_mark_latent(part) for part in layer.caches])
    make: Callable[[], Any] = LatentCache
    return make() if type(layer) is mlx_cache.KVCache else layer


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
    """Whether attention caches a latent that all heads share: what it calls keys and values are neither.

    Such attention brings queries to the latent with a map of its own. Others that only make keys and values
    out of a latent (DeepSeek-V2, MiniCPM3) cache those as everybody does.
    """
    modules: list[Any] = model.modules()  # type: ignore[no-untyped-call]
    return any(hasattr(module, "kv_lora_rank") and hasattr(module, "embed_q") for module in modules)


def _convert_layer(old: Any, scheme: Scheme) -> Any:
    if isinstance(old, (WindowCache, mlx_cache.RotatingKVCache)):
        return convert_window(old, scheme)
    new = SchemeCache(scheme, old.dtype if isinstance(old, SchemeCache) else None)
    if old.empty():
        return new
    if isinstance(old, SchemeCache):
        new.take_over(old)
    else:
        for target, x in zip(new.sides, old.keys_and_values(), strict=True):
            target.append(x)
        new.offset = old.offset
    new.pack_due()
    return new

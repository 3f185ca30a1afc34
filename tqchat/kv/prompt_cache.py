"""Prompt caches: one cache per layer of a model, compressed where the layer allows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx_lm.models import cache as mlx_cache

from tqchat.kv.attention import routing
from tqchat.kv.attention.per_model import PerModel
from tqchat.kv.attention.placeholders import accepts_placeholders
from tqchat.kv.cache import SchemeCache
from tqchat.kv.codec.rope import Rope, model_ropes
from tqchat.kv.kernels.workspace import Workspace
from tqchat.kv.scheme import TILE, Scheme, parse_scheme
from tqchat.kv.storage.joint_encode import are_few, encode_together
from tqchat.kv.storage.joint_fit import fit_together
from tqchat.kv.storage.side import Encoding
from tqchat.kv.window import WindowCache, convert_window, make_window

mlx_lm_prompt_cache = mlx_cache.make_prompt_cache
"""mlx-lm's function, which ``use_scheme`` may replace."""


def make_prompt_cache(
    model: Module, scheme: str | Scheme = "fp16", *, dtype: mx.Dtype | None = None
) -> list[Any]:
    """The caches for ``model``, with full and sliding-window attention under ``scheme``.

    The list is passed to ``mlx_lm.stream_generate(..., prompt_cache=...)``. Recurrent, chunked and latent
    (MLA) layers keep mlx-lm's cache; ``memory_report`` gives the reason for each.

    Args:
        scheme: A scheme or its name.
        dtype: Storage dtype of raw tokens; ``None`` keeps the model's.

    Raises:
        UnknownScheme: if there is no scheme of that name.
    """
    scheme = parse_scheme(scheme) if isinstance(scheme, str) else scheme
    cache = _make_layers(model, scheme, dtype)
    use_placeholders(model, cache)
    return cache


def use_placeholders(model: Module, cache: list[Any]) -> None:
    """Route the attention of ``model`` to ``cache``. On a GPU, also return placeholders for decoded tokens if
    the model allows it, and share a kernel workspace.

    On a CPU the decoding graph is a small part of a step and is reused.
    """
    route = routing.route_of(model)
    layers = scheme_caches(cache)
    for layer in layers:
        layer.route = route
    compressing = [layer for layer in layers if layer.scheme.compresses]
    if not compressing or mx.default_device() == mx.cpu:
        return
    scheme, dtype = replace(compressing[0].scheme, tail=TILE, layers=()), compressing[0].dtype

    def make() -> tuple[list[Any], list[Any]]:
        trial = _make_layers(model, scheme, dtype)
        return trial, flat_layers(trial)

    accepted = accepts_placeholders(model, make)
    workspace = Workspace()
    for layer in compressing:
        layer.uses_placeholders = accepted
        layer.share(workspace)


def _make_layers(model: Module, scheme: Scheme, dtype: mx.Dtype | None) -> list[Any]:
    layers = mlx_lm_prompt_cache(model)
    if _latent.get(model, lambda: _has_latent_attention(model)):
        return [_mark_latent(layer) for layer in layers]

    def make(index: int, layer: Any) -> Any:
        own = scheme.of_layer(index)
        if isinstance(layer, mlx_cache.RotatingKVCache):
            return make_window(layer.max_size, own, dtype)
        return SchemeCache(own, dtype)

    return attach_ropes(_replace_each(layers, make), model)


_latent = PerModel[bool]()
_ropes = PerModel[list[Rope | None]]()


def attach_ropes(cache: list[Any], model: Module) -> list[Any]:
    """Give a model's caches the rotary embedding of their layers."""
    ropes = _ropes.get(model, lambda: model_ropes(model, len(cache)))
    for layer, rope in zip(cache, ropes, strict=True):
        for part in flat_layers([layer]):
            if isinstance(part, (SchemeCache, mlx_cache.RotatingKVCache)):
                part.rope = rope  # type: ignore[union-attr]
    return cache


def convert_layer(layer: Any, scheme: Scheme, index: int) -> Any:
    """A layer's cache under another scheme, not evaluated; the same object if schemes do not apply.

    Args:
        index: Of the layer in ``flat_layers``.
    """
    return _replace(layer, index, lambda number, old: _convert_replaceable(old, scheme.of_layer(number)))


def layer_indices(cache: list[Any]) -> list[int]:
    """Index of each layer's first cache in ``flat_layers``."""
    sizes = [len(flat_layers([layer])) for layer in cache]
    return [sum(sizes[:index]) for index in range(len(sizes))]


def _replace_each(cache: list[Any], make: Callable[[int, Any], Any]) -> list[Any]:
    return [_replace(layer, index, make) for index, layer in zip(layer_indices(cache), cache, strict=True)]


def _replace(layer: Any, index: int, make: Callable[[int, Any], Any]) -> Any:
    """``layer`` with its key-value cache replaced, inside a ``CacheList`` too.

    A list with two of them is left as it is: the second is an index over the first, and the model reads both.
    """
    if isinstance(layer, mlx_cache.CacheList):
        parts = list(layer.caches)
        if sum(_is_replaceable(part) for part in parts) != 1:
            return layer
        numbers = layer_indices(parts)
        return cache_list([_replace(part, index + n, make) for n, part in zip(numbers, parts, strict=True)])
    return make(index, layer) if _is_replaceable(layer) else layer


def _is_replaceable(layer: Any) -> bool:
    if type(layer) is mlx_cache.RotatingKVCache:
        return int(layer.keep) == 0
    return type(layer) is mlx_cache.KVCache or isinstance(layer, SchemeCache)


class LatentCache(mlx_cache.KVCache):
    """mlx-lm's ``KVCache`` for latent attention (MLA), kept as it is.

    It stores one latent vector for all heads, already a fraction of their keys and values. The model reads it
    before attention, so a scheme would decode all of it at every step.
    """


def _mark_latent(layer: Any) -> Any:
    if isinstance(layer, mlx_cache.CacheList):
        return cache_list([_mark_latent(part) for part in layer.caches])
    make: Callable[[], Any] = LatentCache
    return make() if type(layer) is mlx_cache.KVCache else layer


def flat_layers(cache: list[Any]) -> list[Any]:
    """All caches of a prompt cache, those inside a ``CacheList`` included."""
    flat: list[Any] = []
    for layer in cache:
        flat += flat_layers(list(layer.caches)) if isinstance(layer, mlx_cache.CacheList) else [layer]
    return flat


def scheme_caches(cache: list[Any]) -> list[SchemeCache]:
    """The caches of a prompt cache that are ours; mlx-lm's are left out."""
    return [layer for layer in flat_layers(cache) if isinstance(layer, SchemeCache)]


def pack_together(layers: Iterable[SchemeCache]) -> None:
    """``pack_due`` of the layers of a prompt cache in which something is due, with fewer operations.

    Layers with many due tokens, as after a prompt, are packed one after the other, so that the raw tokens of
    each are released before the next is packed.
    """
    due = [layer for layer in layers if layer.is_due]
    fit_together(side for layer in due for side in layer.unfitted)
    _pack(due, SchemeCache.take_due)


def _pack(layers: Iterable[SchemeCache], take: Callable[[SchemeCache], list[list[Encoding]]]) -> None:
    """Encode what is taken out of layers, and submit them."""
    few = []
    for layer in layers:
        sides = take(layer)
        if are_few(sides):
            few.append((layer, sides))
        else:
            encode_together([sides])
            layer.submit()
    encode_together([sides for _, sides in few])
    if few:
        # One call for all of them: each takes about as long as a layer's operations.
        mx.async_eval([layer.take_submitted() for layer, _ in few])  # type: ignore[no-untyped-call]


@contextmanager
def reading_together(layers: Sequence[SchemeCache]) -> Iterator[None]:
    """Inside, the layers of a prompt cache read one chunk of a prompt.

    Those that pack it are fitted in one go after it, as a fit is a hundred small operations. On a CPU they
    are also packed in one go then; on a GPU several layers are submitted at a time where attention decodes
    their history (see ``routing``).
    """
    unsubmitted: list[SchemeCache] = []
    for layer in layers:
        layer.unsubmitted = unsubmitted
    try:
        yield
    finally:
        for layer in layers:
            layer.unsubmitted = None
    waiting = [layer for layer in layers if layer.awaits_packing]
    fit_together(side for layer in waiting for side in layer.unfitted_in_prompt)
    _pack(waiting, SchemeCache.take_prompt)


def replace_layers(cache: Sequence[Any], layers: Mapping[int, Any]) -> list[Any]:
    """A cache with some of its ``flat_layers`` replaced, given by index."""
    numbers = iter(range(len(flat_layers(list(cache)))))

    def replace(layer: Any) -> Any:
        if isinstance(layer, mlx_cache.CacheList):
            return cache_list([replace(part) for part in layer.caches])
        return layers.get(next(numbers), layer)

    return [replace(layer) for layer in cache]


def cache_list(parts: list[Any]) -> Any:
    """mlx-lm's ``CacheList`` of these caches."""
    make: Callable[..., Any] = mlx_cache.CacheList
    return make(*parts)


def _has_latent_attention(model: Module) -> bool:
    """Whether the model caches a latent vector shared by all heads (MLA).

    Such attention maps queries to the latent space (``embed_q``). Models that expand the latent before
    caching (DeepSeek-V2, MiniCPM3) cache ordinary keys and values.
    """
    modules: list[Any] = model.modules()  # type: ignore[no-untyped-call]
    return any(hasattr(module, "kv_lora_rank") and hasattr(module, "embed_q") for module in modules)


def _convert_replaceable(old: Any, scheme: Scheme) -> Any:
    if isinstance(old, (WindowCache, mlx_cache.RotatingKVCache)):
        return convert_window(old, scheme)
    new = SchemeCache(scheme, old.dtype if isinstance(old, SchemeCache) else None)
    if isinstance(old, SchemeCache):
        new.copy_from(old)
    elif not old.empty():
        for target, x in zip(new.sides, old.keys_and_values(), strict=True):
            target.append(x)
        new.offset = old.offset
    if not new.empty():
        new.pack_due()
    return new

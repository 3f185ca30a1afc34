"""Query statistics for converting a cache whose own queries were not observed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx_lm.models.cache import RotatingKVCache

from tqchat.kv.cache import SchemeCache
from tqchat.kv.prompt_cache import flat_layers, make_prompt_cache
from tqchat.kv.scheme import Scheme, parse_scheme
from tqchat.kv.storage.observed_queries import NO_QUERIES
from tqchat.kv.window import WindowCache

MAX_OBSERVED_TOKENS = 128
"""Tokens read again to observe their queries. On two texts 512 took four times as long for no lower KLD."""


def needs_queries(cache: list[Any], scheme: str | Scheme) -> bool:
    """Whether converting ``cache`` to ``scheme`` would fit keys without having observed a query.

    Only schemes that pack keys observe queries, so a cache made under another scheme has no statistics.
    """
    scheme = parse_scheme(scheme) if isinstance(scheme, str) else scheme
    return scheme.key.kind != "raw" and any(_lacks_queries(layer, scheme) for layer in flat_layers(cache))


def _lacks_queries(layer: Any, scheme: Scheme) -> bool:
    if isinstance(layer, (WindowCache, RotatingKVCache)) and not scheme.packable(layer.max_size):
        return False
    if isinstance(layer, SchemeCache):
        fitted_before = layer.earlier.get("key", scheme.key) is not None
        return layer.key_side.spec.kind == "raw" and layer.queries.energy is None and not fitted_before
    # mlx-lm's ring buffer holds sliding windows under fp16.
    return (
        type(layer) is RotatingKVCache
        and not layer.keep
        and getattr(layer, "queries", NO_QUERIES).energy is None
    )


def observe_queries(model: Module, tokens: Sequence[int], cache: list[Any]) -> None:
    """Read the first tokens of ``cache`` again with ``model`` and store query statistics for its conversion.

    Args:
        tokens: The tokens in ``cache``; at most ``MAX_OBSERVED_TOKENS`` are read, into a temporary cache.
    """
    scratch = make_prompt_cache(model, "turbo4")
    model(mx.array(list(tokens[:MAX_OBSERVED_TOKENS]))[None], cache=scratch)
    energies = []
    for source, layer in zip(flat_layers(scratch), flat_layers(cache), strict=True):
        if isinstance(source, SchemeCache) and isinstance(layer, (SchemeCache, RotatingKVCache)):
            energies.append(source.queries.energy)
            for name in ("queries", "rope"):
                setattr(layer, name, getattr(source, name))
    mx.eval(energies)


def forget_queries(cache: list[Any]) -> None:
    """Undo ``observe_queries`` in layers whose keys stay raw."""
    for layer in flat_layers(cache):
        raw = isinstance(layer, SchemeCache) and layer.key_side.spec.kind == "raw"
        if raw or isinstance(layer, RotatingKVCache):
            layer.queries = NO_QUERIES

"""What packed keys are fitted to where the conversation's own queries were not seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx_lm.models.cache import RotatingKVCache

from tqchat.kv.cache import SchemeCache
from tqchat.kv.prompt_cache import flat_layers, make_prompt_cache
from tqchat.kv.scheme import Scheme, parse_scheme
from tqchat.kv.window import WindowCache

ENOUGH_TOKENS = 512
"""Tokens whose queries are looked at; a 64-token prompt was seen to suffice."""


def needs_queries(cache: list[Any], scheme: str | Scheme) -> bool:
    """Whether converting ``cache`` to ``scheme`` would fit keys without having seen a query.

    Only schemes that pack keys look at queries, so a cache that began under another has none to hand on.
    """
    scheme = parse_scheme(scheme) if isinstance(scheme, str) else scheme
    return scheme.key.kind != "raw" and any(_lacks_queries(layer, scheme) for layer in flat_layers(cache))


def _lacks_queries(layer: Any, scheme: Scheme) -> bool:
    if isinstance(layer, (WindowCache, RotatingKVCache)) and not scheme.packable(layer.max_size):
        return False
    if isinstance(layer, SchemeCache):
        return layer.key_side.spec.kind == "raw" and layer.query_energy is None
    # mlx-lm's own ring, what a sliding window is kept in under fp16.
    return type(layer) is RotatingKVCache and not layer.keep and getattr(layer, "query_energy", None) is None


def observe_queries(model: Module, tokens: Sequence[int], cache: list[Any]) -> None:
    """Let ``model`` read the beginning of what ``cache`` holds, and note its queries there for the next
    conversion.

    Args:
        tokens: The tokens in ``cache``; at most ``ENOUGH_TOKENS`` of them are read, into a cache of their
            own.
    """
    scratch = make_prompt_cache(model, "turbo4")
    model(mx.array(list(tokens[:ENOUGH_TOKENS]))[None], cache=scratch)
    energies = []
    for seen, layer in zip(flat_layers(scratch), flat_layers(cache), strict=True):
        if isinstance(seen, SchemeCache) and isinstance(layer, (SchemeCache, RotatingKVCache)):
            energies.append(seen.query_energy)
            for name in ("query_energy", "queries_seen", "rope"):
                setattr(layer, name, getattr(seen, name))
    mx.eval(energies)


def forget_queries(cache: list[Any]) -> None:
    """Undo ``observe_queries`` where keys stay raw after all."""
    for layer in flat_layers(cache):
        raw = isinstance(layer, SchemeCache) and layer.key_side.spec.kind == "raw"
        if raw or isinstance(layer, RotatingKVCache):
            layer.query_energy, layer.queries_seen = None, 0

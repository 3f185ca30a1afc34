"""What packed keys are fitted to where the conversation's own queries were not seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from tqchat.kv.cache import SchemeCache
from tqchat.kv.prompt_cache import flat_layers, make_prompt_cache
from tqchat.kv.scheme import Scheme, parse_scheme

ENOUGH_TOKENS = 512
"""Tokens whose queries are looked at; a 64-token prompt was seen to suffice."""


def needs_queries(cache: list[Any], scheme: str | Scheme) -> bool:
    """Whether converting ``cache`` to ``scheme`` would fit keys without having seen a query.

    Only schemes that rotate keys look at queries, so a cache that began under another has none to hand on.
    """
    scheme = parse_scheme(scheme) if isinstance(scheme, str) else scheme
    ours = [layer for layer in flat_layers(cache) if isinstance(layer, SchemeCache)]
    return scheme.key.kind == "turbo" and any(
        layer.key_side.spec.kind != "turbo" and layer.query_energy is None for layer in ours
    )


def observe_queries(model: Module, tokens: Sequence[int], cache: list[Any]) -> None:
    """Let ``model`` read the beginning of what ``cache`` holds, and note its queries there for the next
    conversion.

    Args:
        tokens: The tokens in ``cache``; at most ``ENOUGH_TOKENS`` of them are read, into a cache of their
            own.
    """
    scratch = make_prompt_cache(model, "turbo4")
    model(mx.array(list(tokens[:ENOUGH_TOKENS]))[None], cache=scratch)
    for seen, layer in zip(flat_layers(scratch), flat_layers(cache), strict=True):
        if isinstance(seen, SchemeCache) and isinstance(layer, SchemeCache):
            layer.query_energy, layer.queries_seen = seen.query_energy, seen.queries_seen
    mx.eval([layer.query_energy for layer in flat_layers(cache) if isinstance(layer, SchemeCache)])

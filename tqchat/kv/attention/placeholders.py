"""Whether a model works without decoded keys and values.

Where attention is routed to the cache, the decoded arrays it returns are never evaluated, but building their
graph takes Python longer than a small model's step takes a GPU. A model that only passes them on to the
routed attention can be given placeholder arrays of the right shape instead.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from tqchat.kv.attention.per_model import PerModel
from tqchat.kv.attention.routing import route_of
from tqchat.kv.cache import SchemeCache
from tqchat.kv.scheme import TILE

_results = PerModel[bool]()


def accepts_placeholders(model: Module, make: Callable[[], tuple[list[Any], list[Any]]]) -> bool:
    """Whether the output of ``model`` is bit-identical if its caches return NaN placeholders.

    Tested once per model, on about a hundred tokens.

    Args:
        make: Returns new caches for the model, and their flat list of layers.
    """
    return _results.get(model, lambda: _same_output_on_nan(model, make))


def _same_output_on_nan(model: Module, make: Callable[[], tuple[list[Any], list[Any]]]) -> bool:
    cache, layers = make()
    packed_layers = [layer for layer in layers if isinstance(layer, SchemeCache)]
    route = route_of(model)  # Without routing no placeholders are returned, and every model would pass.
    for layer in packed_layers:
        layer.route = route
    prompt = max(layer.scheme.sinks + layer.scheme.least_to_encode() for layer in packed_layers) + TILE
    for count in (prompt, 1):
        model(mx.zeros((1, count), dtype=mx.uint32), cache=cache)
        mx.eval([layer.state for layer in cache])
    if not any(layer.packed_tokens for layer in packed_layers):
        return False
    outputs = []
    for uses_placeholders in (False, True):
        # Copied together, so that a layer in both lists is copied once.
        trial_cache, trial_layers = copy.deepcopy((cache, layers))
        for layer in trial_layers:
            if isinstance(layer, SchemeCache):
                layer.uses_placeholders = uses_placeholders
        outputs.append(model(mx.zeros((1, 1), dtype=mx.uint32), cache=trial_cache))
    return bool(mx.array_equal(*outputs).item())

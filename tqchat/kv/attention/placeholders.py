"""Whether a model can do without the decoded keys and values that its caches describe at every step.

Nothing evaluates them where attention is routed to the cache, but to describe them takes Python longer than a
small model's step takes a GPU. A model that hands them to the routed attention, and does nothing else with
them, can be given arrays of the right shape instead.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module

from tqchat.kv.cache import SchemeCache
from tqchat.kv.scheme import TILE

_known: dict[int, tuple[weakref.ref[Module], bool]] = {}


def only_attends(model: Module, make: Callable[[], tuple[list[Any], list[Any]]]) -> bool:
    """Whether ``model``'s answer is the same, bit for bit, if what its caches return is not a number.

    It is tried once for each model, on a few dozen tokens.

    Args:
        make: Makes empty caches for the model, and lists their layers one by one.
    """
    known = _known.get(id(model))
    if known is None or known[0]() is not model:
        known = _known[id(model)] = weakref.ref(model), _try_it(model, make)
    return known[1]


def _try_it(model: Module, make: Callable[[], tuple[list[Any], list[Any]]]) -> bool:
    cache, layers = make()
    ours = [layer for layer in layers if isinstance(layer, SchemeCache)]
    prompt = max(layer.scheme.tail + layer.scheme.sinks for layer in ours) + 2 * TILE
    for count in (prompt, 1):
        model(mx.zeros((1, count), dtype=mx.int32), cache=cache)
        mx.eval([layer.state for layer in cache])
    if not any(layer.packed_tokens for layer in ours):
        return False
    answers = []
    for stands_in in (False, True):
        # Layers that are in both lists stay one in the copy.
        tried, copied = copy.deepcopy((cache, layers))
        for layer in copied:
            if isinstance(layer, SchemeCache):
                layer.stands_in = stands_in
        answers.append(model(mx.zeros((1, 1), dtype=mx.int32), cache=tried))
    return bool(mx.array_equal(*answers).item())

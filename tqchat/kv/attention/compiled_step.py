"""Decode steps of a whole model as one compiled function.

On a GPU the host builds the graph of a step while the device runs the last one, and over compressed caches
the device is mostly the faster of the two. MLX repeats a compiled function in a fraction of the time in which
Python builds its graph. So a step that differs from the last one only by its inputs is compiled: the token,
its position, and the arrays of the caches, whose strides say how many tokens they hold.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from tqchat.kv.attention.per_model import PerModel
from tqchat.kv.attention.traced_layer import CannotTrace, LaunchOrder, TracedLayer
from tqchat.kv.cache import SchemeCache
from tqchat.kv.kernels.device import relative_error
from tqchat.kv.kernels.launch import Attention, NextToken
from tqchat.kv.kernels.plan import Plan

FUNCTIONS = 8
"""Most compiled functions kept per model; some of them are used in turn. Each took 20 to 40 ms to trace on an
H200.
"""

TOLERANCE = 0.02
"""Largest difference of the first compiled step's logits from those of the same step without compilation, as
a share of the largest.
"""

Function = Callable[
    [mx.array, mx.array, mx.array, list[mx.array], list[list[mx.array]]], tuple[mx.array, mx.array]
]

_log = logging.getLogger(__name__)


def logits_of(model: Any, tokens: mx.array, cache: list[Any], version: Any = None) -> mx.array:
    """The model's logits ``[1, count, vocabulary]``, in a compiled step where that is possible.

    Args:
        tokens: ``[1, count]``, which are appended to the cache.
        cache: One entry per layer of the model.
        version: An object that stands for the model's present modules and weights, which are part of a
            compiled step: another one once they have changed. By default the model itself.
    """
    if tokens.size == 1 and (next_tokens := _next_tokens(cache)) is not None:
        steps = _steps.get(model if version is None else version, lambda: _CompiledSteps(model))
        return steps.logits(tokens, cache, next_tokens)
    logits: mx.array = model(tokens, cache=cache)
    return logits


def _next_tokens(cache: Sequence[Any]) -> list[NextToken] | None:
    """The launches of the next step, if every layer has one, all at one position and in one order."""
    found: list[NextToken] = []
    for layer in cache:
        if not isinstance(layer, SchemeCache) or layer.offset != cache[0].offset:
            return None
        one = layer.next_token()
        if one is None or (found and one.launcher.workspace is not found[0].launcher.workspace):
            return None
        found.append(one)
    routes = {id(layer.route): layer for layer in cache}
    return found if found and all(layer.is_routed for layer in routes.values()) else None


class _CompiledSteps:
    """The compiled steps of a model. The first one of each kind is compared with one that is not compiled.

    Args:
        model: Referred to weakly: this lives as long as the model's version.
    """

    def __init__(self, model: Any) -> None:
        self._model = weakref.ref(model)
        self._functions: dict[tuple[object, ...], Function] = {}
        self._trusted: set[tuple[Plan, ...]] = set()
        self._refused: set[tuple[Plan, ...]] = set()

    def logits(self, tokens: mx.array, cache: list[Any], next_tokens: list[NextToken]) -> mx.array:
        """The model's logits ``[1, 1, vocabulary]`` behind a token ``[1, 1]``."""
        plans = tuple(one.launcher.plan for one in next_tokens)
        found: mx.array | None = None
        if plans not in self._refused:
            try:
                found, last = self._run(tokens, cache, next_tokens)
                if plans in self._trusted:
                    for layer, one in zip(cache, next_tokens, strict=True):
                        layer.mark_appended(one.launcher, last)
                    return found
                # The same launches follow, and share the working memory.
                mx.eval(found, last)
                next_tokens[0].launcher.workspace.before = last
            except Exception as error:  # whatever a model raises when it is traced
                found = None
                self._refuse(plans, str(error))
        model: Any = self._model()
        expected: mx.array = model(tokens, cache=cache)
        if found is not None:
            error_found = relative_error(expected, found)
            if error_found <= TOLERANCE:
                self._trusted.add(plans)
            else:
                self._refuse(plans, f"the logits differ by {error_found:.2g}")
        return expected

    def _refuse(self, plans: tuple[Plan, ...], reason: str) -> None:
        self._refused.add(plans)
        _log.info("The model's steps are not compiled: %s", reason)

    def _run(
        self, tokens: mx.array, cache: list[Any], next_tokens: list[NextToken]
    ) -> tuple[mx.array, mx.array]:
        """Logits, and the output of the last launch. The caches know nothing of it yet."""
        launches = tuple(one.attention.run for one in next_tokens)
        function = self._functions.get(launches)
        if function is None:
            if len(self._functions) == FUNCTIONS:
                del self._functions[next(iter(self._functions))]
            function = self._functions[launches] = self._compiled([one.attention for one in next_tokens])
        return function(
            tokens,
            mx.array(cache[0].offset),
            next_tokens[0].launcher.workspace.before,
            [one.sizes for one in next_tokens],
            [one.arrays for one in next_tokens],
        )

    def _compiled(self, attentions: Sequence[Attention]) -> Function:
        """A step with these launches, as a compiled function of the token, its position, what runs before it,
        and the sizes and arrays of the layers.
        """
        reference = self._model  # not ``self``, which keeps the function and with it the weights

        def step(
            tokens: mx.array,
            offset: mx.array,
            before: mx.array,
            sizes: list[mx.array],
            arrays: list[list[mx.array]],
        ) -> tuple[mx.array, mx.array]:
            model: Any = reference()
            order = LaunchOrder(before)
            layers = [
                TracedLayer(*layer, offset, order) for layer in zip(attentions, sizes, arrays, strict=True)
            ]
            logits = model(tokens, cache=layers)
            if not all(layer.was_attended for layer in layers):
                raise CannotTrace("the model does not use all layers of the cache")
            return logits, order.before

        compiled: Function = mx.compile(step)
        return compiled


_steps = PerModel[_CompiledSteps]()

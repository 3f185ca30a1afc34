"""Asks for a stop between the layers of a chunk of a prompt."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import mlx.core as mx
from mlx_lm.models import cache as mlx_cache

from tqchat.kv import SchemeCache
from tqchat.kv.prompt_cache import flat_layers

FINISH_SECONDS = 0.3
"""A chunk that a stop finds this close to its end is read to the end."""

_FETCH = "update_and_fetch"


class PrefillStopped(Exception):
    """A prefill was stopped before or within a chunk; the cache is as it was before that chunk."""


class StopBetweenLayers:
    """Evaluates a chunk up to what a layer is about to store, and raises ``PrefillStopped`` on a stop."""

    def __init__(self, stopped: Callable[[], bool], layers: int) -> None:
        self._stopped, self._layers = stopped, layers
        self._began, self._next = time.perf_counter(), 0

    def __call__(self, index: int, *arrays: mx.array) -> None:
        """Evaluate the first arrays that a layer is about to store, and see whether to stop.

        Args:
            index: Of the layer in ``flat_layers``.

        Raises:
            PrefillStopped: if so.
        """
        if index < self._next:
            return
        self._next = index + 1
        mx.eval(arrays)
        if self._stopped():
            spent = time.perf_counter() - self._began
            if not index or spent / index * (self._layers - index) > FINISH_SECONDS:
                raise PrefillStopped


def can_stop_at(layer: Any) -> bool:
    """Whether a stop can be asked for at this layer: not where a cache stores in a way of its own."""
    return isinstance(layer, (SchemeCache, mlx_cache.ArraysCache)) or hasattr(layer, _FETCH)


@contextmanager
def stopping_between_layers(cache: list[Any], stopped: Callable[[], bool]) -> Iterator[None]:
    """Inside, ``stopped`` is asked when a layer first stores something of a chunk that is read.

    The layers where it can be (see ``can_stop_at``) are evaluated one by one then.

    Raises:
        PrefillStopped: if it was stopped; some layers hold the chunk then, or a part of it.
    """
    layers = flat_layers(cache)
    stop = StopBetweenLayers(stopped, len(layers))
    for index, layer in enumerate(layers):
        _call_before_storing(layer, partial(stop, index))
    try:
        yield
    finally:
        for layer in layers:
            _end_calls(layer)


def _call_before_storing(layer: Any, call: Callable[..., None]) -> None:
    """Call ``call`` with what the layer is about to store."""
    if isinstance(layer, SchemeCache):
        layer.before_append = call
    elif isinstance(layer, mlx_cache.ArraysCache):
        layer.cache = _Arrays(layer.cache, call)
    elif can_stop_at(layer):
        fetch = layer.update_and_fetch

        def update_and_fetch(keys: mx.array, values: mx.array) -> Any:
            call(keys, values)
            return fetch(keys, values)

        setattr(layer, _FETCH, update_and_fetch)


def _end_calls(layer: Any) -> None:
    if isinstance(layer, SchemeCache):
        layer.before_append = None
    elif isinstance(layer, mlx_cache.ArraysCache):
        layer.cache = list(layer.cache)
    else:
        vars(layer).pop(_FETCH, None)  # that of its class is found again


class _Arrays(list[Any]):
    """Recurrent states of a layer; ``call`` is called with each that is about to be stored."""

    def __init__(self, arrays: list[Any], call: Callable[..., None]) -> None:
        super().__init__(arrays)
        self._call = call

    def __setitem__(self, index: Any, array: Any) -> None:
        self._call(array)
        super().__setitem__(index, array)

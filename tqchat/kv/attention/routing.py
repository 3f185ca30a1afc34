"""The hook into mlx-lm: attention over a packed ``SchemeCache`` is computed by the cache.

mlx-lm's model files import ``scaled_dot_product_attention`` by name, so ``install`` replaces the name in
every loaded model file and where it is defined, whatever function stands there: mlx-lm's, or that of another
library. ``uninstall`` restores it.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from functools import lru_cache
from types import ModuleType
from typing import Any

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx_lm.models import base

from tqchat.kv.attention.per_model import PerModel
from tqchat.kv.attention.row_by_row import row_by_row
from tqchat.kv.attention.traced_layer import TracedLayer
from tqchat.kv.batch import BatchCache
from tqchat.kv.cache import SchemeCache, cache_of

DECODED_BYTES_PER_START = 160 << 20
"""Bytes of decoded history, of several layers of the same size, that a prefill starts on the device together
at most: each start takes the host as long as building the graph of half a layer.
"""

STARTED_BYTES = 256 << 20
"""Bytes of decoded history that are started before the first of them are used. Two parts always are, so that
the device has work while the host builds the next.
"""

_NAME = "scaled_dot_product_attention"
_is_installed = False
_outside: set[ModuleType] = set()
"""Modules of models that are not part of mlx-lm."""


class _Prefill(threading.local):
    """What a thread's prefill has started. Of each thread, as MLX lets no other wait for it.

    Attributes:
        decoded_bytes: Bytes of decoded history that are not started yet.
        started: A number of each started part that was not waited for, and its bytes; oldest first.
    """

    def __init__(self) -> None:
        self.decoded_bytes = 0
        self.started: deque[tuple[mx.array, int]] = deque()

    @property
    def started_bytes(self) -> int:
        """Bytes of decoded history in ``started``."""
        return sum(size for _, size in self.started)


class RoutedAttention:
    """Attention that a packed cache computes itself, and another function for all other caches.

    Attributes:
        original: mlx-lm's ``scaled_dot_product_attention``, or what another library put in its place.
    """

    def __init__(self, original: Any) -> None:
        self.original = original
        self._prefill = _Prefill()

    def __call__(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        cache: Any,
        scale: float,
        mask: Any,
        sinks: mx.array | None = None,
    ) -> mx.array:
        """Replacement of mlx-lm's ``scaled_dot_product_attention``.

        Calls ``cache.attend`` if the cache holds packed tokens and the model passes on the fetched arrays
        unchanged; the original function otherwise.
        """
        if not _is_installed:
            # Another library still calls it.
            return self._original(queries, keys, values, cache, scale, mask, sinks)
        if isinstance(cache, SchemeCache):
            output = cache.attend_fetched(queries, keys, values, scale, mask, sinks)
            if output is not None:
                return output
            if cache.is_last_fetch(keys, values):
                cache.observe(queries)
                is_decoded = cache.has_placeholders
                if is_decoded:
                    keys, values = cache.decoded()
                output = self._of_raw_tokens(queries, keys, values, cache, scale, mask, sinks)
                cache.finish_attention(output)
                if is_decoded:
                    self._start(output, keys.nbytes + values.nbytes, cache.unsubmitted)
                return output
        elif isinstance(cache, BatchCache) and cache.is_last_fetch(keys, values):
            return cache.attend(self, queries, scale, mask, sinks)
        elif isinstance(cache, TracedLayer) and cache.is_last_fetch(keys, values):
            return cache.attend(queries, scale, mask, sinks)
        if (shared := cache_of(keys, values)) is not None:
            shared.mark_shared()
        return self._original(queries, keys, values, cache, scale, mask, sinks)

    def _start(self, output: mx.array, decoded: int, unsubmitted: list[SchemeCache] | None = None) -> None:
        """Let the device decode, attend and pack while the graph of the next layers is built.

        Not after each short history, as that takes time itself; nor far ahead of the device, as what is
        started has its memory.

        Args:
            output: Of a layer that has decoded so many bytes.
            unsubmitted: Layers up to this one that have packed tokens (see ``SchemeCache.unsubmitted``).
        """
        prefill = self._prefill
        prefill.decoded_bytes += decoded
        if prefill.decoded_bytes + decoded <= DECODED_BYTES_PER_START:
            return  # the next layer, which is mostly as large, fits
        part, prefill.decoded_bytes = prefill.decoded_bytes, 0
        while len(prefill.started) > 1 and prefill.started_bytes + part > STARTED_BYTES:
            mx.eval(prefill.started.popleft()[0])
        done = output[:1, :1, :1, :1] + 0  # a number of its own, so that the output is not kept
        packed = [layer.take_submitted() for layer in unsubmitted or ()]
        mx.async_eval(output, done, packed)  # type: ignore[no-untyped-call]
        if unsubmitted:
            unsubmitted.clear()
        prefill.started.append((done, part))

    def _of_raw_tokens(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        cache: SchemeCache,
        scale: float,
        mask: Any,
        sinks: mx.array | None,
    ) -> mx.array:
        if not cache.attends_row_by_row:
            return self._original(queries, keys, values, cache, scale, mask, sinks)

        def attend(row: mx.array, seen: int, own: mx.array | None) -> mx.array:
            return self._original(row, keys[:, :, :seen], values[:, :, :seen], cache, scale, own, sinks)

        return row_by_row(queries, keys.shape[2], mask, attend)

    def _original(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        cache: Any,
        scale: float,
        mask: Any,
        sinks: mx.array | None,
    ) -> mx.array:
        more = {} if sinks is None else {"sinks": sinks}
        output: mx.array = self.original(queries, keys, values, cache=cache, scale=scale, mask=mask, **more)
        return output


_routed = lru_cache(maxsize=None)(RoutedAttention)
routed_attention = _routed(base.scaled_dot_product_attention)


class Route:
    """Whether the attention of some modules is routed now.

    Another library may replace it at any time, so it is looked up, not remembered.
    """

    def __init__(self, modules: Iterable[ModuleType]) -> None:
        self._namespaces = tuple(vars(module) for module in modules)

    @property
    def is_active(self) -> bool:
        for names in self._namespaces:
            if type(names.get(_NAME)) is not RoutedAttention:
                return False
        return _is_installed and bool(self._namespaces)


SchemeCache.route = Route([base])


def attention_modules(model: Module) -> list[ModuleType]:
    """Python modules of a model's classes that call ``scaled_dot_product_attention``."""
    parts: list[Any] = model.modules()  # type: ignore[no-untyped-call]
    names = {cls.__module__ for kind in {type(part) for part in parts} for cls in kind.__mro__}
    modules = [sys.modules[name] for name in sorted(names) if name in sys.modules]
    return [module for module in modules if callable(vars(module).get(_NAME))]


_routes = PerModel[tuple[Route, list[ModuleType]]]()


def route_of(model: Module) -> Route:
    """The route of a model's own attention, installed."""

    def find_out() -> tuple[Route, list[ModuleType]]:
        modules = attention_modules(model)
        return Route(modules), modules

    route, modules = _routes.get(model, find_out)
    if not route.is_active:
        install(modules)
    return route


def _model_files() -> Iterator[ModuleType]:
    for name, module in list(sys.modules.items()):
        if name.startswith("mlx_lm.models.") and module is not None:
            yield module
    yield from _outside


def install(modules: Iterable[ModuleType] = ()) -> None:
    """Route attention in every loaded model file and in ``modules``; call it again after loading others."""
    global _is_installed
    _outside.update(module for module in modules if not module.__name__.startswith("mlx_lm.models."))
    for module in _model_files():
        found = vars(module).get(_NAME)
        if callable(found) and not isinstance(found, RoutedAttention):
            setattr(module, _NAME, _routed(found))
    _is_installed = True


def uninstall() -> None:
    """Restore the attention that ``install`` replaced."""
    global _is_installed
    _is_installed = False
    for module in _model_files():
        found = vars(module).get(_NAME)
        if isinstance(found, RoutedAttention):
            setattr(module, _NAME, found.original)

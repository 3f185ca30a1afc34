"""Attention of a single token, alone: what a layer's cache costs without a model around it."""

from __future__ import annotations

import tqchat.engine.ready  # noqa: F401

# isort: split

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
from mlx_lm.models import base
from mlx_lm.models.cache import KVCache, QuantizedKVCache

from tqchat.engine import backend
from tqchat.kv import routing
from tqchat.kv.cache import SchemeCache
from tqchat.lab.bench import subjects, timing
from tqchat.lab.bench.decode import rows
from tqchat.lab.bench.results import BenchRow
from tqchat.lab.contestants import Contestant

ENOUGH_SECONDS = 0.02
"""A round repeats attention until it takes about that long."""

MOST_CALLS = 256

LAYERS = 28
"""Calls handed over together: a step of a model of 3B."""


@dataclass(frozen=True)
class Layer:
    """The shape of one layer's attention; ``rows`` query tokens at once."""

    query_heads: int = 24
    kv_heads: int = 8
    head_dim: int = 128
    rows: int = 1


def attention(
    layer: Layer,
    contestants: Sequence[Contestant],
    contexts: Sequence[int],
    rounds: int,
    tell: Callable[[str], None],
) -> Iterator[BenchRow]:
    """One token's queries over ``contexts`` random tokens of a layer.

    All is float16; on a CPU queries are float32, as models compute there. Calls are chained, each one's
    output the next one's queries, and handed over as a model's layers are while a reply is generated: some
    at a time, without waiting for those before them.
    """
    routing.install()
    for context in contexts:
        yield from _at(layer, contestants, context, rounds, tell)


def _at(
    layer: Layer, contestants: Sequence[Contestant], context: int, rounds: int, tell: Callable[[str], None]
) -> Iterator[BenchRow]:
    caches = {c.name: _layer_cache(c, layer, context) for c in contestants}
    dtype = mx.float32 if backend.prepare().name == "cpu" else mx.float16
    queries = mx.random.normal((1, layer.query_heads, layer.rows, layer.head_dim), dtype=dtype)
    mx.eval(queries)
    peaks = dict.fromkeys(caches, 0)
    calls = {name: _calls(cache, queries) for name, cache in caches.items()}

    def run(name: str) -> float:
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        seconds = _attend(caches[name], queries, calls[name])
        peaks[name] = max(peaks[name], mx.get_peak_memory() - before + caches[name].nbytes)
        return seconds

    runs = {name: partial(run, name) for name in caches}
    times = timing.take_turns(runs, rounds, lambda name: tell(f"attention at {context:,}, {name}"))
    reads = {name: cache.nbytes for name, cache in caches.items()}
    yield from rows("attention", context, times, contestants, peaks, reads, 1)


def _layer_cache(contestant: Contestant, layer: Layer, context: int) -> Any:
    cache: Any
    if contestant.name == subjects.REFERENCE:
        cache = KVCache()  # type: ignore[no-untyped-call]
    elif contestant.peer_bits is not None:
        group = 64 if layer.head_dim % 64 == 0 else 32
        cache = QuantizedKVCache(group, contestant.peer_bits)
    else:
        cache = SchemeCache(contestant.scheme)
        cache.stands_in = True  # attention is all there is here
    for start in range(0, context, subjects.FILL):
        shape = (2, 1, layer.kv_heads, min(subjects.FILL, context - start), layer.head_dim)
        cache.update_and_fetch(*mx.random.normal(shape, dtype=mx.float16))
        if isinstance(cache, SchemeCache):
            cache.pack_due()
        mx.eval(cache.state)
        mx.clear_cache()
    return cache


def _attend(cache: Any, queries: mx.array, calls: int) -> float:
    """Seconds for one call, of ``calls``."""
    mask: Any = "causal" if queries.shape[2] > 1 else None
    began = time.perf_counter()
    x = queries
    for call in range(calls):
        keys, values = cache.keys_and_values()
        # Through the module, where the routing has put its own.
        x = base.scaled_dot_product_attention(
            x, keys, values, cache=cache, scale=queries.shape[-1] ** -0.5, mask=mask
        )
        if call % LAYERS == LAYERS - 1:
            mx.async_eval(x)  # type: ignore[no-untyped-call]
    mx.eval(x)
    seconds = (time.perf_counter() - began) / calls
    mx.clear_cache()
    return seconds


def _calls(cache: Any, queries: mx.array) -> int:
    _attend(cache, queries, 2)
    return min(MOST_CALLS, max(1, int(ENOUGH_SECONDS / _attend(cache, queries, 2))))

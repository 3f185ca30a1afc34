"""Attention of a single token, alone: what a layer's cache costs without a model around it."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

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
from tqchat.kv.attention import routing
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

QUEUED = 2 * LAYERS
"""Calls that wait for a busy device; fewer if they take it longer than ``QUEUED_SECONDS``, but not fewer than
``FEWEST_QUEUED``. MLX lets no more wait, and of those that read much still fewer."""

QUEUED_SECONDS = 0.002
FEWEST_QUEUED = 4

AHEAD = 4096
"""Rows and columns of the matrices that it is kept busy multiplying."""

MOST_PRODUCTS = 4096
"""Times that it does so at most."""


class _NoQueue(Exception):
    """What a device is given does not wait for it."""


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
    """One token's queries over ``contexts`` random tokens of a layer, as a model's layers ask for it.

    All is float16; on a CPU queries are float32, as models compute there. Calls are chained, each one's
    output the next one's queries, and handed over as a model's layers are while a reply is generated: some
    at a time, without waiting for those before them. Where a device is faster than the processor describes
    and launches what it is to do, that is what is timed.
    """
    for context in contexts:
        yield from _attention_at(layer, contestants, context, rounds, tell)


def _attention_at(
    layer: Layer, contestants: Sequence[Contestant], context: int, rounds: int, tell: Callable[[str], None]
) -> Iterator[BenchRow]:
    caches, queries = _made(contestants, layer, context)
    peaks = dict.fromkeys(caches, 0)
    calls = {name: _calls(cache, queries, MOST_CALLS, ENOUGH_SECONDS) for name, cache in caches.items()}

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


def kernels(
    layer: Layer,
    contestants: Sequence[Contestant],
    contexts: Sequence[int],
    rounds: int,
    tell: Callable[[str], None],
) -> Iterator[BenchRow]:
    """The same on the device alone: it is kept busy until all calls wait for it, and the time is taken from
    then on. Nothing on a CPU.
    """
    if backend.prepare().name == "cpu":
        tell("kernels: a CPU has none")
        return
    try:
        for context in contexts:
            yield from _kernels_at(layer, contestants, context, rounds, tell)
    except _NoQueue:
        tell("kernels: this device does not let work wait, so that its time alone is not known")


def _kernels_at(
    layer: Layer, contestants: Sequence[Contestant], context: int, rounds: int, tell: Callable[[str], None]
) -> Iterator[BenchRow]:
    caches, queries = _made(contestants, layer, context)
    ahead = _Ahead()
    calls = {name: _calls(cache, queries, QUEUED, QUEUED_SECONDS) for name, cache in caches.items()}
    runs = {
        name: partial(_queued, cache, queries, max(FEWEST_QUEUED, calls[name]), ahead)
        for name, cache in caches.items()
    }
    times = timing.take_turns(runs, rounds, lambda name: tell(f"kernels at {context:,}, {name}"))
    reads = {name: cache.nbytes for name, cache in caches.items()}
    yield from rows("kernels", context, times, contestants, {}, reads, 1)


def _made(contestants: Sequence[Contestant], layer: Layer, context: int) -> tuple[dict[str, Any], mx.array]:
    """A filled cache for everybody, by name, and queries."""
    routing.install()
    caches = {c.name: _layer_cache(c, layer, context) for c in contestants}
    dtype = mx.float32 if backend.prepare().name == "cpu" else mx.float16
    queries = mx.random.normal((1, layer.query_heads, layer.rows, layer.head_dim), dtype=dtype)
    mx.eval(queries)
    return caches, queries


def _layer_cache(contestant: Contestant, layer: Layer, context: int) -> Any:
    cache: Any
    if contestant.name == subjects.REFERENCE:
        cache = KVCache()  # type: ignore[no-untyped-call]
    elif contestant.peer_bits is not None:
        group = 64 if layer.head_dim % 64 == 0 else 32
        cache = QuantizedKVCache(group, contestant.peer_bits)
    else:
        cache = SchemeCache(contestant.scheme)
        cache.uses_placeholders = True  # attention is all there is here
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
    began = time.perf_counter()
    mx.eval(_chain(cache, queries, calls))
    seconds = (time.perf_counter() - began) / calls
    mx.clear_cache()
    return seconds


def _chain(cache: Any, queries: mx.array, calls: int) -> mx.array:
    """So many calls, all of them handed over."""
    mask: Any = "causal" if queries.shape[2] > 1 else None
    x = queries
    for call in range(calls):
        keys, values = cache.keys_and_values()
        # Through the module, where the routing has put its own.
        x = base.scaled_dot_product_attention(
            x, keys, values, cache=cache, scale=queries.shape[-1] ** -0.5, mask=mask
        )
        if call % LAYERS == LAYERS - 1 or call == calls - 1:
            mx.async_eval(x)  # type: ignore[no-untyped-call]
    return x


class _Ahead:
    """Work that keeps a device busy while other work is handed over."""

    def __init__(self) -> None:
        self._matrix = mx.random.normal((AHEAD, AHEAD), dtype=mx.float16)
        self._products = 1

    def begin(self) -> mx.array:
        """Hand the work over; what is there when it is done."""
        x = self._matrix
        for _ in range(self._products):
            x = x @ self._matrix
        x = x.sum()
        mx.async_eval(x)  # type: ignore[no-untyped-call]
        return x

    def take_longer(self) -> bool:
        """Let it be twice as much; whether that is still reasonable."""
        self._products *= 2
        return self._products <= MOST_PRODUCTS


def _queued(cache: Any, queries: mx.array, calls: int, ahead: _Ahead) -> float:
    """Seconds for one call on the device, of ``calls`` that wait for it.

    Raises:
        _NoQueue: The device does not let them wait.
    """
    while True:
        mx.synchronize()
        began = time.perf_counter()
        busy = ahead.begin()
        x = _chain(cache, queries, calls)
        handed_over = time.perf_counter()
        mx.eval(busy)
        free = time.perf_counter()
        mx.eval(x)
        done = time.perf_counter()
        # Time to spare: it was still busy when the last of them came.
        if free - handed_over > (handed_over - began) / 4:
            return (done - free) / calls
        if not ahead.take_longer():
            raise _NoQueue


def _calls(cache: Any, queries: mx.array, most: int, seconds: float) -> int:
    """How many take about so long."""
    # The first is held against plain operations, the second is put together, as is the first behind another.
    each = min(_attend(cache, queries, 2) for _ in range(3))
    return min(most, max(1, int(seconds / each)))

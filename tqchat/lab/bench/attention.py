"""Attention of one decoded token over one layer's cache, without a model around it."""

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
from tqchat.lab.bench import kv_caches, timing
from tqchat.lab.bench.decode import LeaveOut, bench_rows
from tqchat.lab.bench.results import BenchRow
from tqchat.lab.candidates import Candidate, CannotTakePart, may_drop_out

ROUND_TARGET_S = 0.02
"""A round repeats attention until it takes about this long."""

MAX_CALLS = 256

CALLS_PER_EVAL = 28
"""Calls submitted by one ``async_eval``: the layers of a 3B model."""

MAX_QUEUED_CALLS = 2 * CALLS_PER_EVAL
"""Calls queued behind a busy device; fewer if they would take longer than ``MAX_QUEUED_S``, but at least
``MIN_QUEUED_CALLS``. MLX blocks the submitter beyond that, earlier if calls read many bytes."""

MAX_QUEUED_S = 0.002
MIN_QUEUED_CALLS = 4

BUSY_MATRIX_SIZE = 4096
"""Rows and columns of the matrices multiplied to keep the device busy."""

MAX_BUSY_PRODUCTS = 4096


class _CannotQueue(Exception):
    """The device does not run calls asynchronously."""


@dataclass(frozen=True)
class Layer:
    """The shape of one layer's attention; ``rows`` query tokens at once."""

    query_heads: int = 24
    kv_heads: int = 8
    head_dim: int = 128
    rows: int = 1


def attention(
    layer: Layer,
    candidates: Sequence[Candidate],
    contexts: Sequence[int],
    rounds: int,
    tell: Callable[[str], None],
    leave_out: LeaveOut,
) -> Iterator[BenchRow]:
    """Time attention of one decode step over ``contexts`` random tokens of a layer, host time included.

    Arrays are float16; on a CPU queries are float32, as in models there. Each call's output is the next
    call's queries. Calls are submitted ``CALLS_PER_EVAL`` at a time without waiting, as a model's layers are
    during decoding. If the device is faster than the host submits, the host's time is measured.
    """
    for context in contexts:
        yield from _attention_at(layer, candidates, context, rounds, tell, leave_out)


def _attention_at(
    layer: Layer,
    candidates: Sequence[Candidate],
    context: int,
    rounds: int,
    tell: Callable[[str], None],
    leave_out: LeaveOut,
) -> Iterator[BenchRow]:
    queries = _queries(layer)
    caches, calls = _caches_and_calls(
        candidates, layer, context, queries, MAX_CALLS, ROUND_TARGET_S, leave_out
    )
    peaks = dict.fromkeys(caches, 0)

    def run(name: str) -> float:
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        seconds = _time_calls(caches[name], queries, calls[name])
        peaks[name] = max(peaks[name], mx.get_peak_memory() - before + caches[name].nbytes)
        return seconds

    runs = {name: partial(run, name) for name in caches}
    times = timing.time_interleaved(runs, rounds, lambda name: tell(f"attention at {context:,}, {name}"))
    reads = {name: cache.nbytes for name, cache in caches.items()}
    yield from bench_rows("attention", context, times, candidates, peaks, reads, 1)


def kernels(
    layer: Layer,
    candidates: Sequence[Candidate],
    contexts: Sequence[int],
    rounds: int,
    tell: Callable[[str], None],
    leave_out: LeaveOut,
) -> Iterator[BenchRow]:
    """Time the same calls on the device alone: they are queued while it is busy with other work, and timed
    from the end of that work. No rows on a CPU.
    """
    if backend.prepare().name == "cpu":
        tell("kernels: a CPU has none")
        return
    try:
        for context in contexts:
            yield from _kernels_at(layer, candidates, context, rounds, tell, leave_out)
    except _CannotQueue:
        tell("kernels: this device does not queue calls, so its own time cannot be measured")


def _kernels_at(
    layer: Layer,
    candidates: Sequence[Candidate],
    context: int,
    rounds: int,
    tell: Callable[[str], None],
    leave_out: LeaveOut,
) -> Iterator[BenchRow]:
    queries = _queries(layer)
    caches, calls = _caches_and_calls(
        candidates, layer, context, queries, MAX_QUEUED_CALLS, MAX_QUEUED_S, leave_out
    )
    busy_work = _BusyWork()
    runs = {
        name: partial(_time_on_device, cache, queries, max(MIN_QUEUED_CALLS, calls[name]), busy_work)
        for name, cache in caches.items()
    }
    times = timing.time_interleaved(runs, rounds, lambda name: tell(f"kernels at {context:,}, {name}"))
    reads = {name: cache.nbytes for name, cache in caches.items()}
    yield from bench_rows("kernels", context, times, candidates, {}, reads, 1)


def _queries(layer: Layer) -> mx.array:
    """Random queries ``[1, query_heads, rows, head_dim]``."""
    dtype = mx.float32 if backend.prepare().name == "cpu" else mx.float16
    queries = mx.random.normal((1, layer.query_heads, layer.rows, layer.head_dim), dtype=dtype)
    mx.eval(queries)
    return queries


def _caches_and_calls(
    candidates: Sequence[Candidate],
    layer: Layer,
    context: int,
    queries: mx.array,
    most: int,
    seconds: float,
    leave_out: LeaveOut,
) -> tuple[dict[str, Any], dict[str, int]]:
    """A filled cache for each candidate that runs here, and the number of calls in a round, by name."""
    routing.install()
    caches, calls = {}, {}
    for candidate in candidates:
        try:
            with may_drop_out(candidate):
                cache = _layer_cache(candidate, layer, context)
                calls[candidate.name] = _calls_for(cache, queries, most, seconds)
        except CannotTakePart as error:
            leave_out(candidate.name, error)
        else:
            caches[candidate.name] = cache
    return caches, calls


def _layer_cache(candidate: Candidate, layer: Layer, context: int) -> Any:
    cache: Any
    if candidate.name == kv_caches.REFERENCE:
        cache = KVCache()  # type: ignore[no-untyped-call]
    elif candidate.mlx_bits is not None:
        group = 64 if layer.head_dim % 64 == 0 else 32
        cache = QuantizedKVCache(group, candidate.mlx_bits)
    else:
        cache = SchemeCache(candidate.scheme)
    for start in range(0, context, kv_caches.FILL_CHUNK_TOKENS):
        shape = (2, 1, layer.kv_heads, min(kv_caches.FILL_CHUNK_TOKENS, context - start), layer.head_dim)
        cache.update_and_fetch(*mx.random.normal(shape, dtype=mx.float16))
        if isinstance(cache, SchemeCache):
            cache.pack_due()
        mx.eval(cache.state)
        mx.clear_cache()
    if isinstance(cache, SchemeCache):
        cache.uses_placeholders = True  # only attention reads the cache from here on
    return cache


def _time_calls(cache: Any, queries: mx.array, calls: int) -> float:
    """Run ``calls`` chained calls; seconds per call."""
    began = time.perf_counter()
    mx.eval(_chain(cache, queries, calls))
    seconds = (time.perf_counter() - began) / calls
    mx.clear_cache()
    return seconds


def _chain(cache: Any, queries: mx.array, calls: int) -> mx.array:
    """Submit ``calls`` chained calls; the last output, not evaluated."""
    mask: Any = "causal" if queries.shape[2] > 1 else None
    x = queries
    for call in range(calls):
        keys, values = cache.keys_and_values()
        # Through the module, so that the hook of kv.routing applies.
        x = base.scaled_dot_product_attention(
            x, keys, values, cache=cache, scale=queries.shape[-1] ** -0.5, mask=mask
        )
        if call % CALLS_PER_EVAL == CALLS_PER_EVAL - 1 or call == calls - 1:
            mx.async_eval(x)  # type: ignore[no-untyped-call]
    return x


class _BusyWork:
    """Matrix products that keep a device busy while calls are queued behind them."""

    def __init__(self) -> None:
        self._matrix = mx.random.normal((BUSY_MATRIX_SIZE, BUSY_MATRIX_SIZE), dtype=mx.float16)
        self._products = 1

    def begin(self) -> mx.array:
        """Submit the products; an array that is ready when they are done."""
        x = self._matrix
        for _ in range(self._products):
            x = x @ self._matrix
        x = x.sum()
        mx.async_eval(x)  # type: ignore[no-untyped-call]
        return x

    def double(self) -> bool:
        """Double the work; ``False`` beyond ``MAX_BUSY_PRODUCTS``."""
        self._products *= 2
        return self._products <= MAX_BUSY_PRODUCTS


def _time_on_device(cache: Any, queries: mx.array, calls: int, busy_work: _BusyWork) -> float:
    """Queue ``calls`` chained calls behind other work; device seconds per call.

    Raises:
        _CannotQueue: if the calls could not be queued before the other work ended.
    """
    while True:
        mx.synchronize()
        began = time.perf_counter()
        busy = busy_work.begin()
        x = _chain(cache, queries, calls)
        submitted = time.perf_counter()
        mx.eval(busy)
        free = time.perf_counter()
        mx.eval(x)
        done = time.perf_counter()
        # Valid only if the device was still busy when the last call was submitted, with a margin.
        if free - submitted > (submitted - began) / 4:
            return (done - free) / calls
        if not busy_work.double():
            raise _CannotQueue


def _calls_for(cache: Any, queries: mx.array, most: int, seconds: float) -> int:
    """Number of calls that take about ``seconds``, at most ``most``."""
    # The first run checks the kernel against plain operations, the second still compiles.
    each = min(_time_calls(cache, queries, 2) for _ in range(3))
    # Waiting for the device is most of the time of two short calls, so as many as would fit are timed again.
    several = min(most, int(seconds / each))
    if several > 2:
        each = min(each, _time_calls(cache, queries, several))
    return min(most, max(1, int(seconds / each)))

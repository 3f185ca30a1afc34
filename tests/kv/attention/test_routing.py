"""The hook beside other libraries that replace mlx-lm's attention."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models import base
from mlx_lm.models import llama as llama_file

from tests.kv import tiny
from tests.kv.test_cache import logits
from tests.kv.test_families import short
from tqchat.kv import make_prompt_cache
from tqchat.kv.attention import routing
from tqchat.kv.cache import MAX_DECODE_ROWS, SchemeCache
from tqchat.kv.storage.placeholders import PlaceholderNotAttended

NAME = "scaled_dot_product_attention"


@pytest.fixture(autouse=True)
def own_attention() -> Iterator[None]:
    """mlx-lm's own attention before and the routed one after each test."""
    routing.uninstall()
    originals = base.scaled_dot_product_attention
    yield
    for module in (base, llama_file):
        setattr(module, NAME, originals)
    routing.install()


def wrapper(inner: Callable[..., mx.array], calls: list[int]) -> Callable[..., mx.array]:
    """What another library puts in place of mlx-lm's attention."""

    def attention(*args: Any, **kwargs: Any) -> mx.array:
        calls.append(1)
        return inner(*args, **kwargs)

    return attention


def plain(
    queries: mx.array, keys: mx.array, values: mx.array, cache: Any, scale: float, mask: Any
) -> mx.array:
    """A replacement that knows nothing of caches, nor of learned sinks."""
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)


def prepared(model: Any) -> list[Any]:
    cache = make_prompt_cache(model, short("turbo4"))
    logits(model, cache, tiny.tokens(80), 79)
    for layer in cache:
        assert layer.packed_tokens and layer.is_routed
        layer.uses_placeholders = True  # as on a GPU
    return cache


@pytest.mark.parametrize("kind", ["wraps", "replaces"])
def test_a_library_that_comes_after_us_gets_real_keys(kind: str) -> None:
    model, more = tiny.llama(), tiny.tokens(20, seed=3)
    expected = logits(model, prepared(model), more)
    calls: list[int] = []
    cache = prepared(model)
    ours = llama_file.scaled_dot_product_attention
    llama_file.scaled_dot_product_attention = wrapper(ours if kind == "wraps" else plain, calls)
    assert not cache[0].is_routed
    assert mx.allclose(logits(model, cache, more), expected, atol=1e-4)
    assert calls
    # Nor after uninstalling, where it still calls ours.
    routing.uninstall()
    cache = [SchemeCache.from_state(layer.state) for layer in cache]
    assert mx.isfinite(logits(model, cache, more)).all()


def test_make_prompt_cache_installs_again_over_another_library() -> None:
    model = tiny.llama()
    prepared(model)
    calls: list[int] = []
    theirs = wrapper(llama_file.scaled_dot_product_attention, calls)
    llama_file.scaled_dot_product_attention = theirs
    cache = make_prompt_cache(model, short("turbo4"))
    assert cache[0].is_routed
    logits(model, cache, tiny.tokens(80), 79)
    assert calls, "what is not packed still goes through the other library"
    calls.clear()
    logits(model, cache, tiny.tokens(3))
    assert not calls
    routing.uninstall()
    assert llama_file.scaled_dot_product_attention is theirs


def test_is_routed_is_about_the_models_own_file() -> None:
    model = tiny.llama()
    cache = make_prompt_cache(model, "turbo4")
    llama_file.scaled_dot_product_attention = plain
    assert isinstance(base.scaled_dot_product_attention, routing.RoutedAttention)
    assert not any(layer.is_routed for layer in cache)
    assert all(layer.is_routed for layer in make_prompt_cache(model, "turbo4"))


def test_placeholders_that_were_not_attended_to_raise() -> None:
    model = tiny.llama()
    cache = prepared(model)
    original = type(llama_file.scaled_dot_product_attention).__call__
    with pytest.MonkeyPatch.context() as patch:
        # Another library that changed our function itself, which no look at the model's file can show.
        patch.setattr(
            routing.RoutedAttention, "__call__", lambda self, q, k, v, **rest: plain(q, k, v, **rest)
        )
        model(mx.array([[1]]), cache=cache)
        with pytest.raises(PlaceholderNotAttended, match="another library"):
            model(mx.array([[1]]), cache=cache)
    assert routing.RoutedAttention.__call__ is original


BASE_ONLY = """
import mlx.core as mx
from mlx_lm.models import base, llama
plain = base.scaled_dot_product_attention
def theirs(*args, **kwargs):
    return plain(*args, **kwargs)
base.scaled_dot_product_attention = theirs
from tests.kv import tiny
from tqchat.kv import make_prompt_cache
from tqchat.kv.attention import routing
cache = make_prompt_cache(tiny.llama(), "turbo4")
assert cache[0].is_routed and isinstance(llama.scaled_dot_product_attention, routing.RoutedAttention)
routing.uninstall()
assert llama.scaled_dot_product_attention is plain and base.scaled_dot_product_attention is theirs
"""


def test_a_library_that_replaced_only_the_base_before_us_does_not_leave_us_unrouted() -> None:
    result = subprocess.run([sys.executable, "-c", BASE_ONLY], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_packing_of_prompts_works_where_attention_is_not_routed() -> None:
    model = tiny.llama()
    llama_file.scaled_dot_product_attention = plain
    cache = [SchemeCache(short("turbo4")) for _ in model.layers]
    for layer in cache:
        layer.packs_prompts = True
    held = []
    for start in range(0, 240, 60):
        logits(model, cache, tiny.tokens(240)[:, start : start + 60], 60)
        held.append(cache[0].packed_tokens)
    assert held[0] == 0 and held == sorted(held) and held[-1] >= 120


def test_a_part_that_could_not_be_started_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    routed = routing.RoutedAttention(None)
    monkeypatch.setattr(routing, "DECODED_BYTES_PER_START", 1)
    monkeypatch.setattr(routing, "STARTED_BYTES", 1)

    def fails(*arrays: Any) -> None:
        raise RuntimeError("no memory left")

    def start() -> None:
        with mx.stream(mx.new_stream(mx.cpu)):
            routed._start(mx.random.normal((1, 1, 8, 8)) + 1, 1)

    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="no memory left"):
            patch.setattr(mx, "async_eval", fails)
            one.submit(start).result()
        for thread in (other, one, other):
            thread.submit(start).result()


def test_threads_count_what_they_start_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    routed = routing.RoutedAttention(None)
    monkeypatch.setattr(routing, "DECODED_BYTES_PER_START", 2)
    started: list[mx.array] = []
    monkeypatch.setattr(mx, "async_eval", lambda *arrays: started.extend(arrays))
    for _ in range(2):
        with ThreadPoolExecutor(1) as thread:
            thread.submit(routed._start, mx.zeros((1, 1, 1, 1)), 1).result()
    assert not started


@pytest.mark.parametrize(
    ("layer", "limit", "parts", "waits"),
    [
        (4, 20, [8, 8, 8, 8], 2),  # two layers fit a part, two parts are within the limit
        (4, 30, [8, 8, 8, 8], 1),
        (7, 20, [7] * 8, 6),  # two would exceed a part
        (40, 20, [40] * 8, 6),  # one exceeds all limits: two parts are started all the same
    ],
)
def test_parts_and_what_is_started_are_limited_in_bytes(
    monkeypatch: pytest.MonkeyPatch, layer: int, limit: int, parts: list[int], waits: int
) -> None:
    monkeypatch.setattr(routing, "DECODED_BYTES_PER_START", 10)
    monkeypatch.setattr(routing, "STARTED_BYTES", limit)
    routed = routing.RoutedAttention(None)
    started, waited = [], []
    monkeypatch.setattr(mx, "async_eval", lambda *arrays: started.append(routed._prefill.started_bytes))
    monkeypatch.setattr(mx, "eval", lambda *arrays: waited.append(1))
    for _ in range(8):
        routed._start(mx.zeros((1, 1, 1, 1)), layer)
    assert len(started) == len(parts) and len(waited) == waits
    assert routed._prefill.started_bytes == sum(parts[waits:])
    assert all(held <= max(limit, 2 * layer) - parts[0] for held in started)


def test_a_prefill_starts_layers_early_but_not_far_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    model, message = tiny.llama(), tiny.tokens(60)
    routing.install()
    # As on a GPU, where a history is decoded for many rows.
    monkeypatch.setattr("tqchat.kv.cache._attends_packed", lambda rows: rows <= MAX_DECODE_ROWS)
    expected = model(message, cache=prepared(model))
    mx.eval(expected)
    waited: list[mx.array] = []
    monkeypatch.setattr(routing, "DECODED_BYTES_PER_START", 1)  # every layer
    monkeypatch.setattr(routing, "STARTED_BYTES", 1)
    started = getattr(llama_file, NAME)._prefill.started
    real = mx.eval
    monkeypatch.setattr(mx, "eval", lambda *arrays: (waited.extend(arrays), real(*arrays)))
    cache = prepared(model)
    waited.clear()
    found = model(message, cache=cache)
    assert len(waited) >= len(cache) - 2 and len(started) == 2
    assert all(array.nbytes <= 4 for array in [*waited, *(array for array, _ in started)])
    assert mx.array_equal(found, expected)

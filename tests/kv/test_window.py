"""``WindowCache`` compared with mlx-lm's ring buffer."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import RotatingKVCache

from tests.kv import families, tiny
from tests.kv.test_cache import logits
from tests.kv.test_families import make_raw, short
from tqchat.kv import checkpoint, convert, make_prompt_cache, memory_report, needs_queries, observe_queries
from tqchat.kv.scheme import FP16, TILE, Scheme, parse_scheme
from tqchat.kv.window import WindowCache

HEADS, DIM = 2, 32
# Prompts shorter and longer than the window, chunks into a full window, single tokens, draft tokens.
FEEDS = [
    (5, 1, 1, 30, 1, 1, 60, 1),
    (1,) * 70,
    (100, 1, 1, 3, 1, 50, 2, 1),
    (31, 1, 1, 1),
    (32, 32, 1, 32, 1),
]


def stream(count: int, seed: int = 1) -> tuple[mx.array, mx.array]:
    keys, values = mx.random.normal((2, 1, HEADS, count, DIM), key=mx.random.key(seed))
    return keys, values


def ring(max_size: int, keep: int = 0) -> Any:
    make: Any = RotatingKVCache
    return make(max_size, keep)


def in_order(cache: Any) -> tuple[mx.array, ...]:
    return tuple(cache._temporal_order(x) for x in (cache.keys, cache.values))


@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize("max_size", [32, 17, 1])
def test_it_returns_the_ring_buffers_tokens_in_order(feed: tuple[int, ...], max_size: int) -> None:
    ours, theirs = WindowCache(max_size, FP16, mx.float32), ring(max_size)
    keys, values = stream(sum(feed))
    start = 0
    for count in feed:
        part = slice(start, start + count)
        got = ours.update_and_fetch(keys[:, :, part], values[:, :, part])
        theirs.update_and_fetch(keys[:, :, part], values[:, :, part])
        for mine, other in zip(got, in_order(theirs), strict=True):
            assert mx.array_equal(mine, other)
        start += count
        assert (ours.offset, ours.size()) == (theirs.offset, theirs.size())
        assert ours.is_trimmable() == theirs.is_trimmable()


@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize("window", [None, 32, 20, 7])
@pytest.mark.parametrize("scheme", [FP16, short("affine8"), short("turbo4")])
def test_masks_give_every_query_the_same_tokens_as_the_ring_buffer(
    feed: tuple[int, ...], window: int | None, scheme: Scheme
) -> None:
    ours, theirs = WindowCache(32, scheme), ring(32)
    keys, values = stream(sum(feed))
    start = 0
    for count in feed:
        part = slice(start, start + count)
        start += count
        queries = mx.random.normal((1, 2 * HEADS, count, DIM), key=mx.random.key(start))
        outputs = []
        for cache in (ours, theirs):
            for return_array in (False, True):
                mask = cache.make_mask(count, return_array=return_array, window_size=window)
                if not return_array:
                    plain = mask
            got = cache.update_and_fetch(keys[:, :, part], values[:, :, part])
            outputs.append(mx.fast.scaled_dot_product_attention(queries, *got, scale=0.2, mask=plain))
            if isinstance(mask, mx.array):
                array = mx.fast.scaled_dot_product_attention(queries, *got, scale=0.2, mask=mask)
                assert mx.allclose(outputs[-1], array, atol=1e-5)
            if cache is ours:
                packed = ours.attend(queries, 0.2, plain)
        assert mx.allclose(packed, outputs[0], atol=1e-4)
        limit = {"fp16": 1e-5, "affine8": 0.05, "turbo4": 0.8}[scheme.name]
        assert mx.abs(outputs[0] - outputs[1]).max().item() < limit


@pytest.mark.parametrize("name", ["affine8", "turbo0v4", "turbo4", "turbo2"])
def test_memory_stays_bounded_over_thousands_of_steps(name: str) -> None:
    window, scheme = 96, short(name)
    cache, raw = WindowCache(window, scheme), ring(window)
    keys, values = (x.astype(mx.float16) for x in stream(3000))
    most = 0
    for step in range(3000):
        part = slice(step, step + 1)
        got = cache.update_and_fetch(keys[:, :, part], values[:, :, part])
        raw.update_and_fetch(keys[:, :, part], values[:, :, part])
        if step % 100 == 99:
            mx.eval(cache.state[1], raw.state)
            most = max(most, cache.nbytes)
            for side in cache.sides:
                assert side.length == window
                if side.spec.kind != "raw":
                    assert scheme.tail <= side.recent.length < scheme.tail + TILE
            error = max(
                mx.abs(a - b).mean().item() for a, b in zip(got, in_order(raw), strict=True)
            )  # the same limit from first to last step
            assert error < {"affine8": 0.01, "turbo0v4": 0.1, "turbo4": 0.1, "turbo2": 0.4}[name]
    sides = ((cache.key_side, DIM), (cache.value_side, DIM))
    capacity = sum(
        HEADS * (window + 2 * TILE) * side.spec.bytes_per_vector(dim)
        + HEADS * (scheme.tail + 3 * TILE) * 2 * dim
        + HEADS * 8 * dim
        for side, dim in sides
    )
    assert most <= capacity
    if name in ("turbo4", "turbo2"):
        assert cache.nbytes < raw.nbytes


@pytest.mark.parametrize("name, worst", [("affine8", 0.03), ("turbo0v4", 0.2), ("turbo4", 0.3)])
@pytest.mark.parametrize("family", ["llama with windows", "gpt_oss", "recurrent_gemma"])
def test_logits_stay_close_to_raw_windows_long_after_they_are_full(
    family: str, name: str, worst: float
) -> None:
    model, tokens = families.model(family), tiny.tokens(400)
    raw = logits(model, make_raw(model), tokens, 200, 100)[:, 300:]
    cache = make_prompt_cache(model, short(name))
    packed = logits(model, cache, tokens, 200, 100)[:, 300:]
    # The median, because small differences can route a gpt-oss token to another expert.
    errors = mx.sqrt((raw - packed).square().mean(axis=-1) / raw.square().mean(axis=-1))[0]
    early, late = (mx.median(errors[part]).item() for part in (slice(0, 50), slice(50, 100)))
    assert 0 < early < worst and 0 < late < worst
    assert any(layer.kind == "sliding" and layer.compressed for layer in memory_report(cache).layers)


@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize("name", ["affine8", "turbo4"])
def test_a_ring_buffer_converts_there_and_back(feed: tuple[int, ...], name: str) -> None:
    theirs = ring(32)
    keys, values = stream(sum(feed))
    start = 0
    for count in feed:
        part = slice(start, start + count)
        theirs.update_and_fetch(keys[:, :, part], values[:, :, part])
        start += count
        before = copy.deepcopy(theirs.state)
        (ours,) = convert([theirs], short(name))
        (back,) = convert([ours], "fp16")
        assert type(ours) is type(back) is WindowCache
        assert mx.array_equal(before[0], theirs.keys) and before[2:] == theirs.state[2:]
        assert ours.offset == back.offset == theirs.offset
        for got, again, x in zip(
            ours.keys_and_values(), back.keys_and_values(), in_order(theirs), strict=True
        ):
            held = x[:, :, -32:]
            assert got.shape == again.shape == held.shape
            assert mx.array_equal(again, held)
            assert mx.array_equal(got[:, :, -16:], held[:, :, -16:])
            assert mx.abs(got - held).mean().item() < 0.12
        one = keys[:, :, :1]
        for got, x in zip(back.update_and_fetch(one, one), theirs_after(theirs, one), strict=True):
            assert got.shape == x.shape


def theirs_after(cache: Any, x: mx.array) -> tuple[mx.array, mx.array]:
    twin = ring(cache.max_size)
    twin.state = cache.state
    return twin.update_and_fetch(x, x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("before, after", [("turbo4", "affine8"), ("affine8", "turbo4"), ("fp16", "turbo4")])
def test_a_model_continues_after_a_conversion(before: str, after: str) -> None:
    model, tokens = families.model("llama with windows"), tiny.tokens(160)
    cache = make_prompt_cache(model, short(before))
    logits(model, cache, tokens[:, :150], 149)
    out = logits(model, convert(cache, short(after)), tokens[:, 150:])
    raw = logits(model, make_raw(model), tokens, 150)[:, 150:]
    assert mx.sqrt((out - raw).square().mean() / raw.square().mean()).item() < 0.4


def test_converting_a_ring_buffer_uses_query_statistics() -> None:
    model, tokens = families.model("llama with windows"), tiny.tokens(150)
    cache = make_prompt_cache(model, "fp16")
    logits(model, cache, tokens, 149)
    scheme = replace(parse_scheme("turbo4"), tail=16)
    assert needs_queries(cache, scheme) and not needs_queries(cache[:1], "turbo4")
    observe_queries(model, tokens[0].tolist(), cache)
    # A window of 48 packs nothing under turbo4, whose tail is 88, so it needs no queries.
    assert not needs_queries(cache, "turbo4")
    wide = families.COMMON | {"sliding_window": 128}
    model = tiny.build("llama", **wide)
    cache = make_prompt_cache(model, "fp16")
    logits(model, cache, tokens, 149)
    assert needs_queries(cache[:1], "turbo4")
    observe_queries(model, tokens[0].tolist(), cache)
    assert not needs_queries(cache, "turbo4")
    assert convert(cache, "turbo4")[0].key_side.format.balance.max().item() > 1.0


@pytest.mark.parametrize("feed", FEEDS)
def test_state_round_trips(feed: tuple[int, ...]) -> None:
    cache = WindowCache(32, short("turbo4"))
    keys, values = stream(sum(feed) + 40, seed=2)
    start = 0
    for count in feed:
        cache.update_and_fetch(keys[:, :, start : start + count], values[:, :, start : start + count])
        start += count
    twin = WindowCache.from_state(cache.state)
    assert twin.scheme == cache.scheme and twin.max_size == 32
    for end in range(start + 1, start + 40):
        part = slice(end - 1, end)
        pairs = [c.update_and_fetch(keys[:, :, part], values[:, :, part]) for c in (cache, twin)]
        assert all(mx.array_equal(a, b) for a, b in zip(*pairs, strict=True))


def test_trimming_before_the_window_is_full_matches_a_fresh_cache() -> None:
    cache, fresh = WindowCache(64, short("affine8")), WindowCache(64, short("affine8"))
    keys, values = stream(60)
    for one, count in ((cache, 60), (fresh, 50)):
        for step in range(count):
            part = slice(step, step + 1)
            one.update_and_fetch(keys[:, :, part], values[:, :, part])
    assert cache.is_trimmable() and cache.trim(10) == 10
    assert cache.offset == cache.size() == 50
    for a, b in zip(cache.keys_and_values(), fresh.keys_and_values(), strict=True):
        assert mx.abs(a - b).max().item() < 0.05


@pytest.mark.parametrize(
    "name, window, packs",
    [("turbo0v4", 112, False), ("turbo4", 128, True), ("turbo3", 64, False), ("turbo3", 96, True)],
)
def test_a_window_no_longer_than_the_tail_stays_mlx_lms_with_a_reason(
    name: str, window: int, packs: bool
) -> None:
    config = families.COMMON | {"sliding_window": window}
    model = tiny.build("llama", **config)
    cache = make_prompt_cache(model, name)
    logits(model, cache, tiny.tokens(300), 299)
    sliding, full = memory_report(cache).layers
    assert full.compressed
    assert type(cache[0]) is (WindowCache if packs else RotatingKVCache)
    assert sliding.compressed is packs
    assert (sliding.reason is None) is packs
    if not packs:
        least = "no longer than the 112 that stay raw" if name == "turbo0v4" else "fewer than the 80 that"
        assert str(sliding.reason).startswith(f"sliding window of {window} tokens: {least}")


def test_a_window_that_keeps_its_first_tokens_is_unchanged_with_a_reason() -> None:
    cache = [ring(32, keep=4)]
    keys, values = stream(40)
    cache[0].update_and_fetch(keys, values)
    (same,) = convert(cache, "turbo4")
    assert same is cache[0]
    (layer,) = memory_report([same], "turbo4").layers
    assert layer.reason is not None and "first 4 tokens" in layer.reason


def test_sixteen_bit_storage_reaches_windows_too() -> None:
    model, tokens = families.model("llama with windows"), tiny.tokens(100)
    cache = make_prompt_cache(model, "fp16", dtype=mx.float16)
    logits(model, cache, tokens, 99)
    report = memory_report(cache)
    assert report.bytes == report.fp16_bytes
    assert all(layer.reason is None for layer in report.layers)


def test_a_nan_token_has_no_effect_once_it_left_the_window() -> None:
    cache = WindowCache(48, short("turbo4"))
    keys, values = stream(200)
    keys[:, :, 20], values[:, :, 20] = mx.nan, mx.nan
    cache.update_and_fetch(keys[:, :, :40], values[:, :, :40])
    for step in range(40, 200):
        part = slice(step, step + 1)
        cache.update_and_fetch(keys[:, :, part], values[:, :, part])
    queries = mx.random.normal((1, 4, 1, DIM))
    assert mx.isfinite(cache.attend(queries, 0.2, None)).all()


def test_spare_capacity_is_proportional_to_the_window() -> None:
    cache = WindowCache(128, replace(parse_scheme("turbo0v4"), tail=16))
    keys, values = (x.astype(mx.float16) for x in stream(300))
    cache.update_and_fetch(keys[:, :, :299], values[:, :, :299])
    cache.update_and_fetch(keys[:, :, 299:], values[:, :, 299:])
    assert cache.key_side.recent.capacity < 128 + 2 * TILE
    assert cache.value_side.packed.capacity < 128 + TILE


@pytest.mark.parametrize("name", ["mlx-lm", "fp16", "affine8", "turbo4"])
@pytest.mark.parametrize("feed", [(100,), (20, 100), (100, 1), (20,)])
def test_a_checkpoint_holds_no_more_than_the_window(name: str, feed: tuple[int, ...]) -> None:
    cache: Any = ring(32) if name == "mlx-lm" else WindowCache(32, short(name), mx.float32)
    keys, values = stream(200)
    start = 0
    for count in feed:
        cache.update_and_fetch(keys[:, :, start : start + count], values[:, :, start : start + count])
        start += count
    taken = checkpoint.take([cache], start)
    (again,) = checkpoint.roll_back([cache], taken, 0)
    assert taken.bytes <= max(cache.nbytes, 2 * keys[:, :, :48].nbytes)
    for count in (1, 5, 40, 1):
        part = slice(start, start + count)
        ours, theirs = (one.update_and_fetch(keys[:, :, part], values[:, :, part]) for one in (again, cache))
        assert all(mx.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
        start += count

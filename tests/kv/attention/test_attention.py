"""Attention from packed storage compared with attention over decoded arrays."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import pytest

from tqchat.kv.attention import reference
from tqchat.kv.cache import MAX_DECODE_ROWS, SchemeCache
from tqchat.kv.scheme import parse_scheme

PACKING = ["affine8", "affine4", "turbo0v4", "turbo0v2", "turbo4", "turbo3v2"]
HEADS = 2


def filled(scheme: str, head_dim: int, count: int, dtype: mx.Dtype = mx.float32) -> SchemeCache:
    cache = SchemeCache(parse_scheme(scheme))
    grow(cache, head_dim, count, dtype)
    return cache


def grow(cache: SchemeCache, head_dim: int, count: int, dtype: mx.Dtype = mx.float32, seed: int = 5) -> None:
    """Append ``count - 1`` tokens and one decode step, which packs what is due."""
    keys, values = mx.random.normal((2, 1, HEADS, count, head_dim), key=mx.random.key(seed)).astype(dtype)
    for part in (slice(0, count - 1), slice(count - 1, count)):
        if part.stop > part.start:
            cache.update_and_fetch(keys[:, :, part], values[:, :, part])


def check(cache: SchemeCache, head_dim: int, groups: int, rows: int) -> None:
    queries = mx.random.normal((1, HEADS * groups, rows, head_dim), key=mx.random.key(9))
    keys, values = (side.fetch(mx.float32) for side in cache.sides)
    mask = "causal" if rows > 1 else None
    scale = head_dim**-0.5
    expected = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)
    got = cache.attend(queries, scale, mask)
    assert got.shape == expected.shape
    assert mx.abs(got - expected).max().item() < 2e-5


@pytest.mark.parametrize("scheme", PACKING)
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
def test_packed_attention_equals_attention_over_decoded_arrays(scheme: str, head_dim: int) -> None:
    cache = filled(scheme, head_dim, 300)
    assert cache.packed_tokens > 100
    for groups, rows in itertools.product((1, 2, 3, 4, 8), (1, 5)):
        check(cache, head_dim, groups, rows)


@pytest.mark.parametrize("scheme", PACKING)
def test_packed_attention_is_correct_after_trims_and_growth(scheme: str) -> None:
    cache = filled(scheme, 64, 400)
    for trim, more in ((3, 1), (160, 2), (0, 300), (200, 40), (1, 1)):
        assert cache.trim(trim) == trim
        grow(cache, 64, more, seed=trim)
        check(cache, 64, 2, 1)
        check(cache, 64, 3, 4)
    assert cache.offset == cache.key_side.length == cache.value_side.length == 400 - 364 + 344


@pytest.mark.parametrize("scheme", PACKING)
@pytest.mark.parametrize("rows", [1, 5, 90])
def test_blockwise_attention_equals_one_pass(scheme: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = filled(scheme, 64, 300)
    monkeypatch.setattr(reference, "BLOCK_BYTES", 1)
    check(cache, 64, 2, rows)
    queries = mx.random.normal((1, HEADS * 2, rows, 64), key=mx.random.key(2))
    allowed = mx.random.uniform(shape=(rows, 300), key=mx.random.key(1)) > 0.3
    sinks = mx.array([0.5, -1.0, 2.0, 0.0])
    in_blocks = [cache.attend(queries, 0.1, mask, sinks) for mask in (allowed, mx.where(allowed, 0.0, -1e9))]
    monkeypatch.undo()
    assert all(mx.allclose(got, cache.attend(queries, 0.1, allowed, sinks), atol=1e-5) for got in in_blocks)


@pytest.mark.parametrize("scheme", ["turbo4", "affine4", "trellis3"])
def test_a_chunk_on_a_cpu_takes_no_slow_operation_per_token(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLX's exponential and quantised products on a CPU make a chunk over a history slower than over FP16."""
    if mx.default_device() != mx.cpu:
        pytest.skip("they are fast on a GPU")
    cache = filled(scheme, 64, 600)
    monkeypatch.setattr(reference, "BLOCK_BYTES", 1 << 16)
    values = 0
    exp = mx.exp

    def counted(x: mx.array) -> mx.array:
        nonlocal values
        values += x.size
        return exp(x)

    monkeypatch.setattr(mx, "exp", counted)
    monkeypatch.delattr(mx, "quantized_matmul")
    check(cache, 64, 2, 64)
    assert values <= HEADS * 2 * 64 * 600 / reference.MIN_BLOCK_TOKENS * 1.1


@pytest.mark.parametrize("rows", [1, 90])
def test_a_vector_that_is_not_finite_reaches_only_the_rows_that_see_it(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "BLOCK_BYTES", 1)
    cache = filled("turbo4", 64, 300)
    keys, values = mx.random.normal((2, 1, HEADS, 1, 64), key=mx.random.key(3))
    cache.update_and_fetch(mx.full(keys.shape, mx.nan), values)
    queries = mx.random.normal((1, HEADS, rows, 64), key=mx.random.key(9))
    finite = mx.isfinite(cache.attend(queries, 0.1, "causal")).all(axis=(1, 3))
    assert finite.tolist() == [[True] * (rows - 1) + [False]]


@pytest.mark.parametrize("scheme", [*PACKING, "turbo3"])
def test_cached_intermediates_follow_every_change_of_the_cache(scheme: str) -> None:
    cache = filled(scheme, 64, 100)
    seeds = itertools.count()
    for _ in range(100):  # sinks and packed tokens are added between steps
        grow(cache, 64, 1, seed=next(seeds))
        check(cache, 64, 2, 1)
    assert cache.packed_tokens
    for trim in (1, 148, 190, 200):  # replace as many tokens: from the packed ones, the sinks, all
        cache.trim(trim)
        for _ in range(trim):
            grow(cache, 64, 1, seed=next(seeds))
        check(cache, 64, 2, 1)


@pytest.mark.parametrize("scheme", [*PACKING, "turbo3"])
def test_cached_intermediates_release_dropped_tokens(scheme: str) -> None:
    cache = filled(scheme, 64, 8000, mx.float16)
    check(cache, 64, 2, 1)
    for side in cache.sides:
        side.fetch(mx.float32, keep_graph=True)
        side.drop_front(2)
        assert side.fetch(mx.float32, keep_graph=True).shape[2] == side.length == 7998
    mx.eval(cache.state)
    before = mx.get_active_memory()
    held = cache.nbytes
    cache.offset = 7998
    cache.trim(7990)
    assert before - mx.get_active_memory() > 0.9 * (held - cache.nbytes)


def test_a_kernel_decodes_only_what_is_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    side, launched = filled("turbo4", 64, 300).key_side, list[int]()

    def decode(*arguments: object) -> mx.array:
        launched.append(1)
        return mx.zeros((1, HEADS, 300, 64))

    monkeypatch.setattr("tqchat.kv.storage.side.decode", decode)
    for _ in range(3):
        assert side.fetch(mx.float32, keep_graph=True).any()
    assert not launched
    assert not side.fetch(mx.float32).any() and launched == [1]


@pytest.mark.parametrize("scheme", ["affine8", "turbo4"])
def test_another_thread_can_continue_after_unevaluated_steps(scheme: str) -> None:
    cache = filled(scheme, 64, 300)
    queries = mx.random.normal((1, 4, 1, 64), key=mx.random.key(2))
    mx.eval(cache.state, queries)

    def in_a_thread(work: Callable[[], object]) -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(work).result(60)

    # In prefill mlx-lm does not evaluate the output of the last layer.
    in_a_thread(lambda: (cache.attend(queries * 1.0, 0.1, None), mx.eval(cache.state)))
    for _ in range(2):
        in_a_thread(lambda: mx.eval(cache.attend(queries, 0.1, None)))


@pytest.mark.parametrize("rows", [1, 3])
def test_peak_memory_is_that_of_single_blocks(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = filled("turbo4", 64, 20_000, mx.float16)
    mx.eval(cache.state)
    decoded = 4 * 64 * HEADS * 20_000
    monkeypatch.setattr(reference, "BLOCK_BYTES", decoded // 40)
    queries = mx.random.normal((1, 4, rows, 64), key=mx.random.key(2))
    for _ in range(3):
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(cache.attend(queries, 0.1, "causal"))
        assert mx.get_peak_memory() - before < decoded // 6


def test_learned_attention_sinks_are_part_of_the_softmax() -> None:
    cache = filled("turbo4", 64, 300)
    queries = mx.random.normal((1, 4, 1, 64), key=mx.random.key(2))
    sinks = mx.array([0.5, -1.0, 2.0, 0.0])
    keys, values = (mx.repeat(side.fetch(mx.float32), 2, axis=1) for side in cache.sides)
    scores = (queries * 0.125) @ keys.swapaxes(-1, -2)
    weights = mx.softmax(mx.concatenate([sinks.reshape(1, 4, 1, 1), scores], axis=-1), axis=-1)[..., 1:]
    assert mx.allclose(cache.attend(queries, 0.125, None, sinks), weights @ values, atol=1e-5)


@pytest.mark.parametrize("kind", ["boolean", "additive"])
def test_array_masks_are_applied(kind: str) -> None:
    cache = filled("turbo0v4", 64, 300)
    allowed = mx.random.uniform(shape=(3, 300), key=mx.random.key(1)) > 0.3
    mask = allowed if kind == "boolean" else mx.where(allowed, 0.0, -1e9)
    queries = mx.random.normal((1, 4, 3, 64), key=mx.random.key(2))
    keys, values = (side.fetch(mx.float32) for side in cache.sides)
    expected = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=0.125, mask=mask)
    assert mx.allclose(cache.attend(queries, 0.125, mask), expected, atol=1e-5)


def test_large_scores_do_not_overflow_float16() -> None:
    # Key biases of some models give products beyond the range of float16.
    cache = SchemeCache(parse_scheme("turbo0v4"))
    keys = mx.full((1, 1, 300, 64), 200.0, dtype=mx.float16)
    values = mx.random.normal((1, 1, 300, 64)).astype(mx.float16)
    for part in (slice(0, 299), slice(299, 300)):
        cache.update_and_fetch(keys[:, :, part], values[:, :, part])
    out = cache.attend(mx.full((1, 1, 1, 64), 200.0, dtype=mx.float16), 0.125, None)
    assert out.dtype == mx.float16
    assert not mx.isnan(out).any() and not mx.isinf(out).any()


@pytest.mark.parametrize("rows", [1, MAX_DECODE_ROWS, MAX_DECODE_ROWS + 1])
def test_many_rows_attend_from_packed_storage_on_a_cpu_only(rows: int) -> None:
    cache = filled("turbo4", 64, 300)
    fetched = cache.update_and_fetch(*mx.random.normal((2, 1, HEADS, rows, 64)))
    attends = rows <= MAX_DECODE_ROWS or mx.default_device() == mx.cpu
    assert cache.can_attend(mx.zeros((1, 4, rows, 64)), *fetched) is attends


def test_keys_changed_by_the_model_are_not_attended_from_packed_storage() -> None:
    cache = filled("turbo4", 64, 300)
    keys, values = cache.update_and_fetch(*mx.random.normal((2, 1, HEADS, 1, 64)))
    assert not cache.can_attend(mx.zeros((1, 4, 1, 64)), keys * 2, values)

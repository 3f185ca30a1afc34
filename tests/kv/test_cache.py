"""``SchemeCache`` in mlx-lm models."""

from __future__ import annotations

import copy
import itertools

import mlx.core as mx
import pytest
from mlx_lm.models import base
from mlx_lm.models import cache as mlx_cache
from mlx_lm.models import llama as llama_file

from tests.kv import families, tiny
from tqchat.kv import make_prompt_cache, memory_report
from tqchat.kv.attention import routing
from tqchat.kv.cache import SchemeCache
from tqchat.kv.codec.turbo import TurboFormat
from tqchat.kv.kernels.device import Kernels
from tqchat.kv.prompt_cache import flat_layers
from tqchat.kv.scheme import TILE, parse_scheme
from tqchat.kv.storage.placeholders import PlaceholderNotAttended
from tqchat.kv.storage.side import Side

COMPRESSING = tiny.REPRESENTATIVE[1:]


def logits(model: object, cache: list[object], tokens: mx.array, *splits: int) -> mx.array:
    """Logits of every token, fed in the given chunk sizes and then one by one."""
    out, start = [], 0
    for size in [*splits, *[1] * (tokens.shape[1] - sum(splits))]:
        out.append(model(tokens[:, start : start + size], cache=cache))  # type: ignore[operator]
        mx.eval(out[-1], [c.state for c in cache])  # type: ignore[attr-defined]
        start += size
    return mx.concatenate(out, axis=1)


def release_working_arrays(cache: list[object]) -> None:
    """Release what a cache computes again at its next step, as it is not saved."""
    for layer in flat_layers(cache):
        if isinstance(layer, SchemeCache):
            layer.release_working_arrays()


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_fp16_gives_bit_equal_logits_to_mlx_lms_own_cache(dtype: mx.Dtype) -> None:
    model, tokens = tiny.llama(dtype), tiny.tokens(330)
    ours = logits(model, make_prompt_cache(model, "fp16"), tokens, 200, 57, 3)
    theirs = logits(model, mlx_cache.make_prompt_cache(model), tokens, 200, 57, 3)
    assert mx.array_equal(ours, theirs)


def test_fp16_is_bit_equal_after_a_trim() -> None:
    model, tokens = tiny.llama(), tiny.tokens(300)
    results = []
    for cache in (make_prompt_cache(model, "fp16"), mlx_cache.make_prompt_cache(model)):
        logits(model, cache, tokens, 280)
        assert mlx_cache.trim_prompt_cache(cache, 90) == 90
        results.append(logits(model, cache, tokens[:, :50], 40))
    assert mx.array_equal(*results)


@pytest.mark.parametrize("scheme", COMPRESSING)
def test_a_prompt_stays_raw_until_decoding_begins(scheme: str) -> None:
    model, tokens = tiny.llama(), tiny.tokens(400)
    cache = make_prompt_cache(model, scheme)
    prompt = logits(model, cache, tokens[:, :399], 250, 149)
    assert mx.array_equal(
        prompt, logits(model, mlx_cache.make_prompt_cache(model), tokens[:, :399], 250, 149)
    )
    assert memory_report(cache).packed_tokens == 0
    logits(model, cache, tokens[:, 399:])
    report = memory_report(cache)
    assert report.sink_tokens == 4
    tail = parse_scheme(scheme).tail
    assert tail <= report.tail_tokens < tail + TILE
    assert report.packed_tokens == 400 - 4 - report.tail_tokens
    assert report.layers_compressed == report.layers_total == 2


@pytest.mark.parametrize("scheme", COMPRESSING)
def test_packing_goes_on_tile_by_tile_while_decoding(scheme: str) -> None:
    model, tokens = tiny.llama(), tiny.tokens(330)
    cache = make_prompt_cache(model, scheme)
    logits(model, cache, tokens[:, :200], 199)
    packed = []
    for step in range(200, 330):
        logits(model, cache, tokens[:, step : step + 1])
        report = memory_report(cache)
        packed.append(report.packed_tokens)
        assert report.sink_tokens + report.packed_tokens + report.tail_tokens == step + 1
        assert report.tail_tokens >= parse_scheme(scheme).tail
    assert packed[-1] - packed[0] == 128
    assert {b - a for a, b in itertools.pairwise(packed)} == {0, TILE}


@pytest.mark.parametrize("scheme, worst", [("affine8", 0.02), ("turbo0v4", 0.1), ("affine4", 0.3)])
def test_compressed_logits_stay_close_to_raw_ones(scheme: str, worst: float) -> None:
    model, tokens = tiny.llama(), tiny.tokens(420)
    raw = logits(model, mlx_cache.make_prompt_cache(model), tokens, 380)[:, 380:]
    packed = logits(model, make_prompt_cache(model, scheme), tokens, 380)[:, 380:]
    assert 0 < mx.sqrt((raw - packed).square().mean() / raw.square().mean()).item() < worst


@pytest.mark.parametrize("scheme", tiny.REPRESENTATIVE)
def test_several_tokens_at_once_equal_single_steps(scheme: str) -> None:
    # As in speculative decoding.
    model, tokens = tiny.llama(), tiny.tokens(400)
    cache = make_prompt_cache(model, scheme)
    logits(model, cache, tokens[:, :390], 389)
    twin = copy.deepcopy(cache)
    at_once = logits(model, cache, tokens[:, 390:395], 5)
    one_by_one = logits(model, twin, tokens[:, 390:395])
    if memory_report(cache).packed_tokens == memory_report(twin).packed_tokens:
        assert mx.allclose(at_once, one_by_one, atol=2e-4)
    assert cache[0].offset == twin[0].offset == 395


@pytest.mark.parametrize("scheme", tiny.REPRESENTATIVE)
def test_trim_then_append_matches_a_cache_that_never_held_more(scheme: str) -> None:
    model, tokens = tiny.llama(), tiny.tokens(420)
    cache, fresh = make_prompt_cache(model, scheme), make_prompt_cache(model, scheme)
    logits(model, cache, tokens[:, :400], 380)
    logits(model, fresh, tokens[:, :396], 380)
    assert mlx_cache.trim_prompt_cache(cache, 4) == 4
    again = logits(model, cache, tokens[:, 396:])
    assert mx.allclose(again, logits(model, fresh, tokens[:, 396:]), atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 128, 150, 297, 300, 1000])
def test_trim_reaches_tail_packed_and_sinks(count: int) -> None:
    model, tokens = tiny.llama(), tiny.tokens(300)
    cache = make_prompt_cache(model, "turbo0v4")
    logits(model, cache, tokens, 299)
    assert all(layer.trim(count) == min(count, 300) for layer in cache)
    left = max(0, 300 - count)
    assert [layer.offset for layer in cache] == [left, left]
    assert memory_report(cache).tokens == left
    logits(model, cache, tokens[:, :200], 150)
    assert cache[0].offset == left + 200
    assert {side.length for layer in cache for side in layer.sides} == {left + 200}


@pytest.mark.parametrize("scheme", tiny.REPRESENTATIVE)
def test_state_round_trips(scheme: str) -> None:
    model, tokens = tiny.llama(), tiny.tokens(330)
    cache = make_prompt_cache(model, scheme)
    logits(model, cache, tokens[:, :300], 280)
    twin = [SchemeCache.from_state(layer.state) for layer in cache]
    assert mx.array_equal(logits(model, cache, tokens[:, 300:]), logits(model, twin, tokens[:, 300:]))


def test_storage_in_sixteen_bits_halves_a_float32_models_cache() -> None:
    model, tokens = tiny.llama(), tiny.tokens(256)
    cache = make_prompt_cache(model, "fp16", dtype=mx.float16)
    out = logits(model, cache, tokens, 255)
    report = memory_report(cache)
    assert out.dtype == mx.float32
    assert report.bytes == report.fp16_bytes


def test_an_empty_cache_has_no_bytes_and_round_trips() -> None:
    cache = SchemeCache(parse_scheme("turbo4"))
    assert cache.empty() and cache.size() == 0 and cache.nbytes == 0 and cache.trim(5) == 0
    twin = SchemeCache.from_state(cache.state)
    assert twin.empty() and twin.scheme == cache.scheme


def test_packing_frees_the_raw_prompt() -> None:
    mx.clear_cache()
    before = mx.get_active_memory()
    cache = SchemeCache(parse_scheme("turbo4"))
    keys, values = mx.random.normal((2, 1, 4, 8192, 128)).astype(mx.float16)
    for part in (slice(0, 8191), slice(8191, 8192)):
        cache.update_and_fetch(keys[:, :, part], values[:, :, part])
        mx.eval(cache.state)
    cache.can_attend(keys[:, :, :1], keys, values)
    raw = keys.nbytes + values.nbytes
    del keys, values
    mx.clear_cache()
    assert mx.get_active_memory() - before < raw / 3


def test_routing_is_installed_and_uninstalled() -> None:
    make_prompt_cache(tiny.llama(), "fp16")
    assert llama_file.scaled_dot_product_attention is routing.routed_attention
    assert base.scaled_dot_product_attention is routing.routed_attention
    routing.uninstall()
    assert llama_file.scaled_dot_product_attention is base.scaled_dot_product_attention
    assert base.scaled_dot_product_attention is not routing.routed_attention
    routing.install()


def test_without_routing_a_packed_cache_gives_the_same_logits() -> None:
    model, tokens = tiny.llama(), tiny.tokens(330)
    cache = make_prompt_cache(model, "turbo0v2")
    logits(model, cache, tokens[:, :300], 299)
    twin = copy.deepcopy(cache)
    twin[0].uses_placeholders = True  # as on a GPU
    routed = logits(model, cache, tokens[:, 300:])
    routing.uninstall()
    try:
        plain = logits(model, twin, tokens[:, 300:])
    finally:
        routing.install()
    assert mx.allclose(routed, plain, atol=1e-4)


def test_the_decoding_graph_is_reused_until_tokens_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = tiny.llama(), tiny.tokens(420)
    cache = make_prompt_cache(model, "turbo4")
    logits(model, cache, tokens[:, :300], 299)
    decoded_blocks: list[int] = []
    decode = TurboFormat.decode
    monkeypatch.setattr(
        TurboFormat, "decode", lambda self, block: decoded_blocks.append(1) or decode(self, block)
    )
    counts, packed = [], []
    for at in range(300, 400):
        before = len(decoded_blocks)
        logits(model, cache, tokens[:, at : at + 1])
        counts.append(len(decoded_blocks) - before)
        packed.append(cache[0].packed_tokens)
    changes = sum(a != b for a, b in itertools.pairwise(packed))
    assert changes and sum(map(bool, counts)) <= 2 * changes + 2, counts
    # A caller that evaluates the arrays gets all tokens, and no decoded copy is kept.
    keys, _ = cache[0].decoded()
    assert keys.shape[2] == cache[0].offset
    assert all(side._decoded is None for side in cache[0].sides)


def test_arrays_evaluated_by_other_layers_are_not_kept() -> None:
    # The last layers of Gemma 4 evaluate arrays fetched by earlier layers.
    model = families.model("gemma4_text")
    tokens = tiny.tokens(340) % 97
    cache = make_prompt_cache(model, "turbo4")
    logits(model, cache, tokens[:, :300], 300)
    for at in range(300, 340):
        logits(model, cache, tokens[:, at : at + 1])
    packing = [layer for layer in cache if isinstance(layer, SchemeCache) and layer.packed_tokens]
    assert packing
    assert all(side._decoded is None for layer in packing for side in layer.sides)


def test_the_first_decode_step_attends_to_the_raw_prompt() -> None:
    model, tokens = tiny.llama(), tiny.tokens(301)
    raw, packed = (make_prompt_cache(model, name) for name in ("fp16", "turbo2"))
    first = [logits(model, cache, tokens[:, :300], 299)[:, -1] for cache in (raw, packed)]
    assert mx.array_equal(*first)
    assert packed[0].packed_tokens > 200
    second = [logits(model, cache, tokens[:, 300:]) for cache in (raw, packed)]
    assert not mx.allclose(*second, atol=1e-3)


def test_sides_before_packing_are_released_with_the_fetched_arrays() -> None:
    cache = SchemeCache(parse_scheme("turbo4"))
    keys, values = mx.random.normal((2, 1, 2, 300, 64))
    cache.update_and_fetch(keys[:, :, :299], values[:, :, :299])
    fetched = cache.update_and_fetch(keys[:, :, 299:], values[:, :, 299:])
    queries = mx.random.normal((1, 2, 1, 64))
    expected = mx.fast.scaled_dot_product_attention(queries, *fetched, scale=0.1)
    assert mx.allclose(cache.attend(queries, 0.1, None), expected, atol=1e-5)
    assert not cache.can_attend(queries, *fetched), "nothing in it was packed"
    del fetched
    rounded = [side.fetch(mx.float32) for side in cache.sides]
    expected = mx.fast.scaled_dot_product_attention(queries, *rounded, scale=0.1)
    assert mx.allclose(cache.attend(queries, 0.1, None), expected, atol=1e-5)


def test_freeing_arrays_of_an_older_fetch_releases_nothing() -> None:
    cache = SchemeCache(parse_scheme("turbo4"))
    keys, values = mx.random.normal((2, 1, 2, 300, 64))
    long_ago = cache.update_and_fetch(keys[:, :, :299], values[:, :, :299])
    cache.pack_due()
    cache.uses_placeholders = True
    cache._packing_deferred = True
    is_routed, SchemeCache.is_routed = SchemeCache.is_routed, True
    try:
        new = mx.random.normal((2, 1, 2, 100, 64))
        cache.key_side.append(new[0])
        cache.value_side.append(new[1])
        cache.update_and_fetch(keys[:, :, 299:], values[:, :, 299:])
        assert cache._sides_before_packing is not None
        del long_ago
        assert cache._sides_before_packing is not None
    finally:
        SchemeCache.is_routed = is_routed


@pytest.mark.parametrize(
    "name, worst", [("affine8", 0.02), ("turbo0v4", 0.1), ("turbo4", 0.15), ("turbo3v2", 0.4)]
)
def test_a_prompt_is_packed_chunk_by_chunk_on_request(name: str, worst: float) -> None:
    model, tokens = tiny.llama(), tiny.tokens(600)
    cache = make_prompt_cache(model, name)
    for layer in cache:
        layer.packs_prompts = True
    plain = make_prompt_cache(model, "fp16")
    held = []
    for start in range(0, 600, 200):
        chunk = tokens[:, start : start + 200]
        output, expected = model(chunk, cache=cache), model(chunk, cache=plain)
        held.append(cache[0].packed_tokens)
        recent = cache[0].value_side.recent.length
        # More of the prompt may follow, so none is packed that would be packed again.
        assert not cache[0].value_side.fine.length
        assert recent < cache[0].scheme.tail + cache[0].scheme.fine + 16
        error = mx.abs(output - expected).mean() / mx.abs(expected).mean()
        assert error.item() < worst
    assert held == sorted(held) and held[0] > 0
    assert ("balance" in cache[0].key_side.format.fitted) is (name not in ("turbo0v4", "turbo0v2"))
    assert cache[0].offset == 600


def test_a_gpu_packs_several_tiles_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch costs more than encoding a tile; short conversations still pack single tiles."""
    monkeypatch.setattr("tqchat.kv.storage.side.kernels", lambda: Kernels("metal"))
    cache = SchemeCache(parse_scheme("turbo4"))
    x = mx.random.normal((1, 1, 500, 64)).astype(mx.float16)
    packed = []
    for i in range(500):
        due = cache.key_side.tokens_until_due
        cache.update_and_fetch(x[:, :, i : i + 1], x[:, :, i : i + 1])
        packed.append(cache.packed_tokens)
        assert (packed[-1] > (packed[-2] if i else 0)) == (due == 1)
    steps = [(before, after - before) for before, after in itertools.pairwise(packed) if after > before]
    assert [count for _, count in steps] == [2 * TILE if before >= 256 else TILE for before, _ in steps]
    assert steps[-2][0] >= 256
    assert cache.size() == 500


@pytest.mark.parametrize(
    ("encoded", "together"), [(240, 16), (256, 32), (8_000, 32), (8_192, 64), (20_000, 128), (40_000, 256)]
)
def test_a_gpu_packs_more_at_once_the_more_tokens_are_packed(
    monkeypatch: pytest.MonkeyPatch, encoded: int, together: int
) -> None:
    """So the raw tokens beyond the tail are always a small share, and packing of little time."""
    monkeypatch.setattr("tqchat.kv.storage.side.kernels", lambda: Kernels("metal"))
    side = Side(parse_scheme("turbo0v2"), "value")
    side.append(mx.zeros((1, 1, 4 + side.scheme.tail + encoded, 32), mx.float16))
    side.pack_due()
    assert (side.encoded, side.tokens_until_due) == (encoded, together)


def test_with_placeholders_packing_waits_for_the_attention(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(SchemeCache, "is_routed", True)
    mx.random.seed(6)
    x = mx.random.normal((1, 1, 200, 64)).astype(mx.float16)
    queries = mx.random.normal((1, 2, 1, 64)).astype(mx.float16)
    caches = [SchemeCache(parse_scheme("turbo4")) for _ in range(2)]
    caches[1].uses_placeholders = True
    for i in range(200):
        outputs = []
        for cache in caches:
            before = cache.packed_tokens
            keys, values = cache.update_and_fetch(x[:, :, i : i + 1], x[:, :, i : i + 1])
            if cache.uses_placeholders and before:
                assert cache.packed_tokens == before
            outputs.append(routing.routed_attention(queries, keys, values, cache, 0.1, None))
        assert mx.array_equal(*outputs)
        assert caches[0].packed_tokens == caches[1].packed_tokens
    assert caches[1].packed_tokens > 2 * TILE

    # Placeholders that were not attended to cannot have given a valid output.
    caches[1].update_and_fetch(x[:, :, :1], x[:, :, :1])
    with pytest.raises(PlaceholderNotAttended, match="make_prompt_cache"):
        caches[1].update_and_fetch(x[:, :, :1], x[:, :, :1])
    caches[1].trim(1)
    caches[1].update_and_fetch(x[:, :, :1], x[:, :, :1])

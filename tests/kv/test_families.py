"""Caches of tiny random models of all mlx-lm architectures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models import cache as mlx_cache

from tests.kv import families, tiny
from tests.kv.test_cache import logits
from tqchat.kv import convert, load, make_prompt_cache, memory_report, predict_bytes, save
from tqchat.kv.prompt_cache import flat_layers
from tqchat.kv.scheme import Scheme, parse_scheme

PROMPT, STEPS = (45, 40), 4
COUNT = sum(PROMPT) + STEPS

# Bounds the order of magnitude; errors of random models are not those of trained ones. Gemma 4 does not scale
# its scores, which makes key errors larger.
MAX_ERROR = {"affine8": 0.05, "turbo0v4": 0.25, "turbo4": 0.5, "turbo3": 0.8}


def short(name: str) -> Scheme:
    """A scheme with a tail of 16 and hardly a fine part, so that few tokens suffice for packing."""
    scheme = parse_scheme(name)
    return replace(scheme, tail=16, fine=min(scheme.fine, 16))


def run(model: Any, cache: list[Any]) -> mx.array:
    return logits(model, cache, tiny.tokens(COUNT), *PROMPT)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_fp16_logits_are_bit_equal_to_mlx_lms(family: str) -> None:
    model = families.model(family)
    ours, theirs = make_prompt_cache(model, "fp16"), mlx_cache.make_prompt_cache(model)
    assert mx.array_equal(run(model, ours), run(model, theirs))
    assert mlx_cache.can_trim_prompt_cache(ours) == mlx_cache.can_trim_prompt_cache(theirs)


@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize("name", MAX_ERROR)
def test_compressed_logits_stay_close_and_survive_saving(family: str, name: str, tmp_path: Path) -> None:
    model = families.model(family)
    cache, raw = make_prompt_cache(model, short(name)), mlx_cache.make_prompt_cache(model)
    out, expected = run(model, cache), run(model, raw)
    assert mx.isfinite(out).all()
    assert mx.array_equal(out[:, : sum(PROMPT)], expected[:, : sum(PROMPT)]) or family in families.SLIDING
    error = mx.sqrt((out - expected).square().mean() / expected.square().mean()).item()
    assert error < MAX_ERROR[name] * (3 if family == "gemma4_text" else 1)
    # The windows here are shorter than what formats of schemes with a fine part are fitted to.
    unpacked = families.LATENT_ONLY | (families.WINDOWS_ONLY if short(name).fine else {})
    assert (error > 0) is (family not in unpacked)

    save(tmp_path / "cache.safetensors", cache)
    restored, _ = load(tmp_path / "cache.safetensors")
    assert reports(restored) == reports(cache)
    more = tiny.tokens(3, seed=5)
    assert mx.array_equal(logits(model, restored, more, 2), logits(model, cache, more, 2))

    trimmable = mlx_cache.can_trim_prompt_cache(cache)
    assert trimmable == mlx_cache.can_trim_prompt_cache(raw)
    if trimmable:
        assert mlx_cache.trim_prompt_cache(cache, 3) == 3
        again = logits(model, cache, more, 2)
        assert mx.allclose(again, logits(model, trimmed(restored), more, 2), atol=1e-5)


def reports(cache: list[Any]) -> list[Any]:
    """Layer reports without spare capacity."""
    return [replace(layer, allocated_bytes=0) for layer in tiny.report_at_rest(cache).layers]


def trimmed(cache: list[Any]) -> list[Any]:
    mlx_cache.trim_prompt_cache(cache, 3)
    return cache


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_report_covers_every_layer_with_reasons(family: str) -> None:
    model = families.model(family)
    cache = make_prompt_cache(model, short("turbo4"))
    run(model, cache)
    report = memory_report(cache, short("turbo4"))
    kinds = {"RotatingKVCache": "sliding", "ChunkedKVCache": "sliding", "ArraysCache": "recurrent"}
    theirs = [type(layer).__name__ for layer in flat_layers(mlx_cache.make_prompt_cache(model))]
    assert len(report.layers) == len(theirs)
    for layer, name in zip(report.layers, theirs, strict=True):
        assert layer.kind == kinds.get(name, "full" if layer.reason is None else "other")
        assert layer.bytes > 0
        assert layer.compressed is (layer.reason is None)
        assert layer.compressed is (layer.kind in ("full", "sliding") and name != "ChunkedKVCache")
        assert layer.tokens == (families.WINDOW if name == "RotatingKVCache" else layer.tokens)
    kinds_packed = {layer.kind for layer in report.layers if layer.compressed}
    assert ("full" in kinds_packed) is (family not in families.WINDOWS_ONLY | families.LATENT_ONLY)
    assert ("sliding" in kinds_packed) is (family in families.SLIDING | families.WINDOWS_ONLY)
    assert report.allocated_bytes >= report.bytes


@pytest.mark.parametrize("family", families.FAMILIES)
def test_predicted_bytes_match_conversions(family: str) -> None:
    model = families.model(family)
    cache = make_prompt_cache(model, "fp16", dtype=mx.float16)
    run(model, cache)
    before = tiny.report_at_rest(cache)
    converted = convert(cache, short("turbo4"))
    assert predict_bytes(before, short("turbo4")) == memory_report(converted).bytes
    assert mx.isfinite(logits(model, converted, tiny.tokens(3, seed=5), 2)).all()


@pytest.mark.parametrize("family", ["llama with windows", "gpt_oss", "gemma3n", "qwen3_next", "minicpm3"])
@pytest.mark.parametrize("name", ["affine8", "turbo4"])
def test_a_batch_of_two_matches_single_conversations(family: str, name: str, tmp_path: Path) -> None:
    model = families.model(family)
    pair = mx.concatenate([tiny.tokens(COUNT, seed=seed) for seed in (2, 3)])
    cache = make_prompt_cache(model, short(name))
    both = logits(model, cache, pair, *PROMPT)
    for row in range(2):
        alone = logits(model, make_prompt_cache(model, short(name)), pair[row : row + 1], *PROMPT)
        assert mx.allclose(both[row : row + 1], alone, atol=2e-3)
    save(tmp_path / "cache.safetensors", cache)
    restored, _ = load(tmp_path / "cache.safetensors")
    more = mx.concatenate([tiny.tokens(3, seed=seed) for seed in (5, 6)])
    assert reports(restored) == reports(cache)
    assert mx.array_equal(logits(model, restored, more, 2), logits(model, cache, more, 2))


@pytest.mark.parametrize("family", ["gpt_oss", "mimo_v2_flash"])
def test_learned_attention_sinks_are_part_of_packed_attention(family: str) -> None:
    model = families.model(family)
    before = run(model, make_prompt_cache(model, short("affine8")))
    attention = model.layers[0].self_attn
    name = "sinks" if hasattr(attention, "sinks") else "attention_sink_bias"
    kept = getattr(attention, name)
    try:
        setattr(attention, name, kept + 3.0)
        after, raw = (run(model, c) for c in (make_prompt_cache(model, short("affine8")), make_raw(model)))
    finally:
        setattr(attention, name, kept)
    last = slice(-STEPS, None)
    assert mx.abs(after[:, last] - before[:, last]).max().item() > 10 * mx.abs((after - raw)[:, last]).max()


def make_raw(model: Any) -> list[Any]:
    return mlx_cache.make_prompt_cache(model)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["fp16", "affine8", "turbo0v4", "turbo4"])
@pytest.mark.parametrize("family", ["llama with windows", "gpt_oss", "jamba", "deepseek_v3"])
def test_a_prompt_of_one_token_works(family: str, name: str) -> None:
    model = families.model(family)
    tokens = tiny.tokens(60)
    cache = make_prompt_cache(model, short(name))
    out, expected = logits(model, cache, tokens), logits(model, make_raw(model), tokens)
    assert mx.isfinite(out).all()
    assert mx.sqrt((out - expected).square().mean() / expected.square().mean()).item() < 0.5


@pytest.mark.parametrize("name", ["fp16", "affine8", "turbo4"])
@pytest.mark.parametrize("head_dim, value_dim", [(1, 1), (2, 8), (33, 33), (80, 80), (112, 96), (192, 128)])
def test_any_head_dim_is_stored_packed_or_raw(name: str, head_dim: int, value_dim: int) -> None:
    cache = make_prompt_cache(tiny.llama(), short(name))[:1]
    keys = mx.random.normal((1, 2, 60, head_dim), key=mx.random.key(1)).astype(mx.float16)
    values = mx.random.normal((1, 2, 60, value_dim), key=mx.random.key(2)).astype(mx.float16)
    for part in (slice(0, 59), slice(59, 60)):
        got_keys, got_values = cache[0].update_and_fetch(keys[:, :, part], values[:, :, part])
    for got, x in ((got_keys, keys), (got_values, values)):
        assert got.shape == x.shape
        assert mx.abs(got - x).mean().item() < 0.15
    report = memory_report(cache)
    (layer,) = report.layers
    assert layer.bytes <= layer.fp16_bytes + 2 * 2 * 2 * (head_dim + value_dim)
    if name != "fp16" and max(head_dim, value_dim) < 3:
        assert layer.reason is not None and "head dimension" in layer.reason
    if head_dim >= 80:
        assert layer.compressed is (name != "fp16")


@pytest.mark.parametrize("name", ["fp16", "affine8", "turbo4"])
def test_appending_no_tokens_changes_nothing(name: str) -> None:
    for layer in make_prompt_cache(families.model("llama with windows"), short(name)):
        if isinstance(layer, mlx_cache.RotatingKVCache):
            continue
        nothing = mx.zeros((1, 2, 0, 32))
        keys, values = layer.update_and_fetch(nothing, nothing)
        assert keys.shape == values.shape == (1, 2, 0, 32)
        some = mx.random.normal((1, 2, 40, 32))
        for part in (some[:, :, :39], some[:, :, 39:]):
            layer.update_and_fetch(part, part)
        before = layer.keys_and_values()[0]
        keys, _ = layer.update_and_fetch(nothing, nothing)
        assert mx.array_equal(keys, before) and layer.offset == 40


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 6e4])
@pytest.mark.parametrize("name", ["affine8", "turbo0v4", "turbo4"])
@pytest.mark.parametrize("side", ["keys", "values"])
def test_a_non_finite_vector_affects_only_itself(name: str, side: str, bad: float) -> None:
    (cache, clean) = (make_prompt_cache(tiny.llama(), short(name))[0] for _ in range(2))
    keys, values = mx.random.normal((2, 1, 2, 90, 32), key=mx.random.key(1)).astype(mx.float16)
    spoiled = {"keys": keys, "values": values}
    spoiled[side] = mx.array(spoiled[side])
    spoiled[side][:, 0, 30, 3] = bad
    queries = mx.random.normal((1, 4, 89, 32), key=mx.random.key(3))
    for one, k, v in ((cache, spoiled["keys"], spoiled["values"]), (clean, keys, values)):
        one.update_and_fetch(k[:, :, :89], v[:, :, :89])
        one.observe(queries)
        one.update_and_fetch(k[:, :, 89:], v[:, :, 89:])
    others = mx.array([i for i in range(90) if i != 30])
    for got, whole in zip(cache.keys_and_values(), clean.keys_and_values(), strict=True):
        assert mx.isfinite(got[:, :, others]).all()
        # The fit ignores non-finite vectors; a very large finite one may change it.
        if bad != 6e4:
            assert mx.abs(got[:, :, others] - whole[:, :, others]).mean().item() < 0.1
    assert all(mx.isfinite(array).all() for s in cache.sides for array in s.format.fitted.values())
    cache.trim(70)
    assert mx.isfinite(cache.attend(queries[:, :, :1], 0.2, None)).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_queries_are_left_out_of_the_fit(bad: float) -> None:
    cache = make_prompt_cache(tiny.llama(), short("turbo4"))[0]
    x = mx.random.normal((1, 2, 60, 32), key=mx.random.key(1))
    cache.update_and_fetch(x[:, :, :59], x[:, :, :59])
    queries = mx.random.normal((1, 4, 59, 32))
    queries[:, 1, 5, 2] = bad
    cache.observe(queries)
    cache.update_and_fetch(x[:, :, 59:], x[:, :, 59:])
    assert cache.packed_tokens
    assert all(mx.isfinite(array).all() for array in cache.key_side.format.fitted.values())


def test_a_model_without_routed_attention_keeps_no_decoded_copy() -> None:
    # plamo2 calls MLX's attention directly.
    model = families.model("plamo2")
    cache = make_prompt_cache(model, short("turbo4"))
    run(model, cache)
    ours = cache[1]
    assert ours.packed_tokens and not ours.is_last_fetch(*mx.zeros((2, 1)))
    assert all(reference() is None for reference in ours._fetched)

"""Bits by layer: their sum of bytes, and caches whose layers have different formats."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from tests.kv import families, tiny
from tests.kv.test_cache import logits
from tqchat.engine.memory.allocation import Sensitivity, allocate, describe, layer_bits
from tqchat.kv import convert, load, make_prompt_cache, memory_report, predict_bytes, save
from tqchat.kv.memory import LayerReport, MemoryReport
from tqchat.kv.scheme import Scheme, parse_scheme

LAYERS = 12


def shapes(*, windows: int = 0, tokens: int = 4096) -> MemoryReport:
    """Layers of 2 KV heads and a head dimension of 64; the first ``windows`` see 512 tokens."""

    def layer(index: int) -> LayerReport:
        window = 512 if index < windows else None
        counts: dict[str, Any] = dict.fromkeys(
            ("key_bytes", "value_bytes", "bytes", "allocated_bytes", "fp16_bytes"), 0
        ) | dict.fromkeys(("packed_tokens", "tail_tokens", "sink_tokens"), 0)
        return LayerReport(
            index, "full", "fp16", None, tokens, heads=2, key_dim=64, value_dim=64, window=window, **counts
        )

    return MemoryReport("fp16", tokens, tuple(layer(index) for index in range(LAYERS)))


def drawn(seed: int) -> Sensitivity:
    """Sensitivities that differ by factors of up to a thousand."""
    rng = random.Random(seed)
    keys, values = ([10 ** rng.uniform(-4, -1) for _ in range(LAYERS)] for _ in range(2))
    return Sensitivity(tuple(keys), tuple(values))


def expected_kld(scheme: Scheme, sensitivity: Sensitivity) -> float:
    pairs = scheme.layers or ((scheme.key, scheme.value),) * LAYERS
    return sum(
        k * key.error + v * value.error
        for k, v, (key, value) in zip(sensitivity.keys, sensitivity.values, pairs, strict=True)
    )


@pytest.mark.parametrize(
    "name", ["turbo4", "turbo3", "turbo4v2", "turbo0v4", "turbo8v3", "turbo2", "trellis4", "trellis2"]
)
@pytest.mark.parametrize("windows", [0, 5])
@pytest.mark.parametrize("seed", range(3))
def test_an_allocation_takes_no_more_bytes_and_expects_less_error(name: str, windows: int, seed: int) -> None:
    uniform, sensitivity, report = parse_scheme(name), drawn(seed), shapes(windows=windows)
    scheme = allocate(uniform, sensitivity, report)
    assert scheme.layers and scheme.name == name
    assert predict_bytes(report, scheme) <= predict_bytes(report, uniform) * 1.001
    assert expected_kld(scheme, sensitivity) < expected_kld(uniform, sensitivity)


def test_a_more_sensitive_side_never_has_fewer_bits() -> None:
    sensitivity = drawn(7)
    scheme = allocate(parse_scheme("turbo3"), sensitivity, shapes())
    bits = layer_bits(scheme)
    sides = [(sensitivity.keys[i], key) for i, (key, _) in enumerate(bits)]
    sides += [(sensitivity.values[i], value) for i, (_, value) in enumerate(bits)]
    widths = [width for _, width in sorted(sides)]
    assert widths == sorted(widths) and len(set(widths)) > 1


@pytest.mark.parametrize("name", ["fp16", "affine4", "turbo1", "turbo0v2"])
def test_schemes_without_bits_to_move_stay_uniform(name: str) -> None:
    scheme = parse_scheme(name)
    assert allocate(scheme, drawn(1), shapes()) is scheme


@pytest.mark.parametrize("family", ["turbo", "trellis"])
def test_at_2_bits_only_sides_that_hardly_matter_get_1(family: str) -> None:
    sensitivity = Sensitivity((1.0,) * LAYERS, (1.0,) * (LAYERS - 2) + (0.06, 0.001))
    scheme = allocate(parse_scheme(f"{family}2"), sensitivity, shapes())
    assert [bits for _, bits in layer_bits(scheme)][-2:] == [2, 1], "0.06 is too much for 1 bit"
    assert sum(bits for pair in layer_bits(scheme) for bits in pair) == 2 * 2 * LAYERS
    kinds = {spec.bits: spec.kind for pair in scheme.layers for spec in pair}
    assert kinds == {1: "turbo", 2: family, 3: family}, "there is no trellis of 1 bit"


def test_schemes_of_more_bits_give_every_side_2() -> None:
    for name in ("turbo4", "turbo3", "trellis3", "turbo4v2", "turbo3v2"):
        bits = layer_bits(allocate(parse_scheme(name), drawn(3), shapes()))
        assert min(min(pair) for pair in bits) == 2


def test_equal_or_unknown_sensitivities_change_nothing() -> None:
    scheme = parse_scheme("turbo4")
    same = Sensitivity((1.0,) * LAYERS, (1.0,) * LAYERS)
    assert allocate(scheme, same, shapes()) is scheme
    assert allocate(scheme, None, shapes()) is scheme
    assert allocate(scheme, Sensitivity((1.0,), (1.0,)), shapes()) is scheme, "another model's"


def test_raw_and_affine_sides_keep_their_format() -> None:
    for name in ("turbo0v4", "turbo8v4"):
        uniform = parse_scheme(name)
        allocated = allocate(uniform, drawn(2), shapes())
        assert {key for key, _ in allocated.layers} == {uniform.key}
        assert len({value for _, value in allocated.layers}) > 1


def test_words_name_the_layers_with_most_bits() -> None:
    assert describe([(4, 4), (4, 4)]) is None
    said = describe([(2, 4), (6, 4), (3, 2)])
    assert said == (
        "By this model's profile: keys 2 to 6 bits, most in layer 1; values 2 to 4 bits, most in layers 0, 1."
    )


def mixed(layers: int) -> Scheme:
    """``turbo3`` with other bits in every layer."""
    uniform = parse_scheme("turbo3")
    widths = [(2, 4), (4, 2), (3, 3)]
    pairs = [widths[index % 3] for index in range(layers)]
    return replace(
        uniform,
        layers=tuple((replace(uniform.key, bits=k), replace(uniform.value, bits=v)) for k, v in pairs),
    )


@pytest.mark.parametrize("family", ["llama", "llama with windows", "qwen3_next", "gpt_oss"])
def test_caches_of_different_formats_work_like_any(family: str, tmp_path: Path) -> None:
    model = families.model(family)
    scheme = mixed(len(memory_report(make_prompt_cache(model)).layers))
    cache = make_prompt_cache(model, scheme, dtype=mx.float16)
    prompt, more = tiny.tokens(320), tiny.tokens(40, seed=3)
    logits(model, cache, prompt, 319)
    report = memory_report(cache)
    packed = [layer for layer in report.layers if layer.compressed]
    expected = layer_bits(scheme)
    assert report.scheme == "turbo3"
    assert packed and all((one.key_bits, one.value_bits) == expected[one.index] for one in packed)
    if family == "llama":
        assert predict_bytes(report, scheme) == report.bytes
    save(tmp_path / "cache.safetensors", cache)
    restored, again = (load(tmp_path / "cache.safetensors")[0] for _ in range(2))
    converted = convert(again, scheme)
    same = logits(model, cache, more)
    assert mx.array_equal(logits(model, restored, more), same)
    assert mx.array_equal(logits(model, converted, more), same)


def test_a_saved_format_that_does_not_exist_is_refused() -> None:
    cache = make_prompt_cache(tiny.llama(), "turbo4")[0]
    text, arrays = cache.state
    for bad in ('["turbo", 9]', '["turbo", 1e9]', '["pickle", 4]', "[]", '"turbo4"'):
        with pytest.raises((ValueError, TypeError)):
            type(cache).from_state((text.replace('["turbo", 4]', bad), arrays))

"""What rotated formats are fitted to, and that it heals keys whose channels differ wildly."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models import cache as mlx_cache

from tests.kv import tiny
from tests.kv.test_cache import logits
from tqchat.kv import convert, make_prompt_cache, needs_queries, observe_queries

CONFIG = {"head_dim": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


def with_outliers(factor: float) -> Any:
    """The same function exactly: some RoPE pairs of the keys scaled up, the queries' down by as much."""
    model = tiny.llama(**CONFIG)
    for layer in model.layers:
        attention = layer.self_attn
        scale = mx.ones((2, 2, 32))
        for pair in (3, 11, 20):
            scale[:, :, pair] = factor
        keys = scale.reshape(2, 64)
        queries = mx.repeat(keys, 2, axis=0)
        attention.k_proj.weight = attention.k_proj.weight * keys.reshape(-1, 1)
        attention.q_proj.weight = attention.q_proj.weight / queries.reshape(-1, 1)
    return model


def with_key_bias(size: float) -> Any:
    model = tiny.llama(**CONFIG, attention_bias=True)
    for layer in model.layers:
        bias = mx.zeros((2, 2, 32))
        for pair in (5, 27, 30):
            bias[:, :, pair] = size
        layer.self_attn.k_proj.bias = bias.reshape(-1)
    return model


def error(model: Any, scheme: str, converted: bool = False) -> float:
    """Relative error of logits over a packed cache."""
    tokens = tiny.tokens(420)
    raw = logits(model, mlx_cache.make_prompt_cache(model), tokens, 380)[:, 380:]
    cache = make_prompt_cache(model, "fp16" if converted else scheme)
    logits(model, cache, tokens[:, :380], 379)
    if converted:
        assert needs_queries(cache, scheme)
        observe_queries(model, tokens[0, :380].tolist(), cache)
        assert not needs_queries(cache, scheme)
        cache = convert(cache, scheme)
    packed = logits(model, cache, tokens[:, 380:])
    return float(mx.sqrt((raw - packed).square().mean() / raw.square().mean()).item())


@pytest.mark.parametrize("scheme", ["turbo4", "turbo2"])
@pytest.mark.parametrize("converted", [False, True])
def test_scaling_key_channels_does_not_hurt(scheme: str, converted: bool) -> None:
    plain = error(with_outliers(1), scheme, converted)
    for factor in (10, 30):
        assert error(with_outliers(factor), scheme, converted) < 1.15 * plain


def test_key_biases_do_not_hurt() -> None:
    # Unit keys beside biases of 12 in a few channels, as in Qwen2: the plain codec's error grows tenfold.
    assert error(with_key_bias(12.0), "turbo4") < 1.5 * error(with_key_bias(0.0), "turbo4")


@pytest.mark.parametrize("after, wanted", [("turbo4", True), ("turbo8v2", False), ("turbo0v2", False)])
def test_only_rotated_keys_ask_for_queries(after: str, wanted: bool) -> None:
    model = tiny.llama()
    cache = make_prompt_cache(model, "turbo0v4")
    logits(model, cache, tiny.tokens(200), 199)
    assert needs_queries(cache, after) is wanted


def test_from_one_rotated_scheme_to_another_queries_are_not_asked_for_again() -> None:
    model = tiny.llama()
    cache = make_prompt_cache(model, "turbo4")
    logits(model, cache, tiny.tokens(200), 199)
    assert not needs_queries(cache, "turbo2")


def test_what_was_fitted_is_fixed_and_comes_back() -> None:
    model, tokens = tiny.llama(), tiny.tokens(400)
    cache = make_prompt_cache(model, "turbo3")
    logits(model, cache, tokens[:, :200], 199)
    before = [dict(side.format.fitted) for layer in cache for side in layer.sides]
    assert all(set(fitted) >= {"mean"} for fitted in before)
    logits(model, cache, tokens[:, 200:], 100)
    after = [side.format.fitted for layer in cache for side in layer.sides]
    for one, other in zip(before, after, strict=True):
        assert one.keys() == other.keys()
        assert all(mx.array_equal(one[name], other[name]) for name in one)


def test_queries_seen_before_a_restart_count_after_it() -> None:
    # The format is fitted at the first packing; a restart just before it must not change what it is
    # fitted to.
    model, tokens = tiny.llama(), tiny.tokens(240)
    cache = make_prompt_cache(model, "turbo4")
    logits(model, cache, tokens[:, :60], 50)
    twin = [type(layer).from_state(layer.state) for layer in cache]
    assert mx.array_equal(logits(model, cache, tokens[:, 60:]), logits(model, twin, tokens[:, 60:]))

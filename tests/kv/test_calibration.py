"""Fitting keys: mean, balance and metric, also for keys with outlier channels and biases."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models import cache as mlx_cache

from tests.kv import tiny
from tests.kv.test_cache import logits
from tqchat.kv import convert, make_prompt_cache, needs_queries, observe_queries
from tqchat.kv.codec.base import Format
from tqchat.kv.codec.fitting import QueryStatistics, fit_keys
from tqchat.kv.codec.formats import make_format
from tqchat.kv.codec.rope import probe_rope
from tqchat.kv.scheme import FormatSpec

CONFIG = {"head_dim": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


def with_outliers(factor: float) -> Any:
    """A model that computes the same function, with some RoPE pairs of keys scaled up and of queries down."""
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


@pytest.mark.parametrize("scheme", ["turbo4", "turbo2", "turbo8v2", "affine4"])
@pytest.mark.parametrize("converted", [False, True])
def test_scaling_key_channels_does_not_hurt(scheme: str, converted: bool) -> None:
    plain = error(with_outliers(1), scheme, converted)
    for factor in (10, 30):
        assert error(with_outliers(factor), scheme, converted) < 1.15 * plain


def test_key_biases_do_not_hurt() -> None:
    # Unit keys with biases of 12 in a few channels, as in Qwen2: without a fit the error grows tenfold.
    assert error(with_key_bias(12.0), "turbo4") < 1.5 * error(with_key_bias(0.0), "turbo4")


@pytest.mark.parametrize(
    "after, wanted", [("turbo4", True), ("turbo8v2", True), ("affine4", True), ("turbo0v2", False)]
)
def test_only_schemes_with_packed_keys_need_queries(after: str, wanted: bool) -> None:
    model = tiny.llama()
    cache = make_prompt_cache(model, "turbo0v4")
    logits(model, cache, tiny.tokens(200), 199)
    assert needs_queries(cache, after) is wanted


def test_converting_between_schemes_with_packed_keys_needs_no_queries() -> None:
    model = tiny.llama()
    cache = make_prompt_cache(model, "turbo4")
    logits(model, cache, tiny.tokens(200), 199)
    assert not needs_queries(cache, "turbo2")


def test_fitted_vectors_do_not_change() -> None:
    model, tokens = tiny.llama(), tiny.tokens(400)
    cache = make_prompt_cache(model, "turbo3")
    logits(model, cache, tokens[:, :200], 199)
    before = [dict(side.format.fitted) for layer in cache for side in layer.sides]
    assert all(set(fitted) >= {"centres"} for fitted in before)
    logits(model, cache, tokens[:, 200:], 100)
    after = [side.format.fitted for layer in cache for side in layer.sides]
    for one, other in zip(before, after, strict=True):
        assert one.keys() == other.keys()
        assert all(mx.array_equal(one[name], other[name]) for name in one)


def test_query_statistics_survive_a_restart() -> None:
    # The format is fitted at the first packing; a restart just before must not change the fit.
    model, tokens = tiny.llama(), tiny.tokens(240)
    cache = make_prompt_cache(model, "turbo4")
    logits(model, cache, tokens[:, :60], 50)
    twin = [type(layer).from_state(layer.state) for layer in cache]
    assert mx.array_equal(logits(model, cache, tokens[:, 60:]), logits(model, twin, tokens[:, 60:]))


def rotated_keys(tokens: int, factor: float = 1.0) -> tuple[mx.array, mx.array]:
    """Keys with large biases in a slow and in a fast pair, after and before the rotary embedding."""
    bias = mx.zeros((32,))
    bias[15], bias[31], bias[1] = 6 * factor, 3 * factor, 6 * factor
    x = mx.random.normal((1, 2, tokens, 32), key=mx.random.key(1)) + bias
    return nn.RoPE(32)(x), x


def test_the_fitted_mean_is_that_of_later_positions() -> None:
    rope = probe_rope(nn.RoPE(32), 32)
    keys, _ = rotated_keys(2000)
    fit = fit_keys(keys[:, :, :400], QueryStatistics(rope=rope))
    plain = fit_keys(keys[:, :, :400], QueryStatistics())
    later = keys[:, :, :1200]

    def residual(mean: mx.array) -> float:
        return float((later - mean).square().mean().item())

    assert residual(fit.mean) < residual(plain.mean)
    assert mx.allclose(fit.mean, later.mean(axis=2, keepdims=True), atol=0.2)
    # Both channels of a pair have one balance.
    assert mx.allclose(fit.balance[..., :16], fit.balance[..., 16:])


def test_keys_without_rotation_are_fitted_as_they_are() -> None:
    rope = probe_rope(nn.RoPE(32), 32)
    _, unrotated = rotated_keys(400)
    fit, plain = (
        fit_keys(unrotated, statistics) for statistics in (QueryStatistics(rope=rope), QueryStatistics())
    )
    assert mx.array_equal(fit.mean, plain.mean) and mx.array_equal(fit.balance, plain.balance)


def test_a_fit_to_few_queries_is_not_worse_than_none() -> None:
    keys, _ = rotated_keys(84, 0.0)
    later = rotated_keys(1000, 0.0)[0][:, :, 84:]
    queries = mx.random.normal((1, 2, 500, 32), key=mx.random.key(2))
    statistics = QueryStatistics(
        queries[:, :, :4].square().mean(axis=2, keepdims=True), 4, probe_rope(nn.RoPE(32), 32)
    )
    unfitted = make_format(FormatSpec("turbo", 3), 32, "key")
    fitted = unfitted.fit(keys, statistics)

    def score_error(format_: Format) -> float:
        off = queries @ (format_.decode(format_.encode(later)) - later).swapaxes(-1, -2)
        return float(off.square().mean().item())

    assert score_error(fitted) < 1.25 * score_error(unfitted)

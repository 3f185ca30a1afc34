"""Adds key outliers to a model without changing its function, to test codecs against them.

Attention only uses the product of queries and keys: scaling a RoPE pair of channels up in the keys and down
in the queries cancels out. Many released models have such outlier channels; the bundled one has none."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from tqchat.engine.models import LoadedModel
from tqchat.errors import TqchatError

SCALED_PAIRS = 3
"""RoPE pairs scaled in each head."""

MAX_LOGPROB_DIFFERENCE = 0.02
"""Largest difference of log-probabilities, in nats, that counts as rounding."""

_PROBE_TOKENS = range(1, 33)


class NoOutliers(TqchatError):
    """Outliers cannot be added to this model."""

    exit_code = 2


def add_outliers(model: LoadedModel, factor: float) -> int:
    """Scale ``SCALED_PAIRS`` RoPE pairs of each head by ``factor`` in keys and ``1 / factor`` in queries.

    Changes the model in place.

    Returns:
        Number of layers changed.

    Raises:
        NoOutliers: if no layer has known projections, or the model's outputs changed.
    """
    if not 0 < factor < float("inf"):
        raise NoOutliers("The outliers' factor must be a positive number, 20 for example.")
    before = _log_probabilities(model)
    modules: list[Any] = list(model.model.modules())  # type: ignore[no-untyped-call]
    attentions = [m for m in modules if all(hasattr(m, name) for name in ("q_proj", "k_proj", "rope"))]
    for layer, attention in enumerate(attentions):
        _scale_attention(attention, model.config, factor, layer)
    mx.eval(model.model.parameters())  # type: ignore[no-untyped-call]
    gap = mx.abs(_log_probabilities(model) - before).max()
    if not (attentions and (gap < MAX_LOGPROB_DIFFERENCE).item()):
        raise NoOutliers(f"Outliers cannot be added to {model.info.architecture} models.")
    return len(attentions)


def _scale_attention(attention: Any, config: dict[str, Any], factor: float, layer: int) -> None:
    if hasattr(attention, "k_norm"):
        # The norm would undo a scaling of the projections, so scale the norm's weights.
        head_dim = attention.k_norm.weight.size
        scales = _channel_scales(attention.rope, head_dim, factor, layer)
        attention.k_norm.weight = (attention.k_norm.weight * scales).astype(attention.k_norm.weight.dtype)
        attention.q_norm.weight = (attention.q_norm.weight / scales).astype(attention.q_norm.weight.dtype)
        return
    heads = int(config.get("num_key_value_heads") or config.get("num_attention_heads") or 0)
    rows = attention.k_proj.weight.shape[0]
    if not heads or rows % heads:
        raise NoOutliers("The model's config does not say how many key heads it has.")
    head_dim = rows // heads
    scales = _channel_scales(attention.rope, head_dim, factor, layer)
    _scale_rows(attention.k_proj, mx.tile(scales, heads))
    _scale_rows(attention.q_proj, mx.tile(1 / scales, attention.q_proj.weight.shape[0] // head_dim))


def _channel_scales(rope: Any, head_dim: int, factor: float, layer: int) -> mx.array:
    """``factor`` on both channels of some RoPE pairs, 1 elsewhere: ``[head_dim]``."""
    dims = int(getattr(rope, "dims", getattr(rope, "dim", head_dim)))
    half = dims // 2
    # Different pairs in each layer, spread over the head.
    chosen = [(layer + 1) * (5 + 6 * step) % half for step in range(SCALED_PAIRS)]
    factors = [1.0] * head_dim
    for pair in chosen:
        neighbours = (2 * pair, 2 * pair + 1) if getattr(rope, "traditional", False) else (pair, pair + half)
        for channel in neighbours:
            factors[channel] = factor
    return mx.array(factors)


def _scale_rows(linear: Any, rows: mx.array) -> None:
    """Scale a linear layer's outputs; in a quantised layer the scales and biases of its groups."""
    for name in ("weight", "scales", "biases") if "scales" in linear else ("weight",):
        if name == "weight" and "scales" in linear:
            continue
        linear[name] = (linear[name] * rows[:, None]).astype(linear[name].dtype)
    if "bias" in linear:
        linear["bias"] = (linear["bias"] * rows).astype(linear["bias"].dtype)


def _log_probabilities(model: LoadedModel) -> mx.array:
    logits: mx.array = model.model(mx.array([list(_PROBE_TOKENS)])).astype(mx.float32)
    result = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    mx.eval(result)
    return result

"""A variant of a model that computes the same function, with the key outliers that break weak codecs.

Queries and keys only ever meet in their product: a RoPE pair of channels scaled up in the keys and down by as
much in the queries changes nothing. Many released models have such channels; the bundled one has none."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from tqchat.engine.models import LoadedModel
from tqchat.errors import TqchatError

PAIRS = 3
"""RoPE pairs scaled in every head."""

TOLERANCE = 0.02
"""Largest difference of log-probabilities that rounding may leave between the two."""

_PROBE = range(1, 33)


class NoOutliers(TqchatError):
    """The model is not built in a way that outliers can be added to."""

    exit_code = 2


def add_outliers(model: LoadedModel, factor: float) -> int:
    """Scale ``PAIRS`` RoPE pairs of every head's keys by ``factor`` and of its queries by its inverse, in
    place.

    Returns:
        How many layers were changed.

    Raises:
        NoOutliers: if no layer has projections known here, or the function turned out not to be the same.
    """
    if not 0 < factor < float("inf"):
        raise NoOutliers("The outliers' factor must be a positive number, 20 for example.")
    before = _log_probabilities(model)
    modules: list[Any] = list(model.model.modules())  # type: ignore[no-untyped-call]
    attentions = [m for m in modules if all(hasattr(m, name) for name in ("q_proj", "k_proj", "rope"))]
    for number, attention in enumerate(attentions):
        _scale_attention(attention, model.config, factor, number)
    mx.eval(model.model.parameters())  # type: ignore[no-untyped-call]
    gap = mx.abs(_log_probabilities(model) - before).max()
    if not (attentions and (gap < TOLERANCE).item()):
        raise NoOutliers(f"Outliers cannot be added to {model.info.architecture} models.")
    return len(attentions)


def _scale_attention(attention: Any, config: dict[str, Any], factor: float, number: int) -> None:
    if hasattr(attention, "k_norm"):
        # What the projections scale, the norm would take back: its own weights come after.
        head_dim = attention.k_norm.weight.size
        map_ = _channel_map(attention.rope, head_dim, factor, number)
        attention.k_norm.weight = (attention.k_norm.weight * map_).astype(attention.k_norm.weight.dtype)
        attention.q_norm.weight = (attention.q_norm.weight / map_).astype(attention.q_norm.weight.dtype)
        return
    heads = int(config.get("num_key_value_heads") or config.get("num_attention_heads") or 0)
    rows = attention.k_proj.weight.shape[0]
    if not heads or rows % heads:
        raise NoOutliers("The model's config does not say how many key heads it has.")
    head_dim = rows // heads
    map_ = _channel_map(attention.rope, head_dim, factor, number)
    _scale_rows(attention.k_proj, mx.tile(map_, heads))
    _scale_rows(attention.q_proj, mx.tile(1 / map_, attention.q_proj.weight.shape[0] // head_dim))


def _channel_map(rope: Any, head_dim: int, factor: float, number: int) -> mx.array:
    """``factor`` on both channels of some RoPE pairs, 1 elsewhere: ``[head_dim]``."""
    dims = int(getattr(rope, "dims", getattr(rope, "dim", head_dim)))
    half = dims // 2
    chosen = [(number + 1) * (5 + 6 * step) % half for step in range(PAIRS)]
    scales = [1.0] * head_dim
    for pair in chosen:
        neighbours = (2 * pair, 2 * pair + 1) if getattr(rope, "traditional", False) else (pair, pair + half)
        for channel in neighbours:
            scales[channel] = factor
    return mx.array(scales)


def _scale_rows(linear: Any, rows: mx.array) -> None:
    """Scale a linear layer's outputs; of a quantised one the scales and biases of its groups."""
    for name in ("weight", "scales", "biases") if "scales" in linear else ("weight",):
        if name == "weight" and "scales" in linear:
            continue
        linear[name] = (linear[name] * rows[:, None]).astype(linear[name].dtype)
    if "bias" in linear:
        linear["bias"] = (linear["bias"] * rows).astype(linear["bias"].dtype)


def _log_probabilities(model: LoadedModel) -> mx.array:
    logits: mx.array = model.model(mx.array([list(_PROBE)])).astype(mx.float32)
    result = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    mx.eval(result)
    return result

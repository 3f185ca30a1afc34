"""Attention over packed tokens in plain MLX operations: the reference every kernel is held against."""

from __future__ import annotations

import mlx.core as mx

from tqchat.kv.storage import Side


def attention(
    queries: mx.array,
    keys: Side,
    values: Side,
    scale: float,
    mask: mx.array | str | None,
    sinks: mx.array | None = None,
) -> mx.array:
    """Scaled dot-product attention against packed storage; scores, softmax and sums are float32.

    Queries are rotated once, products happen in the rotated space, and only the sum is rotated back.

    Args:
        queries: ``[batch, query_heads, rows, key_dim]``, any float dtype; a multiple of the cache's heads.
        mask: ``None``, ``"causal"`` (the rows are the last tokens), or boolean/additive, broadcastable to
            ``[batch, query_heads, rows, tokens]``.
        sinks: Learned attention sinks, one logit per query head ``[query_heads]`` (gpt-oss), or ``None``.

    Returns:
        ``[batch, query_heads, rows, value_dim]`` in the queries' dtype.
    """
    batch, query_heads, rows, _ = queries.shape
    heads = keys.shape[1]
    groups = query_heads // heads
    scaled = (queries.astype(mx.float32) * scale).reshape(batch, heads, groups * rows, -1)
    scores = keys.scores(scaled).reshape(batch, query_heads, rows, -1)
    scores = _masked(scores, mask)
    if sinks is not None:
        column = mx.broadcast_to(sinks.astype(mx.float32).reshape(1, -1, 1, 1), (batch, query_heads, rows, 1))
        scores = mx.concatenate([column, scores], axis=-1)
    weights = mx.softmax(scores, axis=-1, precise=True)
    if sinks is not None:
        weights = weights[..., 1:]
    output = values.combine(weights.reshape(batch, heads, groups * rows, -1))
    return output.reshape(batch, query_heads, rows, -1).astype(queries.dtype)


def _masked(scores: mx.array, mask: mx.array | str | None) -> mx.array:
    if mask is None:
        return scores
    rows, tokens = scores.shape[-2:]
    if isinstance(mask, str):
        if rows == 1:
            return scores
        mask = mx.arange(tokens - rows, tokens)[:, None] >= mx.arange(tokens)[None]
    if mask.dtype == mx.bool_:
        return mx.where(mask, scores, mx.array(-mx.inf, scores.dtype))
    return scores + mask.astype(mx.float32)

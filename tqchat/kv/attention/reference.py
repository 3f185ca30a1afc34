"""Attention over packed tokens in plain MLX operations; kernels are verified against it."""

from __future__ import annotations

from itertools import pairwise
from math import e

import mlx.core as mx
import numpy as np

from tqchat.kv.storage.side import Side

BLOCK_BYTES = 4 << 20
"""Limit on the scores or dequantised vectors held at a time; longer histories are processed in blocks."""

MIN_BLOCK_TOKENS = 64
"""Lower bound of a block."""

MASKED_SCORE = -1e30
"""Score of masked tokens and initial maximum; finite, since a difference of infinities is NaN."""


def attention(
    queries: mx.array,
    keys: Side,
    values: Side,
    scale: float,
    mask: mx.array | str | None,
    sink_logits: mx.array | None = None,
) -> mx.array:
    """Scaled dot-product attention against packed storage; scores, softmax and sums are float32.

    Queries are rotated once, products are taken in the rotated space, and only the sum is rotated back.

    Args:
        queries: ``[batch, query_heads, rows, key_dim]``, any float dtype; query_heads a multiple of KV heads.
        mask: ``None``, ``"causal"`` (the rows are the last tokens), or boolean/additive, broadcastable to
            ``[batch, query_heads, rows, tokens]``.
        sink_logits: Learned attention sinks, one logit per query head (gpt-oss), or ``None``.

    Returns:
        ``[batch, query_heads, rows, value_dim]`` in the queries' dtype.
    """
    batch, query_heads, rows, _ = queries.shape
    heads = keys.shape[1]
    scaled = (queries.astype(mx.float32) * scale).reshape(batch, heads, query_heads // heads * rows, -1)
    if sink_logits is not None:
        sink_logits = mx.broadcast_to(
            sink_logits.astype(mx.float32).reshape(1, -1, 1, 1), (batch, query_heads, rows, 1)
        )
    token_bytes = 4 * batch * max(query_heads * rows, heads * max(keys.head_dim, values.head_dim))
    block = max(MIN_BLOCK_TOKENS, BLOCK_BYTES // token_bytes)
    if keys.length <= block and not _is_cpu_prefill(rows):
        output = _one_pass(scaled, rows, keys, values, mask, sink_logits)
    else:
        output = _blockwise(scaled, rows, keys, values, mask, sink_logits, block)
    return output.reshape(batch, query_heads, rows, -1).astype(queries.dtype)


def _one_pass(
    scaled: mx.array,
    rows: int,
    keys: Side,
    values: Side,
    mask: mx.array | str | None,
    sink_logits: mx.array | None,
) -> mx.array:
    batch, heads, all_rows, _ = scaled.shape
    scores = keys.scores(keys.fold(scaled))
    if sink_logits is None and (mask is None or (rows == 1 and isinstance(mask, str))):
        weights = _exp(scores - scores.max(axis=-1, keepdims=True))
        return values.combine(weights, depends_on=scaled) / weights.sum(axis=-1, keepdims=True)
    scores = _masked(scores.reshape(batch, -1, rows, keys.length), mask, 0, keys.length)
    if sink_logits is not None:
        scores = mx.concatenate([sink_logits, scores], axis=-1)
    weights = mx.softmax(scores, axis=-1, precise=True)
    if sink_logits is not None:
        weights = weights[..., 1:]
    return values.combine(weights.reshape(batch, heads, all_rows, -1), depends_on=scaled)


def _blockwise(
    scaled: mx.array,
    rows: int,
    keys: Side,
    values: Side,
    mask: mx.array | str | None,
    sink_logits: mx.array | None,
    block: int,
) -> mx.array:
    """The same in blocks of ``block`` tokens, with a running softmax (online softmax)."""
    batch, heads, all_rows, _ = scaled.shape
    shape = (batch, heads, all_rows, 1)
    top = mx.full(shape, MASKED_SCORE) if sink_logits is None else sink_logits.reshape(shape)
    total = mx.zeros(shape) if sink_logits is None else mx.ones(shape)
    output = mx.zeros((batch, heads, all_rows, values.head_dim))
    folded = keys.fold(scaled)
    in_numpy = _is_cpu_prefill(rows)
    exponentials = _exponentials_in_numpy if in_numpy else _exponentials
    # Tokens that all rows see apart from the others: masking takes longer than their products.
    seen_by_all = keys.length - rows if isinstance(mask, str) else 0
    starts = [*range(0, seen_by_all, block), *range(seen_by_all, keys.length, block)]
    for start, end in pairwise([*starts, keys.length]):
        scores = keys.scores(folded, start, end).reshape(batch, -1, rows, end - start)
        scores = _masked(scores, mask, start, keys.length).reshape(batch, heads, all_rows, -1)
        new_top, weights, sums = exponentials(scores, top)
        rescale = mx.exp(top - new_top)
        total = total * rescale + sums
        before = None if in_numpy else scaled if start == 0 else output
        output = output * rescale + values.combine(weights, start, end, depends_on=before)
        top = new_top
        if rows > 1:
            # Otherwise MLX may compute the scores of all blocks first, using the memory of one pass.
            mx.eval(output, total, top)
    return output / total


def _is_cpu_prefill(rows: int) -> bool:
    """Whether exponentials are taken in numpy, which waits for the scores: not in single steps."""
    return rows > 1 and mx.default_device() == mx.cpu


def _exp(x: mx.array) -> mx.array:
    """Exponentials. On a CPU as powers, which MLX computes in less than half the time."""
    return mx.power(e, x) if mx.default_device() == mx.cpu else mx.exp(x)


def _exponentials(scores: mx.array, top: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """One block of an online softmax.

    Args:
        scores: float32 ``[batch, heads, rows, tokens]``.
        top: The maximum so far, float32 ``[batch, heads, rows, 1]``.

    Returns:
        The new maximum, the scores' exponentials relative to it, and their sums.
    """
    new_top = mx.maximum(top, scores.max(axis=-1, keepdims=True))
    weights = _exp(scores - new_top)
    return new_top, weights, weights.sum(axis=-1, keepdims=True)


def _exponentials_in_numpy(scores: mx.array, top: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """``_exponentials``, evaluated. MLX's exponential takes five times as long on an x86 CPU."""
    mx.eval(scores, top)
    block, before = np.asarray(scores), np.asarray(top)
    with np.errstate(all="ignore"):
        new_top = np.maximum(before, block.max(axis=-1, keepdims=True))
        weights = block - new_top
        np.exp(weights, out=weights)
    return mx.array(new_top), mx.array(weights), mx.array(weights.sum(axis=-1, keepdims=True))


def _masked(scores: mx.array, mask: mx.array | str | None, start: int, tokens: int) -> mx.array:
    """Scores of tokens ``start`` and following, out of ``tokens``, under a mask for all of them."""
    if mask is None:
        return scores
    rows, count = scores.shape[-2:]
    if isinstance(mask, str):
        if start + count <= tokens - rows + 1:
            return scores
        mask = mx.arange(tokens - rows, tokens)[:, None] >= mx.arange(start, start + count)[None]
    elif mask.shape[-1] == tokens:
        mask = mask[..., start : start + count]
    if mask.dtype == mx.bool_:
        return mx.where(mask, scores, mx.array(MASKED_SCORE, scores.dtype))
    return scores + mx.maximum(mask.astype(mx.float32), MASKED_SCORE)

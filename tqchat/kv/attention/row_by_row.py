"""Attention of several query tokens, computed as in as many steps of one token."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from tqchat.kv.attention.reference import attention
from tqchat.kv.storage.side import Side


def row_by_row(
    queries: mx.array,
    tokens: int,
    mask: mx.array | str | None,
    attend: Callable[[mx.array, int, mx.array | None], mx.array],
) -> mx.array:
    """Attention in which each query token gets the bits that a step of its own would give it.

    A matrix product of several rows over the whole history sums in another order than those of single rows,
    over each row's own history.

    Args:
        queries: ``[batch, query_heads, rows, key_dim]``, of the last tokens.
        tokens: Tokens of the history, those of the rows included.
        mask: ``None``, ``"causal"``, or an array ``[..., rows or 1, tokens]``.
        attend: Called with the queries of a row, the number of tokens that it sees and its mask; with the
            last row first.

    Returns:
        ``[batch, query_heads, rows, value_dim]``.
    """
    rows = queries.shape[2]
    outputs = []
    for row in reversed(range(rows)):
        seen = tokens - rows + row + 1
        own = None
        if isinstance(mask, mx.array):
            own = (mask if mask.shape[-2] == 1 else mask[..., row : row + 1, :])[..., :seen]
        outputs.append(attend(queries[:, :, row : row + 1], seen, own))
    return mx.concatenate(outputs[::-1], axis=2)


def attention_by_row(
    queries: mx.array,
    keys: Side,
    values: Side,
    scale: float,
    mask: mx.array | str | None,
    sink_logits: mx.array | None = None,
) -> mx.array:
    """``attention``, each row of which has the bits of a step of its own."""

    def attend(row: mx.array, seen: int, own: mx.array | None) -> mx.array:
        return attention(row, keys.first(seen), values.first(seen), scale, own, sink_logits)

    return row_by_row(queries, keys.length, mask, attend)

"""Inputs of attention kernels that do not change between steps."""

from __future__ import annotations

from math import e, log2

import mlx.core as mx

from tqchat.kv.codec.codebook import centroids
from tqchat.kv.codec.trellis import kernel_table
from tqchat.kv.kernels.plan import LEVELS, Plan, SidePlan
from tqchat.kv.scheme import FINE_BITS
from tqchat.kv.storage.side import Side


def fixed_inputs(
    plan: Plan, keys: Side, values: Side, heads: int, scale: float, sink_logits: mx.array | None
) -> mx.array:
    """Inputs that do not change between steps, in the layout of ``fixed.inc``.

    Scale and sink logits are multiplied by log2(e), as the kernels compute powers of two.
    """
    scale = scale * log2(e)
    shared = [mx.array([scale] + [0.0] * 7)]
    for side in (plan.key, plan.value):
        levels = list(centroids(side.bits)) if side.kind == 1 else []
        shared.append(mx.array(levels + [0.0] * (LEVELS - len(levels))))
    if plan.has_fine:
        shared.append(mx.array(centroids(FINE_BITS)))
    per_head = []
    if plan.key.kind:
        fitted = keys.format.fitted
        fold = mx.full((heads, plan.key.dim), scale)
        if "balance" in fitted:
            fold = fold / fitted["balance"].reshape(heads, -1)
        if plan.key.rotation == 1:
            fold = fold * keys.format.shared["rotation"]
        elif plan.key.rotation == 2:
            shared.append(keys.format.shared["rotation"].flatten())
        if plan.key.mean:
            per_head.append(fitted["mean"].astype(mx.float32) * scale)
        per_head += _centres(plan.key, keys, heads)
        per_head.append(fold)
    if plan.value.rotation:
        shared.append(values.format.shared["rotation"].T.flatten())
    shared += [kernel_table(side.bits) for side in (plan.key, plan.value) if side.kind == 3]
    per_head += _centres(plan.value, values, heads)
    if sink_logits is not None:
        logits = mx.pad(
            sink_logits.astype(mx.float32).reshape(-1, plan.group) * log2(e), [(0, 0), (0, -plan.group % 4)]
        )
        per_head.append(mx.tile(logits, (heads // logits.shape[0], 1)))
    for part, stored in ((plan.key, keys), (plan.value, values)):
        if part.kind and stored.sinks.length:
            # In their storage dtype, viewed as floats.
            per_head.append(stored.sinks.view()[0].reshape(heads, -1).view(mx.float32))
    shared += (
        [mx.concatenate([x.astype(mx.float32).reshape(heads, -1) for x in per_head], axis=1).flatten()]
        if per_head
        else []
    )
    return mx.concatenate([x.astype(mx.float32) for x in shared])


def _centres(plan: SidePlan, side: Side, heads: int) -> list[mx.array]:
    """Centres of a side, four bytes viewed as a float, and their scales, ``[heads, ...]`` each."""
    if not plan.centres:
        return []
    fitted = side.format.fitted
    return [fitted["centres"].reshape(heads, -1).view(mx.float32), fitted["centre_scales"].reshape(heads, -1)]

"""One layer's attention through the kernels."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from tqchat.kv.attention import attention
from tqchat.kv.kernels.device import kernels
from tqchat.kv.kernels.launch import Steps
from tqchat.kv.kernels.plan import plan_for
from tqchat.kv.storage import Side

TOLERANCE = 1e-2
"""Largest difference from the plain operations, against the largest value: products with codes are halves."""


class FusedAttention:
    """One layer's way to the kernels: what is the same at every step, kept from one to the next."""

    def __init__(self) -> None:
        self._steps: Steps | None = None
        self._trusts = False

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept beside the cache."""
        return 0 if self._steps is None else self._steps.nbytes

    def __call__(
        self,
        queries: mx.array,
        keys: Side,
        values: Side,
        scale: float,
        mask: mx.array | str | None,
        sinks: mx.array | None = None,
    ) -> mx.array | None:
        """What ``attention`` computes, in one kernel or two; ``None`` where there are none for it.

        Args and shapes are those of ``attention``. Queries of several rows are served under the causal mask.
        """
        made = kernels()
        if made is None or not made.enabled:
            return None
        if mask is None:
            if queries.shape[2] > 1:
                return None
        elif not isinstance(mask, str):
            return None
        steps = self._steps
        if steps is None or not steps.serves(queries, keys, values, scale, sinks):
            plan = plan_for(queries, keys, values, sinks is not None, made)
            if plan is None or plan in made.refused:
                return None
            steps = self._steps = Steps(plan, queries, keys, values, scale, sinks)
            self._trusts = plan in made.trusted
        if not steps.ready(keys, values):
            return None
        if self._trusts:
            return steps.run(made, queries, keys, values)
        if steps.plan in made.refused:
            return None
        answer = made.first_use(
            steps.plan,
            attention(queries, keys, values, scale, mask, sinks),
            lambda: steps.run(made, queries, keys, values),
            _error,
        )
        self._trusts = steps.plan in made.trusted
        return answer


def _error(reference: mx.array, found: mx.array) -> str | None:
    a, b = found.astype(mx.float32), reference.astype(mx.float32)
    finite = mx.isfinite(b)
    gap = mx.where(finite, mx.abs(a - b), mx.where(mx.isfinite(a), mx.inf, 0)).max()
    size = mx.where(finite, mx.abs(b), 0).max()
    error: Any = (gap / mx.maximum(size, 1e-6)).item()
    return None if error <= TOLERANCE else f"it differs from the plain operations by {error:.2g}"

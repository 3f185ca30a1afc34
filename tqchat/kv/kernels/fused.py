"""One layer's attention through the kernels."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from tqchat.kv.attention import attention
from tqchat.kv.kernels.device import Kernels, kernels
from tqchat.kv.kernels.launch import Exchange, Layout, Steps
from tqchat.kv.kernels.plan import plan_for
from tqchat.kv.storage import Side

TOLERANCE = 1e-2
"""Largest difference from the plain operations, against the largest value: products with codes are halves."""


class FusedAttention:
    """One layer's way to the kernels: what is the same at every step, kept from one to the next.

    Attributes:
        exchange: The layer's own, unless its cache has one for all.
    """

    def __init__(self) -> None:
        self.exchange = Exchange()
        # By which sides' last tokens wait to be written: layers that share a cache take turns.
        self._steps: dict[tuple[bool, bool], Steps] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept beside the cache."""
        return sum(steps.nbytes for steps in self._steps.values())

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
        waiting = keys.recent.growing is not None, values.recent.growing is not None
        steps = self._steps.get(waiting)
        if steps is None or not steps.serves(queries, keys, values, scale, sinks):
            plan = plan_for(queries, keys, values, sinks is not None, made)
            if plan is None:
                return None
            # Those for what the cache holds no more go.
            kept = {key: other for key, other in self._steps.items() if other.knows(keys, values)}
            steps = Steps(plan, queries, keys, values, scale, sinks, self.exchange)
            self._steps = kept | {waiting: steps}
            steps.is_trusted = plan in made.trusted
        layout = steps.layout(keys, values)
        if layout is None:
            return None
        if steps.is_trusted:
            output, grown = steps.run(made, layout, queries, keys, values)
            if waiting[1]:
                values.recent.written(grown[-1])
            if waiting[0]:
                keys.recent.written(grown[0])
            return output
        if steps.plan not in made.refused:
            output = _tried(made, steps, layout, queries, keys, values, scale, mask, sinks)
            steps.is_trusted = steps.plan in made.trusted
            if not steps.is_trusted:
                self.exchange.renew()
            return output
        if not any(waiting):
            return None
        # Perhaps where it has nothing to write the kernel can be trusted.
        for side in (keys, values):
            side.recent.write()
        return self(queries, keys, values, scale, mask, sinks)


def _tried(
    made: Kernels,
    steps: Steps,
    layout: Layout,
    queries: mx.array,
    keys: Side,
    values: Side,
    scale: float,
    mask: str | None,
    sinks: mx.array | None,
) -> mx.array:
    """A plan's first attention, held against the plain operations'; what it was to write they write."""
    growing = [side.recent for side in (keys, values) if side.recent.growing is not None]

    def found() -> list[mx.array]:
        output, grown = steps.run(made, layout, queries, keys, values)
        pairs = zip(grown, growing, strict=True)
        return [output, *(tail[:, :, : store.length] for tail, store in pairs)]

    def reference() -> list[mx.array]:
        output = attention(queries, keys, values, scale, mask, sinks)
        return [output, *(store.view()[0] for store in growing)]

    return made.first_use(steps.plan, reference, found, _error)[0]


def _error(reference: list[mx.array], found: list[mx.array]) -> str | None:
    (expected, *written), (output, *grown) = reference, found
    a, b = output.astype(mx.float32), expected.astype(mx.float32)
    finite = mx.isfinite(b)
    gap = mx.where(finite, mx.abs(a - b), mx.where(mx.isfinite(a), mx.inf, 0)).max()
    size = mx.where(finite, mx.abs(b), 0).max()
    error: Any = (gap / mx.maximum(size, 1e-6)).item()
    if not error <= TOLERANCE:
        return f"it differs from the plain operations by {error:.2g}"
    if not all(mx.array_equal(x, y, equal_nan=True).item() for x, y in zip(written, grown, strict=True)):
        return "it does not write the last token as the plain operations do"
    return None

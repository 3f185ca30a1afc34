"""One layer's attention through the kernels."""

from __future__ import annotations

import copy
from typing import Any

import mlx.core as mx

from tqchat.kv.attention.reference import attention
from tqchat.kv.kernels.device import Kernels, kernels
from tqchat.kv.kernels.launch import Exchange, Steps
from tqchat.kv.kernels.plan import Plan, plan_for
from tqchat.kv.storage.side import Side

TOLERANCE = 1e-2
"""Largest difference from the plain operations, against the largest value: products with codes are halves."""


class FusedAttention:
    """One layer's way to the kernels: what is the same at every step, kept from one to the next.

    Attributes:
        exchange: The layer's own, unless its cache has one for all.
    """

    def __init__(self) -> None:
        self.exchange = Exchange()
        # By the queries' rows, and by the number of parts that tails have, as their last tokens wait to be
        # written or not: draft tokens come and go, layers that share a cache take turns.
        self._steps: dict[tuple[int, int, int], Steps] = {}

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
        kind = queries.shape[2], len(keys.recent.parts), len(values.recent.parts)
        steps = self._steps.get(kind)
        output = None if steps is None else steps.run(queries, keys, values, scale, mask, sinks)
        return self._anew(queries, keys, values, scale, mask, sinks) if output is None else output

    def _anew(
        self,
        queries: mx.array,
        keys: Side,
        values: Side,
        scale: float,
        mask: mx.array | str | None,
        sinks: mx.array | None,
    ) -> mx.array | None:
        """The same for what was not asked before, or where there is no kernel."""
        made = kernels()
        if made is None or isinstance(mask, mx.array) or (mask is None and queries.shape[2] > 1):
            return None
        arguments = queries, keys, values, scale, mask, sinks
        plan = plan_for(queries, keys, values, sinks is not None, made)
        if plan is None:
            return None
        if plan in made.refused:
            if not (keys.recent.waits or values.recent.waits):
                return None
            # Perhaps where it has nothing to write the kernel can be trusted.
            for side in (keys, values):
                side.recent.write()
            return self(*arguments)
        if plan not in made.trusted:
            return _tried(made, plan, queries, keys, values, scale, mask, sinks)
        kind = queries.shape[2], len(keys.recent.parts), len(values.recent.parts)
        # Those for what the cache holds no more go.
        kept = {key: other for key, other in self._steps.items() if other.knows(keys, values)}
        steps = Steps(plan, *arguments, self.exchange)
        self._steps = kept | {kind: steps}
        return steps.run(*arguments)


def _tried(
    made: Kernels,
    plan: Plan,
    queries: mx.array,
    keys: Side,
    values: Side,
    scale: float,
    mask: str | None,
    sinks: mx.array | None,
) -> mx.array:
    """A plan's first attention, held against the plain operations'; what it was to write they write."""
    arguments = queries, keys, values, scale, mask, sinks
    twins = queries, beside(keys), beside(values), scale, mask, sinks

    def found() -> list[mx.array]:
        # What it may leave in an exchange is nobody else's business.
        output = Steps(plan, *twins, Exchange()).run(*twins)
        return [] if output is None else [output, *(side.recent.view()[0] for side in twins[1:3])]

    def reference() -> list[mx.array]:
        return [attention(*arguments), *(side.recent.view()[0] for side in (keys, values))]

    return made.first_use(plan, reference, found, _error)[0]


def beside(side: Side) -> Side:
    """A side with the same arrays, whose last token may be written without this one's being."""
    twin = copy.copy(side)
    twin.recent = copy.copy(side.recent)
    return twin


def _error(reference: list[mx.array], found: list[mx.array]) -> str | None:
    if not found:
        return "it does not serve what it is for"
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

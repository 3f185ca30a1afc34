"""Attention of one layer through the kernels."""

from __future__ import annotations

import copy

import mlx.core as mx

from tqchat.kv.attention.reference import attention
from tqchat.kv.kernels.device import TOLERANCE, Kernels, kernels, relative_error
from tqchat.kv.kernels.launch import StepLauncher
from tqchat.kv.kernels.plan import Plan, plan_for
from tqchat.kv.kernels.workspace import Workspace
from tqchat.kv.storage.side import Side
from tqchat.kv.storage.threads import thread_key


class FusedAttention:
    """Kernel attention of one layer, with launch state reused between steps.

    Attributes:
        workspace: The layer's own, unless shared with others (``SchemeCache.share``).
    """

    def __init__(self) -> None:
        self.workspace = Workspace()
        # By thread, query rows and pending tokens: steps with and without draft tokens alternate, and so do
        # layers that share a cache, of which only the first finds a pending token.
        self._launchers: dict[tuple[object, int, bool, bool], StepLauncher] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays kept between steps."""
        return sum(launcher.nbytes for launcher in self._launchers.values())

    def __call__(
        self,
        queries: mx.array,
        keys: Side,
        values: Side,
        scale: float,
        mask: mx.array | str | None,
        sink_logits: mx.array | None = None,
    ) -> mx.array | None:
        """``attention`` in one or two kernels; ``None`` where no kernel applies.

        Arguments as for ``attention``. Several query rows are supported under the causal mask only.
        """
        step_key = _step_key(queries, keys, values)
        launcher = self._launchers.get(step_key)
        output = None if launcher is None else launcher.run(queries, keys, values, scale, mask, sink_logits)
        if output is None:
            output = self._plan_and_launch(queries, keys, values, scale, mask, sink_logits)
        return output

    def steady_launcher(self, queries: mx.array) -> StepLauncher | None:
        """The launcher that serves steps of one token, if there is one for these queries."""
        return self._launchers.get((thread_key(), 1, True, True)) if queries.shape[2] == 1 else None

    def _plan_and_launch(
        self,
        queries: mx.array,
        keys: Side,
        values: Side,
        scale: float,
        mask: mx.array | str | None,
        sink_logits: mx.array | None,
    ) -> mx.array | None:
        """Attention without a matching launcher: plan, verify on first use, or return ``None``."""
        device_kernels = kernels()
        if device_kernels is None or isinstance(mask, mx.array) or (mask is None and queries.shape[2] > 1):
            return None
        arguments = queries, keys, values, scale, mask, sink_logits
        plan = plan_for(queries, keys, values, sink_logits is not None, device_kernels)
        if plan is None:
            return None
        if plan in device_kernels.refused:
            if keys.recent.pending is None and values.recent.pending is None:
                return None
            # Without a pending token another plan applies, which may be trusted.
            for side in (keys, values):
                side.recent.write_pending()
            return self(*arguments)
        if plan not in device_kernels.trusted:
            return _verify(device_kernels, plan, queries, keys, values, scale, mask, sink_logits)
        step_key = _step_key(queries, keys, values)
        # Launchers of formats or sinks that the cache no longer has are dropped.
        current = {key: other for key, other in self._launchers.items() if other.matches(keys, values)}
        launcher = StepLauncher(plan, *arguments, self.workspace)
        self._launchers = current | {step_key: launcher}
        return launcher.run(*arguments)


def _step_key(queries: mx.array, keys: Side, values: Side) -> tuple[object, int, bool, bool]:
    pending = keys.recent.pending is not None, values.recent.pending is not None
    return thread_key(), queries.shape[2], *pending


def _verify(
    device_kernels: Kernels,
    plan: Plan,
    queries: mx.array,
    keys: Side,
    values: Side,
    scale: float,
    mask: str | None,
    sink_logits: mx.array | None,
) -> mx.array:
    """First attention of a plan, compared with plain operations, which also write the tails."""
    arguments = queries, keys, values, scale, mask, sink_logits
    copies = queries, with_own_tail(keys), with_own_tail(values), scale, mask, sink_logits

    def candidate() -> list[mx.array]:
        # A workspace of its own, which a faulty kernel cannot spoil for others.
        output = StepLauncher(plan, *copies, Workspace()).run(*copies)
        return [] if output is None else [output, *(side.recent.view()[0] for side in copies[1:3])]

    def inputs() -> list[mx.array]:
        arrays = [queries] if sink_logits is None else [queries, sink_logits]
        return [*arrays, *keys.arrays().values(), *values.arrays().values()]

    def reference() -> list[mx.array]:
        return [attention(*arguments), *(side.recent.view()[0] for side in (keys, values))]

    return device_kernels.verify_first_use(plan, inputs, reference, candidate, _error)[0]


def with_own_tail(side: Side) -> Side:
    """A shallow copy of a side whose pending token can be written without changing ``side``."""
    copied = copy.copy(side)
    copied.recent = side.recent.with_own_buffer()
    return copied


def _error(reference: list[mx.array], candidate: list[mx.array]) -> str | None:
    if not candidate:
        return "it does not run for the arrays it was planned for"
    (expected, *expected_tails), (output, *candidate_tails) = reference, candidate
    error = relative_error(expected, output)
    if not error <= TOLERANCE:
        return f"it differs from the plain operations by {error:.2g}"
    if not all(
        mx.array_equal(x, y, equal_nan=True).item()
        for x, y in zip(expected_tails, candidate_tails, strict=True)
    ):
        return "it does not write the last token as the plain operations do"
    return None

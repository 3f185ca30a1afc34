"""A short way through Python for decode steps that are like the last one."""

from __future__ import annotations

import operator

import mlx.core as mx

from tqchat.kv.kernels.launch import NextToken, StepLauncher, flat
from tqchat.kv.storage.placeholders import Placeholders
from tqchat.kv.storage.side import Side
from tqchat.kv.storage.threads import thread_key
from tqchat.kv.storage.token_store import MAX_DEFERRED_TAIL_TOKENS


class SteadyStep:
    """Steps of one token of a layer, as long as the same launcher serves and nothing is due to be packed.

    The host builds a layer's step in a few microseconds, and many models wait for it. So what the sides'
    revisions determine is looked up once, here; the tokens are appended to the sides as ever.

    Args:
        launcher: That of steps that write a token into both tails.
        keys, values: The sides after such a step.
        placeholders: What stands for the decoded tokens.
    """

    def __init__(self, launcher: StepLauncher, keys: Side, values: Side, placeholders: Placeholders) -> None:
        self._launcher, self._placeholders = launcher, placeholders
        self._thread = thread_key()
        self._token_shape = keys.recent.token_shape
        self._key_revision, self._value_revision = keys.revision, values.revision
        # Tokens in the tail of the keys from which one more makes a side due, or is written plainly.
        until_due = min(side.tokens_until_due for side in (keys, values))
        self._limit = min(keys.recent.length + until_due - 1, MAX_DEFERRED_TAIL_TOKENS)
        self._before_tail = keys.length - keys.recent.length
        self._arrays: list[mx.array] = []
        self._views: list[mx.array] = []

    def append(
        self, keys: Side, values: Side, key: mx.array, value: mx.array
    ) -> tuple[mx.array, mx.array] | None:
        """Append a token to both sides and return the placeholders for all tokens.

        Args:
            key: ``[batch, heads, 1, key_dim]``; ``value`` likewise.

        Returns:
            ``None`` if this is another kind of step; nothing is appended then.
        """
        key_tail, value_tail = keys.recent, values.recent
        if key.shape != self._token_shape or not self._is_next(keys, values):
            return None
        # Dtypes and the value's shape are checked where the launch is traced.
        if not key_tail.defer(key):
            keys.append(key)
        if not value_tail.defer(value):
            values.append(value)
        return self._placeholders.of_length(self._before_tail + key_tail.length)

    def _is_next(self, keys: Side, values: Side) -> bool:
        return (
            keys.revision is self._key_revision
            and values.revision is self._value_revision
            and keys.recent.length < self._limit
            and self._thread is thread_key()
        )

    def next_token(self, keys: Side, values: Side) -> NextToken | None:
        """The launch of the next step, its arrays as ``flat`` views.

        ``None`` if the step is of another kind, or if tokens must move before it.
        """
        has_slots = keys.recent.has_unused_slot and values.recent.has_unused_slot
        found = self._launcher.next_token(keys, values) if has_slots and self._is_next(keys, values) else None
        if found is None:
            return None
        if not self._arrays or not all(map(operator.is_, found.arrays, self._arrays)):
            self._arrays, self._views = found.arrays, [flat(array) for array in found.arrays]
        return found._replace(arrays=self._views)

    def attend(
        self,
        keys: Side,
        values: Side,
        queries: mx.array,
        scale: float,
        mask: mx.array | str | None,
        sink_logits: mx.array | None,
    ) -> mx.array | None:
        """Attention after ``append``; ``None`` if the launcher does not serve the arguments."""
        if keys.recent.pending is None or values.recent.pending is None:
            return None
        return self._launcher.run(queries, keys, values, scale, mask, sink_logits)

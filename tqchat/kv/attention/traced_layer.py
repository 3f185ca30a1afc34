"""The caches that a model sees while a step of it is traced (see ``compiled_step``)."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from tqchat.kv.kernels.launch import Attention, UnexpectedArrays
from tqchat.kv.storage.placeholders import placeholders_for


class CannotTrace(Exception):
    """The model uses its caches in a way that a traced step does not provide for."""


class LaunchOrder:
    """The launches of a step, one after the other.

    Attributes:
        before: Output of the last one.
    """

    def __init__(self, before: mx.array) -> None:
        self.before = before


class TracedLayer:
    """Stands for a ``SchemeCache`` in one step of one token, in the protocol of mlx-lm's ``KVCache``.

    A launch appends the token and attends to all; what else a cache can do is not there.

    Args:
        attention: The launch.
        sizes, arrays: Of the launch, see ``NextToken``.
        offset: Position of the token, ``[]``.
        order: Shared by the layers of the step.

    Attributes:
        was_attended: Whether the launch is part of the step.
    """

    def __init__(
        self,
        attention: Attention,
        sizes: mx.array,
        arrays: Sequence[mx.array],
        offset: mx.array,
        order: LaunchOrder,
    ) -> None:
        self.offset = offset
        self.was_attended = False
        self._attention, self._sizes, self._arrays, self._order = attention, sizes, arrays, order
        self._token: tuple[mx.array, mx.array] | None = None
        self._fetched: tuple[mx.array, mx.array] | None = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Keep the token and return placeholders.

        They are one token long: other steps have other numbers of tokens, so a model that uses the number
        must give other results than without being traced.

        Args:
            keys: ``[batch, heads, 1, key_dim]``; ``values`` likewise.
        """
        if self._token is not None:
            raise CannotTrace("a layer gets two tokens")
        self._token = keys, values
        dims, dtypes = (keys.shape[3], values.shape[3]), (keys.dtype, values.dtype)
        self._fetched = placeholders_for((keys.shape[0], keys.shape[1]), dims, dtypes).of_length(1)
        return self._fetched

    def is_last_fetch(self, keys: mx.array, values: mx.array) -> bool:
        """Whether these are the placeholders."""
        return self._fetched is not None and self._fetched[0] is keys and self._fetched[1] is values

    def attend(
        self, queries: mx.array, scale: float, mask: mx.array | str | None, sink_logits: mx.array | None
    ) -> mx.array:
        """Attention of the token, ``[batch, query_heads, 1, value_dim]``."""
        expected = self._attention
        if (
            self._token is None
            or self.was_attended
            or scale != expected.scale
            or mask is not expected.mask
            or sink_logits is not expected.sink_logits
        ):
            raise CannotTrace("a layer attends otherwise than in the last step")
        try:
            output = expected(queries, *self._token, self._order.before, self._sizes, self._arrays)
        except UnexpectedArrays:
            raise CannotTrace("queries or tokens have other shapes or dtypes") from None
        self._order.before = output
        self.was_attended = True
        return output

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> None:
        """The mask for one token, which sees all others: none."""
        if N != 1 or return_array or window_size is not None:
            raise CannotTrace("the model needs a mask")

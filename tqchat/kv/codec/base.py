"""The interface of storage formats, and the raw format.

Every array of an encoded block is ``[batch, heads, tokens, ...]``, so that storage can append, trim and slice
along the token axis without knowing the format. ``multiply`` and ``sum`` are attention's two products with
stored vectors. Rotation and balance are applied to queries (``fold``) and undone on sums (``unfold``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Self

import mlx.core as mx

from tqchat.kv.codec.fitting import QueryStatistics

Block = tuple[mx.array, ...]
"""Encoded vectors: arrays ``[batch, heads, tokens, ...]``."""


class Format(Protocol):
    """Encoder and decoder of vectors, and attention's products with encoded ones."""

    @property
    def shared(self) -> dict[str, mx.array]:
        """Arrays that decoding needs and all layers share, by name."""
        ...

    @property
    def fitted(self) -> dict[str, mx.array]:
        """Arrays that decoding needs and ``fit`` made for this layer, by name."""
        ...

    def fit(self, x: mx.array, statistics: QueryStatistics) -> Format:
        """This format fitted to vectors, before the first of them is encoded.

        Args:
            x: ``[batch, heads, tokens, head_dim]``.
        """
        ...

    @property
    def working_bytes(self) -> int:
        """Bytes of the arrays kept between steps beside the fit."""
        ...

    def release_working_arrays(self) -> None:
        """Release them; the next step computes them again."""
        ...

    def with_fit_of(self, other: Format) -> Format:
        """This format with the fit of another of the same role; unfitted if it needs more than that has."""
        ...

    @property
    def length_keeping(self) -> Format:
        """Encoder for vectors that were rounded to as few bits before; its blocks are this format's.

        An unbiased gain is longer than the vector, and would grow with each of several roundings.
        """
        ...

    def encode(self, x: mx.array) -> Block:
        """Encode vectors ``[batch, heads, tokens, head_dim]``."""
        ...

    def decode(self, block: Block) -> mx.array:
        """The vectors of a block, float32 ``[batch, heads, tokens, head_dim]``."""
        ...

    def prepare(self, block: Block, fine: Block = ()) -> Any:
        """What ``multiply`` and ``sum`` take for a block and the fine tokens behind it.

        Args:
            block: May be empty if ``fine`` is not.
            fine: Only of rotated formats.
        """
        ...

    def fold(self, queries: mx.array) -> mx.array:
        """Map queries to the space of stored vectors.

        ``queries @ decode(block)^T == folded @ stored^T``, where ``stored`` is centroids times gain plus
        centre (turbo) or the dequantised groups plus mean (affine).

        Args:
            queries: float32 ``[batch, heads, rows, head_dim]``.

        Returns:
            float32 ``[batch, heads, rows, stored_dim]``.
        """
        ...

    def unfold(self, total: mx.array) -> mx.array:
        """Map sums of stored vectors back to the space of values.

        Args:
            total: Weighted sums of stored vectors, float32 ``[batch, heads, rows, stored_dim]``.

        Returns:
            float32 ``[batch, heads, rows, head_dim]``.
        """
        ...

    def multiply(self, folded: mx.array, prepared: Any) -> mx.array:
        """Dot products of folded queries with stored vectors.

        Args:
            folded: float32 ``[batch, heads, rows, stored_dim]``.
            prepared: From ``prepare``.

        Returns:
            float32 ``[batch, heads, rows, tokens]``.
        """
        ...

    def sum(self, weights: mx.array, prepared: Any, depends_on: mx.array | None = None) -> mx.array:
        """Weighted sums of stored vectors.

        Args:
            weights: float32 ``[batch, heads, rows, tokens]``.
            prepared: From ``prepare``.
            depends_on: An array evaluated before the weights; dequantising may start once it is there, in
                parallel with computing the weights.

        Returns:
            float32 ``[batch, heads, rows, stored_dim]``.
        """
        ...


class FittedFormat:
    """Common part of the formats: the balance.

    ``balance`` (keys only) multiplies each channel and divides the queries': sqrt(rms of queries / rms of
    keys) minimises the error of their product among diagonal maps, and makes the codec independent of how a
    model scales its channels. It is float16 ``[batch, heads, 1, head_dim]``, and fixed once the first vector
    is encoded.
    """

    balance: mx.array | None = None

    @property
    def mean(self) -> mx.array | None:
        """Expected vector of keys, float16 ``[batch, heads, 1, head_dim]``; ``None`` if not fitted."""
        return None

    @property
    def shared(self) -> dict[str, mx.array]:
        return {}

    @property
    def fitted(self) -> dict[str, mx.array]:
        return {} if self.balance is None else {"balance": self.balance}

    @property
    def length_keeping(self) -> Self:
        return self

    @property
    def working_bytes(self) -> int:
        fitted = {id(array) for array in self.fitted.values()}
        held = (array for array in vars(self).values() if isinstance(array, mx.array))
        return sum(array.nbytes for array in held if id(array) not in fitted)

    def release_working_arrays(self) -> None:
        pass

    def fold(self, queries: mx.array) -> mx.array:
        return self._to_stored(queries if self.balance is None else queries / self.balance)

    def unfold(self, total: mx.array) -> mx.array:
        total = self._from_stored(total)
        return total if self.balance is None else total / self.balance

    def decode(self, block: Block) -> mx.array:
        return self.unfold(self._dequantise(self.prepare(block)))

    def prepare(self, block: Block, fine: Block = ()) -> Any:
        assert not fine
        return block

    def _balanced(self, x: mx.array) -> mx.array:
        """Vectors as float32, balanced."""
        x = x.astype(mx.float32)
        return x if self.balance is None else x * self.balance

    def _to_stored(self, x: mx.array) -> mx.array:
        raise NotImplementedError

    def _from_stored(self, x: mx.array) -> mx.array:
        raise NotImplementedError

    def _dequantise(self, prepared: Any) -> mx.array:
        raise NotImplementedError


class RawFormat(FittedFormat):
    """Vectors unchanged."""

    def fit(self, x: mx.array, statistics: QueryStatistics) -> Self:
        return self

    def with_fit_of(self, other: Format) -> Self:
        return self

    def encode(self, x: mx.array) -> Block:
        return (x,)

    def multiply(self, folded: mx.array, prepared: Any) -> mx.array:
        return folded @ self._dequantise(prepared).swapaxes(-1, -2)

    def sum(self, weights: mx.array, prepared: Any, depends_on: mx.array | None = None) -> mx.array:
        return weights @ self._dequantise(prepared)

    def _to_stored(self, x: mx.array) -> mx.array:
        return x

    def _from_stored(self, x: mx.array) -> mx.array:
        return x

    def _dequantise(self, prepared: Block) -> mx.array:
        return prepared[0].astype(mx.float32)


def concatenate(parts: Sequence[mx.array], axis: int = -1) -> mx.array:
    """The parts along an axis; one alone is not copied."""
    return parts[0] if len(parts) == 1 else mx.concatenate(list(parts), axis=axis)

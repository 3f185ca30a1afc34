"""Quantisers of rotated vectors of unit variance: scalar (turbo) and trellis codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx

from tqchat.kv.codec.codebook import quantise
from tqchat.kv.codec.packing import byte_planes, lookup, pack
from tqchat.kv.codec.rounding import quantise_shaped
from tqchat.kv.scheme import FINE_BITS


class Quantiser(Protocol):
    """Encoder and decoder of rotated vectors of unit variance."""

    @property
    def bits(self) -> int:
        """Bits of code per coordinate."""
        ...

    def quantise(self, unit: mx.array, metric: mx.array | None) -> tuple[mx.array, mx.array]:
        """Encode vectors.

        Args:
            unit: float32 ``[..., head_dim]`` of unit variance.
            metric: Cost of a squared error in each coordinate before a Hadamard rotation; ``None`` if all
                are equal or the rotation is another.

        Returns:
            Packed codes ``uint32 [..., words]`` and the values they decode to, float32 ``[..., head_dim]``.
        """
        ...

    def prepare(self, words: mx.array, head_dim: int) -> tuple[mx.array, ...]:
        """Arguments of ``lookup`` for packed codes, reusable over many calls: views of the words."""
        ...

    def lookup(self, prepared: Sequence[mx.array], head_dim: int) -> mx.array:
        """Values of packed codes, float32 ``[..., values]``, in the order of ``arrange``."""
        ...

    def arrange(self, x: mx.array) -> mx.array:
        """Vectors ``[..., head_dim]`` with coordinates in the order of ``lookup``: ``[..., values]``."""
        ...

    def restore(self, x: mx.array, head_dim: int) -> mx.array:
        """The inverse of ``arrange``."""
        ...


@dataclass(frozen=True)
class ScalarQuantiser:
    """Each coordinate is rounded to a Lloyd-Max codebook; under a metric with linear feedback."""

    bits: int

    def quantise(self, unit: mx.array, metric: mx.array | None) -> tuple[mx.array, mx.array]:
        if metric is None:
            codes, values = quantise(unit, self.bits)
        else:
            codes, values = quantise_shaped(unit, metric, self.bits)
        return pack(codes, self.bits), values

    def prepare(self, words: mx.array, head_dim: int) -> tuple[mx.array, ...]:
        return byte_planes(words, self.bits, head_dim)

    def lookup(self, prepared: Sequence[mx.array], head_dim: int) -> mx.array:
        return lookup(prepared, self.bits, head_dim)

    def arrange(self, x: mx.array) -> mx.array:
        return x

    def restore(self, x: mx.array, head_dim: int) -> mx.array:
        return x


FINE_QUANTISER = ScalarQuantiser(FINE_BITS)
"""Quantiser of fine tokens."""

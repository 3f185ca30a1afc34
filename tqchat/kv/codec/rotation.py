"""Random orthogonal rotations that spread a vector's energy evenly over its coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import mlx.core as mx
import numpy as np

KEY_SEED, VALUE_SEED = 42, 43


class UnsupportedHeadDim(ValueError):
    """A head dimension that no rotation can serve."""


@dataclass(frozen=True, eq=False)
class Rotation:
    """An orthogonal map on the last axis, held as what it needs to be the same after a restart.

    ``array`` is ``float32 [head_dim]``, the +1/-1 signs of a randomised Hadamard transform, for a power of
    two; else a dense orthogonal matrix ``float32 [head_dim, head_dim]``. It is stored with the caches it
    rotated, never drawn again: random generators change between releases.
    """

    array: mx.array

    @property
    def head_dim(self) -> int:
        return int(self.array.shape[-1])

    @property
    def is_hadamard(self) -> bool:
        return self.array.ndim == 1

    def rotate(self, x: mx.array) -> mx.array:
        """Rotate vectors ``[..., head_dim]`` float32; lengths and dot products are kept."""
        if self.is_hadamard:
            return mx.hadamard_transform(x * self.array)
        return x @ self.array

    def unrotate(self, x: mx.array) -> mx.array:
        """The inverse of ``rotate``."""
        if self.is_hadamard:
            return mx.hadamard_transform(x) * self.array
        return x @ self.array.T


@lru_cache(maxsize=32)
def draw_rotation(head_dim: int, seed: int) -> Rotation:
    """A fresh rotation: randomised Hadamard for a power of two, else the orthogonal factor of a Gaussian
    matrix.

    MLX's Hadamard transform also takes some other sizes, but was seen to corrupt memory at 576 on a CPU;
    dense is safe and, at head dimensions, cheap.

    Raises:
        UnsupportedHeadDim: if ``head_dim`` is less than 2.
    """
    if head_dim < 2:
        raise UnsupportedHeadDim(f"No rotation for a head dimension of {head_dim}.")
    rng = np.random.default_rng([seed, head_dim])
    if head_dim & (head_dim - 1) == 0:
        array = mx.array(rng.integers(0, 2, head_dim) * 2.0 - 1.0, dtype=mx.float32)
    else:
        q, r = np.linalg.qr(rng.standard_normal((head_dim, head_dim)))
        array = mx.array(q * np.sign(np.diag(r)), dtype=mx.float32)
    mx.eval(array)
    return Rotation(array)


def restored_rotation(array: mx.array, drawn: Rotation) -> Rotation:
    """The rotation in an array from disk; the drawn one where they are equal, so that layers share it."""
    if drawn.array.shape == array.shape and mx.array_equal(drawn.array, array).item():
        return drawn
    return Rotation(array)

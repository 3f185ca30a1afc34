"""Random orthogonal rotations that spread a vector's energy evenly over its coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import mlx.core as mx
import numpy as np

KEY_SEED, VALUE_SEED = 42, 43


class UnsupportedHeadDim(ValueError):
    """No rotation of this size is available."""


@dataclass(frozen=True, eq=False)
class Rotation:
    """An orthogonal map on the last axis.

    ``array`` is ``float32 [head_dim]``, the +1/-1 signs of a randomised Hadamard transform, for a power of
    two; else a dense orthogonal matrix ``float32 [head_dim, head_dim]``. It is saved with the caches it
    rotated and never drawn again, because random generators change between releases.
    """

    array: mx.array

    @property
    def head_dim(self) -> int:
        return int(self.array.shape[-1])

    @property
    def is_hadamard(self) -> bool:
        return self.array.ndim == 1

    def rotate(self, x: mx.array) -> mx.array:
        """Rotate vectors ``[..., head_dim]`` float32; preserves lengths and dot products."""
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
    """A new rotation: randomised Hadamard for a power of two, else the Q factor of a Gaussian matrix.

    MLX's Hadamard transform accepts some other sizes, but corrupted memory at 576 on a CPU; a dense matrix is
    safe and cheap at head dimensions.

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


def restore_rotation(array: mx.array, drawn: Rotation) -> Rotation:
    """The rotation of a saved array; ``drawn`` itself if equal, so that layers share one array."""
    if drawn.array.shape == array.shape and mx.array_equal(drawn.array, array).item():
        return drawn
    return Rotation(array)

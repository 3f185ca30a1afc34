"""Rounding that puts errors where they cost least."""

from __future__ import annotations

import mlx.core as mx

from tqchat.kv.codec.codebook import quantise

LEAF = 16
"""Coordinates rounded at once, without regard to each other: 8 gained 1 % more, at twice the steps."""


def quantise_shaped(y: mx.array, metric: mx.array, bits: int) -> tuple[mx.array, mx.array]:
    """Codes for Hadamard-rotated vectors whose error is weighed before the rotation.

    Half of the coordinates is rounded first; what the other half can do to make up for their error, it does:
    its target is moved by the best linear prediction. So on within each half, down to ``LEAF``.

    In the rotated space the cost of an error e is e' C e with C = H diag(metric) H. Cut into halves, C is
    [[A, B], [B, A]], and A and B are again of that form, with half as many eigenvalues: A and B commute, what
    each half needs (A, and A - B A^-1 B) and the prediction (A^-1 B) are lists of eigenvalues, and no matrix
    is ever built.

    Args:
        y: float32 ``[..., head_dim]`` of unit variance, after ``mx.hadamard_transform``; a power of two wide.
        metric: The cost of an error in each coordinate before it: positive, broadcastable to ``y``.

    Returns:
        Codes and centroids, as ``quantise``.

    Source: rounding with linear feedback as in LDLQ (QuIP, arXiv 2307.13304), for metrics that a Hadamard
    transform diagonalises.
    """
    width = y.shape[-1]
    if width <= LEAF:
        return quantise(y, bits)
    half = width // 2
    low, high = metric[..., :half], metric[..., half:]
    total = low + high
    first = quantise_shaped(y[..., :half], 2 * low * high / total, bits)
    error = mx.hadamard_transform(first[1] - y[..., :half])
    moved = mx.hadamard_transform(error * ((low - high) / total))
    second = quantise_shaped(y[..., half:] - moved, total / 2, bits)
    codes, centroids = (mx.concatenate(list(pair), axis=-1) for pair in zip(first, second, strict=True))
    return codes, centroids

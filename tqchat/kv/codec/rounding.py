"""Rounding with linear feedback: shifts errors to channels where they cost little."""

from __future__ import annotations

import mlx.core as mx

from tqchat.kv.codec.codebook import quantise

LEAF_SIZE = 16
"""Coordinates rounded without feedback among them; 8 gained 1 % more at twice the steps."""


def quantise_shaped(y: mx.array, metric: mx.array, bits: int) -> tuple[mx.array, mx.array]:
    """Quantise Hadamard-rotated vectors under an error metric given before the rotation.

    The first half of the coordinates is rounded first; the target of the second half is then moved by the
    best linear prediction of that error. This recurses within each half down to ``LEAF_SIZE``.

    In the rotated space an error e costs e' C e with C = H diag(metric) H. In halves, C is [[A, B], [B, A]],
    and A and B have the same form with half as many eigenvalues. A and B commute, so the metrics of the
    halves (A, and A - B A^-1 B) and the predictor (A^-1 B) are lists of eigenvalues, and no matrix is ever
    formed.

    Args:
        y: float32 ``[..., head_dim]`` of unit variance, after ``mx.hadamard_transform``; head_dim a power of
            two.
        metric: Cost of a squared error in each coordinate before it: positive, broadcastable to ``y``.

    Returns:
        Codes and centroids, as ``quantise``.

    Source: rounding with linear feedback as in LDLQ (QuIP, arXiv 2307.13304), for metrics diagonalised by a
    Hadamard transform.
    """
    width = y.shape[-1]
    if width <= LEAF_SIZE:
        return quantise(y, bits)
    half = width // 2
    low, high = metric[..., :half], metric[..., half:]
    total = low + high
    first = quantise_shaped(y[..., :half], 2 * low * high / total, bits)
    error = mx.hadamard_transform(first[1] - y[..., :half])
    correction = mx.hadamard_transform(error * ((low - high) / total))
    second = quantise_shaped(y[..., half:] - correction, total / 2, bits)
    codes, centroids = (mx.concatenate(list(pair), axis=-1) for pair in zip(first, second, strict=True))
    return codes, centroids

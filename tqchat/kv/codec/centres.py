"""Centres: a few vectors per head, fitted to the prompt, relative to which vectors are encoded.

The index of a vector's centre is stored in bits of its float16 gain, so that it costs no memory: in the sign,
as gains are positive, and in the lowest bits, which leaves a gain that is exact to 0.4 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from tqchat.kv.scheme import CENTRES

MAX_FIT_VECTORS = 1024
"""Vectors that centres are fitted to, evenly spaced."""

ITERATIONS = 8
"""Steps of k-means."""

_STEP = CENTRES // 2
"""Distance of two gains that name the same centre, in units of the last place of a float16."""

_LARGEST_WORD, _NAN_WORD, _SIGN = 0x7BFF, 0x7E00, 0x8000
"""Bits of the largest finite float16 and of NaN, and the sign bit."""

_LARGEST_CODE = 127
"""Largest code of a centre, a signed byte. Vectors are encoded relative to the rounded centre."""


@dataclass(frozen=True, eq=False)
class Centres:
    """Centres of each head, in the space of rotated vectors.

    Attributes:
        codes: int8 ``[batch, heads, CENTRES, head_dim]``.
        scales: Factors of the codes, float16 ``[batch, heads, CENTRES, 1]``.
    """

    codes: mx.array
    scales: mx.array

    @property
    def vectors(self) -> mx.array:
        """float32 ``[batch, heads, CENTRES, head_dim]``; not kept, as the codes are four times smaller."""
        return self.codes.astype(mx.float32) * self.scales.astype(mx.float32)

    def nearest(self, y: mx.array) -> mx.array:
        """Index of the nearest centre of rotated vectors ``[batch, heads, tokens, head_dim]``.

        Returns:
            uint32 ``[batch, heads, tokens, 1]``.
        """
        return _nearest(y, self.vectors)

    def of(self, index: mx.array) -> mx.array:
        """Centres by index ``[batch, heads, tokens, 1]``: float32 ``[batch, heads, tokens, head_dim]``."""
        return one_hot(index).swapaxes(-1, -2) @ self.vectors


def cluster(x: mx.array, first: mx.array) -> mx.array:
    """Centres of vectors by k-means, the first of them given.

    Args:
        x: float32 ``[batch, heads, tokens, head_dim]``. Vectors that are not finite are ignored.
        first: float32 ``[batch, heads, 1, head_dim]``.

    Returns:
        float32 ``[batch, heads, CENTRES, head_dim]``.
    """
    x = x[:, :, :: -(-x.shape[2] // MAX_FIT_VECTORS)]
    finite = mx.isfinite(x.square().sum(axis=-1, keepdims=True))
    x = mx.where(finite, x, first)
    count = x.shape[2]
    spread = mx.array([count * i // (CENTRES - 1) for i in range(CENTRES - 1)], dtype=mx.uint32)
    start = mx.take(x, spread, axis=2)
    centres = mx.concatenate([first, start], axis=2)
    for _ in range(ITERATIONS):
        members = one_hot(_nearest(x, centres))
        sizes = members.sum(axis=-1, keepdims=True)
        means = (members @ x) / mx.maximum(sizes, 1)
        centres = mx.concatenate([first, mx.where(sizes > 0, means, centres)[:, :, 1:]], axis=2)
    return centres


def store_centres(vectors: mx.array) -> Centres:
    """Centres from rotated vectors, float32 ``[batch, heads, CENTRES, head_dim]``."""
    scales = (mx.abs(vectors).max(axis=-1, keepdims=True) / _LARGEST_CODE).astype(mx.float16)
    codes = mx.round(vectors / mx.maximum(scales.astype(mx.float32), 1e-20))
    return Centres(mx.clip(codes, -_LARGEST_CODE, _LARGEST_CODE).astype(mx.int8), scales)


def _nearest(x: mx.array, centres: mx.array) -> mx.array:
    products = x @ centres.swapaxes(-1, -2) - centres.square().sum(axis=-1)[:, :, None] / 2
    return products.argmax(axis=-1, keepdims=True)


def one_hot(index: mx.array) -> mx.array:
    """float32 ``[batch, heads, CENTRES, tokens]`` from indices ``[batch, heads, tokens, 1]``."""
    return (index.swapaxes(-1, -2) == mx.arange(CENTRES, dtype=index.dtype)[:, None]).astype(mx.float32)


def join_gain(gain: mx.array, index: mx.array) -> mx.array:
    """The float16 nearest to a gain whose sign and low bits are the index of a centre.

    Args:
        gain: Not negative, float32 ``[batch, heads, tokens, 1]``; NaN for a vector that is not finite.
        index: uint32 of that shape.
    """
    words = gain.astype(mx.float16).view(mx.uint16).astype(mx.int32)
    low = index.astype(mx.int32) % _STEP
    steps = mx.clip((words - low + _STEP // 2) // _STEP, 0, (_LARGEST_WORD - low) // _STEP)
    sign = mx.where(index >= _STEP, _SIGN, 0)
    joined = mx.where(mx.isnan(gain), _NAN_WORD, sign + steps * _STEP + low)
    return joined.astype(mx.uint16).view(mx.float16)


def index_of(gain: mx.array) -> mx.array:
    """Indices of centres in gains ``[batch, heads, tokens, 1]``: uint8 of that shape."""
    words = gain.view(mx.uint16)
    return ((words & (_STEP - 1)) | ((words >> 12) & _STEP)).astype(mx.uint8)

"""Codes of b bits <-> ``uint32`` words.

A word holds ``32 // b`` codes, the first in its lowest bits, for b of 1, 2 and 4. Three bits are stored as
two planes, magnitude (2 bits) and sign (1 bit), one after the other, so that no code crosses a word and no
bit is wasted.
"""

from __future__ import annotations

import mlx.core as mx

from tqchat.kv.codebook import byte_table, sign_table
from tqchat.kv.scheme import planes


def pack(codes: mx.array, bits: int) -> mx.array:
    """Pack codes along the last axis.

    Args:
        codes: ``uint32 [..., head_dim]``, each below ``2**bits``.

    Returns:
        ``uint32 [..., words]``; a head dim that does not fill its last word is padded with zeros.
    """
    parts = []
    shift = 0
    for width in planes(bits):
        parts.append(_pack_plane((codes >> shift) & ((1 << width) - 1), width))
        shift += width
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=-1)


def _pack_plane(codes: mx.array, width: int) -> mx.array:
    per_word = 32 // width
    missing = -codes.shape[-1] % per_word
    if missing:
        codes = mx.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, missing)])
    codes = codes.reshape(*codes.shape[:-1], -1, per_word)
    # The codes occupy disjoint bits, so a sum is an or.
    return (codes << mx.arange(0, 32, width, dtype=mx.uint32)).sum(axis=-1)


def unpack(words: mx.array, bits: int, head_dim: int) -> mx.array:
    """The inverse of ``pack``: ``uint32 [..., head_dim]``."""
    codes = None
    start = shift = 0
    for width in planes(bits):
        count = -(-head_dim * width // 32)
        plane = words[..., start : start + count, None] >> mx.arange(0, 32, width, dtype=mx.uint32)
        plane = (plane & ((1 << width) - 1)).reshape(*words.shape[:-1], -1)[..., :head_dim]
        codes = plane if codes is None else codes | (plane << shift)
        start += count
        shift += width
    assert codes is not None
    return codes


def lookup(words: mx.array, bits: int, head_dim: int) -> mx.array:
    """Centroids of packed codes, one gather a byte: float32 ``[..., head_dim]``.

    Equal to ``centroids[unpack(words)]`` and several times faster in plain operations, which is all a CPU
    has.
    """
    if bits != 3:
        return _gather(words, byte_table(bits), head_dim)
    split = -(-head_dim * 2 // 32)
    magnitude = _gather(words[..., :split], byte_table(2, signed=False), head_dim)
    return magnitude * _gather(words[..., split:], sign_table(), head_dim)


def _gather(words: mx.array, table: mx.array, head_dim: int) -> mx.array:
    values = table[mx.contiguous(words).view(mx.uint8)]
    return values.reshape(*words.shape[:-1], -1)[..., :head_dim]

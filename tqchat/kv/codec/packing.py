"""Codes of b bits <-> ``uint32`` words.

A word holds ``32 // b`` codes, the first in its lowest bits, for b of 1, 2 and 4. Codes of 3, 5 and 6 bits
are stored as two planes, their low bits (2, 4 and 4) and then their high bits, so that no code crosses a word
and no bit is wasted.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from tqchat.kv.codec.codebook import (
    byte_table,
    high_bits_table,
    nibble_table,
    nibbles_table,
    pairs_table,
    signs_table,
    values_table,
)
from tqchat.kv.scheme import plane_widths


def pack(codes: mx.array, bits: int) -> mx.array:
    """Pack codes along the last axis.

    Args:
        codes: ``uint32 [..., head_dim]``, each below ``2**bits``.

    Returns:
        ``uint32 [..., words]``; the last word is padded with zeros.
    """
    parts = []
    shift = 0
    for width in plane_widths(bits):
        parts.append(_pack_plane((codes >> shift) & ((1 << width) - 1), width))
        shift += width
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=-1)


def _pack_plane(codes: mx.array, width: int) -> mx.array:
    per_word = 32 // width
    padding = -codes.shape[-1] % per_word
    if padding:
        codes = mx.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, padding)])
    codes = codes.reshape(*codes.shape[:-1], -1, per_word)
    # Codes occupy disjoint bits, so their sum equals their bitwise or.
    return (codes << mx.arange(0, 32, width, dtype=mx.uint32)).sum(axis=-1)


def unpack(words: mx.array, bits: int, head_dim: int) -> mx.array:
    """The inverse of ``pack``: ``uint32 [..., head_dim]``."""
    codes = None
    start = shift = 0
    for width in plane_widths(bits):
        count = -(-head_dim * width // 32)
        plane = words[..., start : start + count, None] >> mx.arange(0, 32, width, dtype=mx.uint32)
        plane = (plane & ((1 << width) - 1)).reshape(*words.shape[:-1], -1)[..., :head_dim]
        codes = plane if codes is None else codes | (plane << shift)
        start += count
        shift += width
    assert codes is not None
    return codes


def byte_planes(words: mx.array, bits: int, head_dim: int) -> tuple[mx.array, ...]:
    """Arguments of ``lookup`` for packed codes, reusable over many calls.

    Args:
        words: ``uint32 [..., words]``, as ``pack`` returns.

    Returns:
        Each plane's bytes, a uint8 view of the words, and its decoding table (from 3 bits on: one row per
        vector).
    """
    widths = plane_widths(bits)
    if len(widths) == 1:
        table = byte_table(bits)
        return _byte_indices(words, table) if bits == 4 else (words.view(mx.uint8), table)
    split = -(-head_dim * widths[0] // 32)
    high = signs_table() if bits == 3 else high_bits_table(widths[1])
    return *_byte_indices(words[..., :split], nibbles_table()), *_byte_indices(words[..., split:], high)


def lookup(planes: Sequence[mx.array], bits: int, head_dim: int) -> mx.array:
    """Centroids of packed codes: float32 ``[..., head_dim]``, equal to ``centroids[unpack(words)]``.

    A table maps a byte to its centroids, two to an entry (3-bit codes: a byte made of both planes), or at 5
    and 6 bits a code to its centroid. Entries are taken along an axis, which a CPU does 20 times faster than
    gathering rows.

    Args:
        planes: As returned by ``byte_planes``.
    """
    shape = planes[0].shape[:-1]
    if bits > 4:
        low, low_of, high, high_of = planes
        codes = mx.take_along_axis(low_of, low, axis=-1).view(mx.uint8)
        above = mx.take_along_axis(high_of, high, axis=-1).view(mx.uint8)
        entries = _take(values_table(bits), codes + above[..., : codes.shape[-1]])
    elif bits == 3:
        magnitudes, magnitudes_of, signs, signs_of = planes
        pairs = mx.take_along_axis(magnitudes_of, magnitudes, axis=-1).view(mx.uint32)
        above = mx.take_along_axis(signs_of, signs, axis=-1)
        entries = _take(pairs_table(), (pairs + above[..., : pairs.shape[-1]]).view(mx.uint8))
    else:
        indices, table = planes
        if bits == 4:
            return mx.take_along_axis(table, indices, axis=-1).view(mx.float32)[..., :head_dim]
        entries = _take(table, indices)
    return entries.view(mx.float32).reshape(*shape, -1)[..., :head_dim]


def code_floats(words: mx.array, bits: int) -> mx.array:
    """Codes of 4 or 8 bits, packed as by MLX, as float32 ``[..., 32 // bits * words]``."""
    if bits == 8:
        return mx.contiguous(words).view(mx.uint8).astype(mx.float32)
    indices, table = _byte_indices(words, nibble_table())
    return mx.take_along_axis(table, indices, axis=-1).view(mx.float32)


def _byte_indices(words: mx.array, table: mx.array) -> tuple[mx.array, mx.array]:
    indices = words.view(mx.uint8)
    return indices, mx.broadcast_to(table.reshape(-1), (*indices.shape[:-1], table.size))


def _take(table: mx.array, indices: mx.array) -> mx.array:
    return mx.take_along_axis(table, indices.reshape(-1, 1), axis=0)

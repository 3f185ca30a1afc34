"""Codes of b bits <-> ``uint32`` words.

A word holds ``32 // b`` codes, the first in its lowest bits, for b of 1, 2 and 4. Three bits are stored as
two planes, magnitude (2 bits) and sign (1 bit), one after the other, so that no code crosses a word and no
bit is wasted.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from tqchat.kv.codec.codebook import byte_table, magnitudes_table, nibble_table, pairs_table, signs_table
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


def byte_planes(words: mx.array, bits: int, head_dim: int) -> tuple[mx.array, ...]:
    """What ``lookup`` reads of packed codes, to be made once for many times: each plane's bytes, which are
    the words themselves seen otherwise, and the table that they are looked up in, as often as there are rows.
    """
    if bits != 3:
        table = byte_table(bits)
        return _rows(words, table) if bits == 4 else (words.view(mx.uint8), table)
    split = -(-head_dim * 2 // 32)
    return *_rows(words[..., :split], magnitudes_table()), *_rows(words[..., split:], signs_table())


def lookup(bytes_: Sequence[mx.array], bits: int, head_dim: int) -> mx.array:
    """Centroids of packed codes: float32 ``[..., head_dim]``, equal to ``centroids[unpack(words)]``.

    A table turns a byte (for codes in two planes, one made of both) into its centroids, two to an entry.
    Entries are taken along an axis: a CPU does that 20 times faster than it gathers rows.

    Args:
        bytes_: What ``byte_planes`` made of the words.
    """
    shape = bytes_[0].shape[:-1]
    if bits == 3:
        magnitudes, magnitudes_of, signs, signs_of = bytes_
        pairs = mx.take_along_axis(magnitudes_of, magnitudes, axis=-1).view(mx.uint32)
        above = mx.take_along_axis(signs_of, signs, axis=-1)
        found = _taken(pairs_table(), (pairs + above[..., : pairs.shape[-1]]).view(mx.uint8))
    else:
        indices, table = bytes_
        if bits == 4:
            return mx.take_along_axis(table, indices, axis=-1).view(mx.float32)[..., :head_dim]
        found = _taken(table, indices)
    return found.view(mx.float32).reshape(*shape, -1)[..., :head_dim]


def code_floats(words: mx.array, bits: int) -> mx.array:
    """Codes of 4 or 8 bits as numbers: float32 ``[..., 32 // bits * words]``, as MLX's quantisation packs
    them.
    """
    if bits == 8:
        return mx.contiguous(words).view(mx.uint8).astype(mx.float32)
    indices, table = _rows(words, nibble_table())
    return mx.take_along_axis(table, indices, axis=-1).view(mx.float32)


def _rows(words: mx.array, table: mx.array) -> tuple[mx.array, mx.array]:
    indices = words.view(mx.uint8)
    return indices, mx.broadcast_to(table.reshape(-1), (*indices.shape[:-1], table.size))


def _taken(table: mx.array, indices: mx.array) -> mx.array:
    return mx.take_along_axis(table, indices.reshape(-1, 1), axis=0)

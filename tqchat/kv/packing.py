"""Codes of b bits <-> ``uint32`` words.

A word holds ``32 // b`` codes, the first in its lowest bits, for b of 1, 2 and 4. Three bits are stored as
two planes, magnitude (2 bits) and sign (1 bit), one after the other, so that no code crosses a word and no
bit is wasted.
"""

from __future__ import annotations

import mlx.core as mx

from tqchat.kv.codebook import byte_table, magnitudes_table, nibble_table, pairs_table, signs_table
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
    """Centroids of packed codes: float32 ``[..., head_dim]``, equal to ``centroids[unpack(words)]``.

    A table turns a byte (for codes in two planes, one made of both) into its centroids, two to an entry.
    Entries are taken along an axis: a CPU does that 20 times faster than it gathers rows.
    """
    if bits != 3:
        found = _taken(byte_table(bits), words, mx.uint8)
    else:
        split = -(-head_dim * 2 // 32)
        if split % 2:  # a magnitude byte in vain, for which there is no half sign byte
            words = mx.concatenate([words[..., :split], words[..., split - 1 :]], axis=-1)
            split += 1
        magnitudes = _taken(magnitudes_table(), words[..., :split], mx.uint8).reshape(-1, 2).view(mx.uint32)
        signs = _taken(signs_table(), words[..., split:], mx.uint8)
        found = _taken(pairs_table(), magnitudes + signs, mx.uint8)
    return found.view(mx.float32).reshape(*words.shape[:-1], -1)[..., :head_dim]


def code_floats(words: mx.array, bits: int) -> mx.array:
    """Codes of 4 or 8 bits as numbers: float32 ``[..., 32 // bits * words]``, as MLX's quantisation packs
    them.
    """
    if bits == 8:
        return mx.contiguous(words).view(mx.uint8).astype(mx.float32)
    return _taken(nibble_table(), words, mx.uint8).view(mx.float32).reshape(*words.shape[:-1], -1)


def _taken(table: mx.array, indices: mx.array, dtype: mx.Dtype) -> mx.array:
    flat = mx.contiguous(indices).view(dtype).reshape(-1, 1)
    return mx.take_along_axis(table, flat, axis=0)

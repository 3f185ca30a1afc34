"""Trellis codes: a table of pairs of values, named by a window that slides over the code stream.

Coordinates are coded in pairs. Every pair adds a nibble to the stream; its window is its own nibble (high
bits) and the preceding one, so that a pair of values depends on 8 bits of which only 4 are its own. The
encoder finds the cheapest path through the 16 states (nibbles) with the Viterbi algorithm. The stream is
circular: the window of the first pair begins with the nibble of the last.

At 3 and 4 bits each pair has 2 or 4 further bits of its own in a second plane: the signs of both values, and
at 4 bits also which of four entries of the window is meant (its detail).

A row of words is the plane of nibbles, pair ``i`` in bits ``4 i``, then the second plane: at 3 bits a word
holds the signs of 16 pairs, those of first values in its low half and those of second values in its high
half; at 4 bits a word holds 8 pairs, their details and signs placed for the kernels (see ``_detail_shift``
and ``_sign_shift``). Sizes are those of scalar codes of as many bits.

Source: trellis-coded quantisation with a bit-shift trellis and a circular stream (QTIP, arXiv 2406.11235).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import mlx.core as mx

from tqchat.kv.codec.viterbi import PathSearch

NEAR_FROM = 320
"""Tokens from which only near branches are tried, at 4 bits and on a CPU: those of a prompt, not those that a
reply packs at a time. Not vectors, so that codes do not depend on what is packed with them.
"""

_TABLES = Path(__file__).with_name("trellis_tables.safetensors")
_TABLES_SHA256 = "d681060b7c53eee030e4e8cafc895523b00ebbf6981ada1b8c43d5dd4e0622f4"


class DamagedTables(RuntimeError):
    """The table file of the package is not the one this version was released with."""

    def __init__(self) -> None:
        super().__init__(f"{_TABLES.name} is damaged; reinstall tqchat.")


@lru_cache(maxsize=1)
def _tables() -> dict[str, mx.array]:
    if hashlib.sha256(_TABLES.read_bytes()).hexdigest() != _TABLES_SHA256:
        raise DamagedTables
    loaded = mx.load(str(_TABLES))
    assert isinstance(loaded, dict)
    mx.eval(loaded)
    return loaded


def entries(bits: int) -> mx.array:
    """The table of pairs: float16 ``[details, 16 nibbles, 16 preceding nibbles, 2]``.

    One detail, or four at 4 bits. At 2 bits the values are signed; else they are magnitudes.
    """
    return _tables()[f"bits_{bits}"]


@lru_cache(maxsize=6)
def _search(bits: int, on_cpu: bool) -> PathSearch:
    """The search on the default device, which is the CPU or not."""
    return PathSearch(entries(bits).astype(mx.float32))


def pairs_of(head_dim: int) -> int:
    """Pairs of coordinates; the last one of an odd dimension is padded with a zero."""
    return -(-head_dim // 2)


@dataclass(frozen=True)
class TrellisQuantiser:
    """Codes of 2, 3 or 4 bits per coordinate."""

    bits: int

    @property
    def has_signs(self) -> bool:
        """Whether signs are stored apart, so that the table holds magnitudes."""
        return self.bits > 2

    def quantise(self, unit: mx.array, metric: mx.array | None = None) -> tuple[mx.array, mx.array]:
        """As ``Quantiser.quantise``. The metric is ignored: feedback between blocks of coordinates costs the
        trellis more than it gains (see CODEC.md).
        """
        *leading, head_dim = unit.shape
        rows = unit.reshape(-1, head_dim)
        padded = mx.pad(rows, [(0, 0), (0, 1)]) if head_dim % 2 else rows
        pairs = padded.reshape(len(rows), -1, 2)
        search = _search(self.bits, mx.default_device() == mx.cpu)
        nibbles, details = search.best_path(
            mx.abs(pairs) if self.has_signs else pairs, few_branches=unit.shape[-2] >= NEAR_FROM
        )
        before = mx.concatenate([nibbles[:, -1:], nibbles[:, :-1]], axis=1)
        negative = (pairs < 0).astype(mx.uint32)
        words = self.pack(nibbles, details, negative)
        place = details * 256 + nibbles * 16 + before
        if self.has_signs:
            place += (negative[..., 0] + 2 * negative[..., 1]) * (256 * len(entries(self.bits)))
        values = mx.take_along_axis(decoding_table(self.bits), place.reshape(-1, 1), axis=0).view(mx.float32)
        values = values.reshape(len(rows), -1)[:, :head_dim]
        return words.reshape(*leading, -1), values.reshape(*leading, head_dim)

    def pack(self, nibbles: mx.array, details: mx.array, negative: mx.array) -> mx.array:
        """Pack the codes of vectors along the last axis but that of the pair.

        Args:
            nibbles: uint32 ``[vectors, pairs]``, below 16.
            details: uint32 ``[vectors, pairs]``, below 4; ignored below 4 bits.
            negative: uint32 ``[vectors, pairs, 2]``, 1 for a negative value; ignored at 2 bits.

        Returns:
            uint32 ``[vectors, words]``.
        """
        padding = -nibbles.shape[1] % 8
        # The kernels and ``lookup`` take the last nibble of the row for that of the last pair.
        nibbles = mx.pad(nibbles, [(0, 0), (0, padding)], mode="edge") if padding else nibbles
        planes = [_packed(nibbles, [4 * i for i in range(8)])]
        if self.bits == 3:
            planes.append(
                _packed(negative[..., 0], list(range(16))) + _packed(negative[..., 1], list(range(16, 32)))
            )
        elif self.bits == 4:
            planes.append(
                _packed(details, [_detail_shift(i) for i in range(8)])
                + _packed(negative[..., 0], [_sign_shift(i) for i in range(8)])
                + _packed(negative[..., 1], [_sign_shift(i) + 16 for i in range(8)])
            )
        return mx.concatenate(planes, axis=-1)

    def prepare(self, words: mx.array, head_dim: int) -> tuple[mx.array, ...]:
        split = -(-pairs_of(head_dim) // 8)
        return words[..., :split], words[..., split:]

    def lookup(self, prepared: Sequence[mx.array], head_dim: int) -> mx.array:
        nibbles, extra = prepared
        # Windows of odd pairs are the bytes of the words; those of even pairs the bytes of the stream
        # shifted by a nibble. Interleaving words is cheaper than bytes, and leaves the order of ``arrange``.
        before = mx.concatenate([nibbles[..., -1:], nibbles[..., :-1]], axis=-1)
        shifted = (nibbles << 4) | (before >> 28)
        indices = mx.stack([shifted, nibbles], axis=-1).view(mx.uint8).reshape(-1, 1)
        if self.bits > 2:
            second = self._second_plane(extra, nibbles.shape[-1])
            indices = indices.astype(mx.uint16) + second.reshape(-1, 1).astype(mx.uint16) * 256
        pairs = mx.take_along_axis(decoding_table(self.bits), indices, axis=0)
        return pairs.reshape(*nibbles.shape[:-1], -1).view(mx.float32)

    def arrange(self, x: mx.array) -> mx.array:
        """Reorder pairs: of each eight the even, then the odd ones; padded with zeros to whole eights."""
        padding = -x.shape[-1] % 16
        if padding:
            x = mx.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, padding)])
        return x.reshape(*x.shape[:-1], -1, 4, 2, 2).swapaxes(-3, -2).reshape(x.shape)

    def restore(self, x: mx.array, head_dim: int) -> mx.array:
        return x.reshape(*x.shape[:-1], -1, 2, 4, 2).swapaxes(-3, -2).reshape(x.shape)[..., :head_dim]

    def _second_plane(self, words: mx.array, eights: int) -> mx.array:
        """The second plane's bits of each pair: the detail (4 bits only), then signs.

        Each table maps some of a word's bytes to what they add to eight pairs.

        Returns:
            uint8 ``[..., 8 * eights]``, in the order of ``lookup``.
        """
        part = mx.uint16 if self.bits == 3 else mx.uint8
        parts = mx.contiguous(words).view(part).reshape(*words.shape, -1)
        added = [
            mx.take_along_axis(table, mx.contiguous(parts[..., i]).view(mx.uint8).reshape(-1, 1), axis=0)
            for i, table in enumerate(_octet_tables(self.bits))
        ]
        found = sum(added[1:], added[0]).reshape(*words.shape[:-1], -1)
        return mx.contiguous(found[..., :eights]).view(mx.uint8)


def _packed(fields: mx.array, shifts: list[int]) -> mx.array:
    """Fields ``[vectors, count]`` at their shifts in words of ``len(shifts)`` fields, padded with zeros."""
    padding = -fields.shape[-1] % len(shifts)
    fields = mx.pad(fields, [(0, 0), (0, padding)]) if padding else fields
    fields = fields.astype(mx.uint32).reshape(len(fields), -1, len(shifts))
    return (fields << mx.array(shifts, dtype=mx.uint32)).sum(axis=-1)


def _detail_shift(pair: int) -> int:
    """Bit of the detail of a pair in its word of 8 pairs at 4 bits; even pairs are a byte apart."""
    return pair // 2 * 8 + pair % 2 * 2


def _sign_shift(pair: int) -> int:
    """Bit of the sign of a first value in its word of 8 pairs at 4 bits; the second one's is 16 higher."""
    return 4 + pair if pair < 4 else 8 + pair


@lru_cache(maxsize=3)
def decoding_table(bits: int) -> mx.array:
    """Two float32 values by window, and by detail and signs above it: uint64 ``[256 << 2 (bits - 2), 1]``."""
    table = entries(bits).astype(mx.float32)
    if bits > 2:
        signs = mx.array([[1, 1], [-1, 1], [1, -1], [-1, -1]], dtype=mx.float32)
        table = table[None] * signs[:, None, None, None]
    table = table.reshape(-1, 2).view(mx.uint64)
    mx.eval(table)
    return table


@lru_cache(maxsize=3)
def kernel_table(bits: int) -> mx.array:
    """The table for kernels: two float16 values seen as one float32, by window, at 4 bits by window and
    detail: ``[256]`` or ``[1024]``.
    """
    table = entries(bits)
    by_window = table.reshape(table.shape[0], -1, 2).transpose(1, 0, 2)
    table = mx.contiguous(by_window).view(mx.float32).reshape(-1)
    mx.eval(table)
    return table


@lru_cache(maxsize=2)
def _octet_tables(bits: int) -> list[mx.array]:
    """What a byte of a word's second plane adds to eight pairs, a byte each: uint64 ``[256, 1]``.

    At 3 bits for both bytes of each half of the word; at 4 bits for each of its bytes.
    """
    first_bits = (0, 16) if bits == 3 else (0, 8, 16, 24)
    tables = []
    for first in first_bits:
        added = [_added_to_pairs(bits, first + bit) for bit in range(8)]
        rows = [[sum(added[bit] for bit in range(8) if octet >> bit & 1)] for octet in range(256)]
        tables.append(mx.array(rows, dtype=mx.uint64))
    mx.eval(tables)
    return tables


def _added_to_pairs(bits: int, bit: int) -> int:
    """What one bit of a word of the second plane adds to the bytes of eight pairs."""
    if bits == 3:
        return (1 if bit < 16 else 2) << _lane(bit % 8)
    for pair in range(8):
        for offset in range(2):
            if bit == _detail_shift(pair) + offset:
                return 1 << _lane(pair) + offset
            if bit == _sign_shift(pair) + 16 * offset:
                return 1 << _lane(pair) + 2 + offset
    raise ValueError(f"no field at bit {bit}")


def _lane(pair: int) -> int:
    """First bit of the byte of one of eight pairs, in the order of lookups: even pairs, then odd ones."""
    return 8 * (pair % 2 * 4 + pair // 2)

"""Training of the trellis tables: ``python -m tqchat.lab.trellis_training OUT.safetensors``.

Alternates between finding the best paths of normal vectors and moving every entry to the mean of the pairs
coded by it. The file in ``kv/codec`` was made by this script on a CPU; another machine's differs by rounding.
"""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

import sys

import mlx.core as mx
import numpy as np

from tqchat.kv.codec.near_branches import STATES
from tqchat.kv.codec.viterbi import PathSearch
from tqchat.kv.scheme import TRELLIS_BITS

HEAD_DIM = 128
VECTORS = 2048
ITERATIONS = 150


def train(bits: int, iterations: int = ITERATIONS, vectors: int = VECTORS) -> np.ndarray:
    """The table of a code width.

    Args:
        vectors: Vectors of ``HEAD_DIM`` drawn anew in each iteration.

    Returns:
        float32 ``[details, nibbles, preceding nibbles, 2]``; magnitudes above 2 bits (see ``codec/trellis``).
    """
    rng = np.random.default_rng(bits)
    has_signs = bits > 2
    table = rng.standard_normal((4 if bits == 4 else 1, STATES, STATES, 2)).astype(np.float32)
    table = np.abs(table) if has_signs else table
    for _ in range(iterations):
        pairs = rng.standard_normal((vectors, HEAD_DIM // 2, 2)).astype(np.float32)
        pairs = np.abs(pairs) if has_signs else pairs
        table = _step(table, pairs)
    return table


def _step(table: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Each entry's mean of the pairs coded by it; unused entries stay."""
    search = PathSearch(mx.array(table))
    totals, counts = np.zeros_like(table), np.zeros((*table.shape[:3], 1), np.float32)
    for part in np.array_split(pairs, max(1, len(pairs) // 256)):
        nibbles, details = (np.array(found) for found in search.best_path(mx.array(part)))
        entry = details, nibbles, np.roll(nibbles, 1, axis=1)
        np.add.at(totals, entry, part)
        np.add.at(counts, entry, 1)
    return np.where(counts > 0, totals / np.maximum(counts, 1), table)


def main(path: str) -> None:
    """Train all tables into a file."""
    tables = {f"bits_{bits}": mx.array(train(bits)).astype(mx.float16) for bits in TRELLIS_BITS}
    mx.save_safetensors(path, tables)


if __name__ == "__main__":
    main(sys.argv[1])

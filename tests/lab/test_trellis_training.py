from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from tqchat.kv.codec.viterbi import PathSearch
from tqchat.lab.trellis_training import train


@pytest.mark.parametrize(("bits", "limit"), [(2, 0.1), (3, 0.03)])
def test_a_few_steps_of_training_beat_scalar_codes(bits: int, limit: float) -> None:
    table = train(bits, iterations=6, vectors=64)
    pairs = np.random.default_rng(1).standard_normal((64, 32, 2)).astype(np.float32)
    pairs = np.abs(pairs) if bits > 2 else pairs
    nibbles, details = (np.array(part) for part in PathSearch(mx.array(table)).best_path(mx.array(pairs)))
    values = table[details, nibbles, np.roll(nibbles, 1, axis=1)]
    # Lloyd-Max: 0.1175 and 0.0345.
    assert np.square(pairs - values).mean() < limit

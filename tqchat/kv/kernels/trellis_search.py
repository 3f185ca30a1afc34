"""Branches of a trellis as matrices, for ``shaders/encode_tensor_search.inc``."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import mlx.core as mx
import numpy as np

from tqchat.kv.codec.near_branches import STATES
from tqchat.kv.codec.trellis import entries
from tqchat.kv.codec.viterbi import MARGIN

STEPS = {2: 64, 3: 128, 4: 128}
"""Steps per unit of a coordinate, by bits: with more, the costs of paths through 128 pairs could exceed their
19 bits, or products of the largest values 2^24. Rounding to them adds at most 0.1 % to the squared error.
"""

GROUP = 8
"""Vectors that are searched together: the columns of a product."""

_SCALE = 4096
"""Squares of branches are a multiple of it and a remainder, which halves hold exactly."""


@lru_cache(maxsize=3)
def limit(bits: int) -> int:
    """Largest coordinate in steps, as in ``viterbi.MARGIN``."""
    largest: Any = mx.abs(entries(bits)).max().item()
    return int(MARGIN * STEPS[bits] * largest)


@lru_cache(maxsize=3)
def branch_fragments(bits: int) -> mx.array:
    """Operands of the products that give the squared errors of branches, as lanes hold them.

    Columns of a product are vectors with coordinates x, y in steps. With the slots x, y, 1, 4096 of a column,
    a row's slots add up to 16 times the squared error less x^2 + y^2, plus the preceding state. A fragment
    has eight slots: those of two consecutive branches, counted by preceding state and detail.

    Returns:
        uint32 ``[8 * details, 2, 32]``: for each fragment two registers of 32 lanes.
    """
    steps = np.rint(STEPS[bits] * np.array(entries(bits).astype(mx.float32)))
    details = len(steps)
    branches = steps.transpose(2, 0, 1, 3).reshape(-1, STATES, 2)
    preceding = np.arange(len(branches))[:, None] // details
    squares = 16 * np.square(branches).sum(axis=-1) + preceding
    multiples = np.rint(squares / _SCALE)
    remainders = squares - _SCALE * multiples
    slots = np.stack([-32 * branches[..., 0], -32 * branches[..., 1], remainders, multiples], axis=-1)
    # Lane 4 r + c holds slots 2 c and 2 c + 1 of rows r and r + 8.
    by_fragment = slots.astype(np.float16).reshape(-1, 2, 2, 8, 2, 2)
    held = by_fragment.transpose(0, 2, 3, 1, 4, 5)
    fragments = mx.array(np.ascontiguousarray(held).view(np.uint32).reshape(-1, 2, 32))
    mx.eval(fragments)
    return fragments

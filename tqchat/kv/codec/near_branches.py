"""A search of paths on a CPU that tries few branches: those whose values lie near the pair that is coded."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

STATES = 16
"""States of the trellis: the values of a nibble."""

BRANCHES = 9
"""Branches into a state that are tried, of 64. Squared errors relative to those of trying all are 1.0005;
with 8 branches they are 1.0018.
"""

BOUNDS = (0.3, 0.62, 0.97, 1.38, 1.9, 2.6)
"""Upper bounds of the cells of a coordinate: dense where entries are."""

_CELLS = (len(BOUNDS) + 1) ** 2

_BLOCK = 16
"""Vectors of a block. Operations on wider ones are faster, but more of them is padding."""

_PAIRS_BETWEEN = 8
"""Pairs after which the least cost of a vector is subtracted from all of its costs."""

_SAMPLES = 6
"""Points per axis of a cell by which its branches are chosen."""

_NEARNESS = 0.03
"""Squared distance at which a branch counts 1/e of one that is met exactly."""


class Blocks(NamedTuple):
    """For each pair, vectors in blocks of ``_BLOCK`` whose pairs lie in the same cell.

    Attributes:
        cells: The cell of each block, integers ``[pairs, blocks]``.
        vectors: By slot, ``[pairs, blocks * _BLOCK]``; slots that pad a block have any vector.
        slots: By vector, ``[pairs, vectors]``.
    """

    cells: np.ndarray
    vectors: np.ndarray
    slots: np.ndarray


class NearBranches:
    """Finds the cheapest paths to each state by trying the branches that lie near each pair.

    The plane of pairs is divided into cells, for each of which the branches worth trying are listed. For
    every pair vectors are put into blocks that share a list, so that a step is a dozen operations on all.

    Args:
        entries: The values of each branch, none negative, float32 ``[details, nibbles * preceding nibbles,
            2]``.
        factors: Their products with a target are squared errors in steps, float32 ``[details, nibbles *
            preceding nibbles, 4]``.
        steps: Steps per unit.
        limit: Largest coordinate of a pair.
    """

    def __init__(self, entries: np.ndarray, factors: np.ndarray, steps: int, limit: float) -> None:
        coordinates = np.arange(int(steps * limit) + 2) / steps
        self._cell_of_step = np.searchsorted(BOUNDS, coordinates).astype(np.uint8)
        by_state = _by_state(factors)
        chosen = np.stack([_nearest(_by_state(entries), points) for points in _points_of_cells(limit)])
        before = (chosen // len(entries)).reshape(_CELLS, -1)
        self._before = np.ascontiguousarray(before.T)
        self._factors = by_state[np.arange(STATES), chosen].reshape(_CELLS, -1, 4)
        self._factors[..., 3] += before / STATES

    def forward(self, targets: np.ndarray, lap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The cheapest paths to each state, from any state before the first pair.

        Args:
            targets: In steps, none negative, ``[pairs, 4, vectors]``: the sum of both coordinates' squares,
                both, and 1.
            lap: The pairs to search, in this order.

        Returns:
            The costs of the states after each pair, as in ``viterbi.Costs``, float32 ``[len(lap), states,
            slots]``, and the slots of vectors, ``[len(lap), vectors]``.
        """
        cells, vectors, slots = self._arranged(targets)
        count, rows = cells.shape[1], BRANCHES * STATES
        factors = np.empty((count, rows, 4), np.float32)
        target = np.empty((4, count, _BLOCK), np.float32)
        own = np.empty((STATES, count * _BLOCK), np.float32)
        places = np.empty((rows, count), np.intp)
        errors, before = np.empty((2, rows, count, _BLOCK), np.float32)
        found = np.empty((len(lap), STATES, count * _BLOCK), np.float32)
        rows_before, blocks = self._before * count, np.arange(count)
        costs, last = np.zeros((STATES, targets.shape[2]), np.float32), np.arange(targets.shape[2])
        # Without a mode, ``take`` copies what it has found into ``out``.
        for number, pair in enumerate(lap):
            np.take(self._factors, cells[pair], axis=0, out=factors, mode="clip")
            np.take(targets[pair], vectors[pair], axis=1, out=target.reshape(4, -1), mode="clip")
            np.matmul(factors, target.transpose(1, 0, 2), out=errors.transpose(1, 0, 2))
            # Costs of the states before, in the slots of this pair and then by branch.
            np.take(costs, last[vectors[pair]], axis=1, out=own, mode="clip")
            np.take(rows_before, cells[pair], axis=1, out=places, mode="clip")
            places += blocks
            np.take(own.reshape(-1, _BLOCK), places, axis=0, out=before, mode="clip")
            errors += before
            np.minimum.reduce(errors.reshape(BRANCHES, -1), axis=0, out=found[number].reshape(-1))
            costs, last = np.floor(found[number]), slots[pair]
            if number % _PAIRS_BETWEEN == 0:
                costs -= costs.min(axis=0)
        return found, slots[lap]

    def _arranged(self, targets: np.ndarray) -> Blocks:
        pairs, _, vectors = targets.shape
        by_axis = self._cell_of_step[targets[:, 1:3].astype(np.int32)]
        cells = by_axis[:, 0] * np.uint8(len(BOUNDS) + 1) + by_axis[:, 1]
        order = np.argsort(cells, axis=1, kind="stable")
        counts = np.stack([np.bincount(own, minlength=_CELLS) for own in cells])
        ends = (-(-counts // _BLOCK)).cumsum(axis=1)
        starts = np.pad(ends[:, :-1], ((0, 0), (1, 0)))
        padding = _BLOCK * starts - (counts.cumsum(axis=1) - counts)
        in_order = np.arange(vectors) + np.stack(
            [np.repeat(own, count) for own, count in zip(padding, counts, strict=True)]
        )
        blocks = np.arange(ends[:, -1].max())
        by_slot = np.zeros((pairs, len(blocks) * _BLOCK), np.intp)
        np.put_along_axis(by_slot, in_order, order, axis=1)
        slots = np.empty_like(order)
        np.put_along_axis(slots, order, in_order, axis=1)
        # Pairs with fewer blocks than others have empty ones.
        of_blocks = np.stack([np.searchsorted(own, blocks, side="right") for own in ends])
        return Blocks(of_blocks.clip(max=_CELLS - 1), by_slot, slots)


def _by_state(branches: np.ndarray) -> np.ndarray:
    """``[details, states * states before, n]`` as ``[states, states before * details, n]``."""
    details, _, size = branches.shape
    by_state = branches.reshape(details, STATES, STATES, size).transpose(1, 2, 0, 3)
    return by_state.reshape(STATES, -1, size)


def _points_of_cells(limit: float) -> list[np.ndarray]:
    """Evenly spaced points of each cell, ``[points, 2]``."""
    edges = [0.0, *BOUNDS, limit]
    middles = (np.arange(_SAMPLES) + 0.5) / _SAMPLES
    axes = [low + (high - low) * middles for low, high in pairwise(edges)]
    return [np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2) for x in axes for y in axes]


def _nearest(values: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The branches into each state that lie nearest to points.

    Args:
        values: ``[states, branches, 2]``.

    Returns:
        Integers ``[BRANCHES, states]``.
    """
    distances = np.square(values[:, :, None] - points).sum(axis=-1)
    # In a large cell points that are further out are rarer.
    rarity = np.square(points - points.min(axis=0)).sum(axis=-1) / 4
    nearness = np.exp(-distances / _NEARNESS - rarity).sum(axis=-1)
    # Entries that are near no point differ, too.
    nearness -= 1e-6 * distances.min(axis=-1)
    return np.argsort(-nearness, axis=1, kind="stable")[:, :BRANCHES].T

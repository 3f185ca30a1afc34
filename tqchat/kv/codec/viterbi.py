"""The cheapest path of vectors through a trellis: the Viterbi algorithm, for all vectors at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import mlx.core as mx
import numpy as np

STATES = 16
"""States of the trellis: the values of a nibble."""

WARM_UP_PAIRS = 8
"""Pairs before and after the ends of a vector from which its first state is estimated.

Mean squared error of 2-bit codes of 64 coordinates with 0 (first state fixed), 4, 8 and all pairs: 0.0823,
0.0811, 0.0796, 0.0788.
"""

STEPS = 192
"""Steps per unit of a coordinate, to which the search rounds: squared errors are whole numbers then. It adds
0.04 % to the error of 4-bit codes, less to that of others.
"""

MARGIN = 1.25
"""Coordinates beyond so many times the table's largest value are searched as if they were that large, so that
sixteen times the squared error of the best branch is below 2^24.
"""

_IMPOSSIBLE = float(1 << 24)
"""Cost of a state that a path cannot start in."""


_CHUNK_VECTORS = 768
"""Vectors searched at a time by a thread of a CPU: with fewer, threads wait for each other's Python; the
costs of more leave the cache.
"""


_LEAST_VECTORS = 256
"""Fewer are not worth waking a thread."""

_CORES = os.cpu_count() or 1


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_CORES, "trellis")


class PathSearch:
    """Finds paths that minimise the squared error of pairs of coordinates.

    On a CPU the search is done in numpy, on several threads: its operations start ten times sooner than those
    of MLX and are several times faster.

    Args:
        table: The values of each branch, float32 ``[details, nibbles, preceding nibbles, 2]``.
    """

    def __init__(self, table: mx.array) -> None:
        self._on_cpu = mx.default_device() == mx.cpu
        self._library: Any = np if self._on_cpu else mx
        entries = np.array(table).reshape(len(table), STATES * STATES, 2)
        self._limit = MARGIN * float(np.abs(entries).max())
        steps = np.rint(STEPS * entries)
        squares = np.square(steps).sum(axis=-1, keepdims=True)
        # Sixteen times the squared error is the product with a target, so that a state can be added to it.
        factors = STATES * np.concatenate([-2 * steps, squares, np.ones_like(squares)], axis=-1)
        self._by_detail = [self._library.array(part) for part in factors.astype(np.float32)]
        self._x, self._y = (self._library.array(np.ascontiguousarray(entries[..., i])) for i in range(2))

    def best_path(self, pairs: mx.array) -> tuple[mx.array, mx.array]:
        """Nibbles and details of the cheapest circular path.

        The state before the first pair is that of the cheapest path through the pairs around the vector's
        ends; the path then starts and ends there.

        Args:
            pairs: float32 ``[vectors, pairs, 2]``.

        Returns:
            uint32 ``[vectors, pairs]`` each.
        """
        vectors = len(pairs)
        targets = pairs.transpose(1, 2, 0)
        if not self._on_cpu:
            nibbles, details = self._circular(targets)
            return nibbles.astype(mx.uint32), details.astype(mx.uint32)
        held = np.array(targets)
        rounds = -(-vectors // (_CHUNK_VECTORS * _CORES))
        size = max(_LEAST_VECTORS, -(-vectors // (rounds * _CORES)))
        chunks = [np.ascontiguousarray(held[..., i : i + size]) for i in range(0, vectors, size)]
        found = map(self._circular, chunks) if len(chunks) == 1 else _threads().map(self._circular, chunks)
        nibbles, details = (np.concatenate(part).astype(np.uint32) for part in zip(*found, strict=True))
        return mx.array(nibbles), mx.array(details)

    def _circular(self, targets: Any) -> tuple[Any, Any]:
        """``best_path`` of arrays of ``_library``.

        Args:
            targets: float32 ``[pairs, 2, vectors]``.
        """
        library = self._library
        count, _, vectors = targets.shape
        inside = library.clip(library.nan_to_num(targets), -self._limit, self._limit)
        rounded = library.round(inside * STEPS)
        squares = library.square(rounded).sum(axis=1, keepdims=True)
        rounded = library.concatenate([rounded, library.ones_like(squares), squares], axis=1)
        around = min(WARM_UP_PAIRS, count)
        ends = library.concatenate([rounded[count - around :], rounded[:around]])
        origins, costs = self._forward(ends, library.zeros((STATES, vectors), dtype=library.float32))
        first, *_ = _trace(library, origins[around:], costs.argmin(axis=0))
        start = _IMPOSSIBLE * (library.arange(STATES)[:, None] != first).astype(library.float32)
        origins, _ = self._forward(rounded, start)
        states = library.stack(_trace(library, origins, first))
        windows = STATES * states[1:] + states[:-1]
        return states[1:].T, self._details(windows, targets[:, 0], targets[:, 1]).T

    def _forward(self, targets: Any, costs: Any) -> tuple[Sequence[Any], Any]:
        """The cheapest paths to each state.

        Args:
            targets: In steps, ``[pairs, 4, vectors]``: both coordinates, 1, and their squares' sum.
            costs: Of the states before the first pair, float32 ``[states, vectors]``.

        Returns:
            For each pair the state before it on the cheapest path to each state, ``[states, vectors]``; and
            the costs after the last, up to a number by vector.
        """
        if self._on_cpu:
            return self._forward_in_place(targets, costs)
        found = []
        for target in targets:
            errors, *others = (factors @ target for factors in self._by_detail)
            for other in others:
                errors = mx.minimum(errors, other)
            branches = errors.reshape(STATES, STATES, -1) + costs
            found.append(branches.argmin(axis=1))
            costs = branches.min(axis=1)
            costs = costs - costs.min(axis=0)
        return found, costs

    def _forward_in_place(self, targets: np.ndarray, first: np.ndarray) -> tuple[Sequence[Any], np.ndarray]:
        """``_forward`` in numpy, without new arrays of all branches.

        Costs are multiples of 16 to which the state is added, so that the least one tells its state.
        """
        states = np.arange(STATES, dtype=np.float32)[:, None]
        costs = first + states
        errors, other = np.empty((2, STATES * STATES, first.shape[1]), np.float32)
        branches = errors.reshape(STATES, STATES, -1)
        found = np.empty((len(targets), *first.shape), np.uint8)
        whole = np.empty(first.shape, np.int32)
        for origins, target in zip(found, targets, strict=True):
            np.matmul(self._by_detail[0], target, out=errors)
            for factors in self._by_detail[1:]:
                np.minimum(errors, np.matmul(factors, target, out=other), out=errors)
            np.add(branches, costs, out=branches)
            np.minimum.reduce(branches, axis=1, out=costs)
            np.copyto(whole, costs, casting="unsafe")
            np.bitwise_and(whole, STATES - 1, out=origins, casting="unsafe")
            costs -= origins
            costs += states - costs.min(axis=0)
        return found, costs - states

    def _details(self, windows: Any, x: Any, y: Any) -> Any:
        """The nearest entry of each window: integers of the shape of all arguments."""
        library = self._library
        details = library.zeros_like(windows)
        least: Any = None
        for detail, (own_x, own_y) in enumerate(zip(self._x, self._y, strict=True)):
            errors = library.square(library.take(own_x, windows) - x)
            errors = errors + library.square(library.take(own_y, windows) - y)
            if least is not None:
                details = library.where(errors < least, detail, details)
                errors = library.minimum(errors, least)
            least = errors
        return details


def _trace(library: Any, origins: Sequence[Any], last: Any) -> list[Any]:
    """The states before the first pair and after each on the cheapest path that ends in the state ``last``.

    Args:
        origins: From ``_forward``.

    Returns:
        Integers ``[vectors]`` each.
    """
    vectors = len(last)
    columns = library.arange(vectors)
    states = [last]
    for before in origins[::-1]:
        state = library.take(before.reshape(-1), states[-1] * vectors + columns)
        states.append(state.astype(last.dtype))
    return states[::-1]

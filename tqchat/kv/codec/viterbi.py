"""The cheapest path of vectors through a trellis: the Viterbi algorithm, for all vectors at once."""

from __future__ import annotations

import os
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

_IMPOSSIBLE = 1e9
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
        entries = np.array(table)
        # The squared error but for the target's square: product with ``(x, y, 1)``.
        factors = np.concatenate([-2 * entries, np.square(entries).sum(axis=-1, keepdims=True)], axis=-1)
        by_origin = factors.transpose(0, 2, 1, 3).reshape(len(entries), STATES * STATES, 3)
        self._by_detail = [self._library.array(part) for part in by_origin]
        self._by_nibble = self._library.array(factors.transpose(1, 3, 0, 2).reshape(STATES, -1))

    def best_path(self, pairs: mx.array) -> tuple[mx.array, mx.array]:
        """Nibbles and details of the cheapest circular path.

        The state before the first pair is that of the cheapest path through the pairs around the vector's
        ends; the path then starts and ends there.

        Args:
            pairs: float32 ``[vectors, pairs, 2]``.

        Returns:
            uint32 ``[vectors, pairs]`` each.
        """
        vectors, count, _ = pairs.shape
        targets = mx.concatenate([pairs.transpose(1, 2, 0), mx.ones((count, 1, vectors))], axis=1)
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
            targets: float32 ``[pairs, 3, vectors]``, the last coordinate 1.
        """
        library = self._library
        count, _, vectors = targets.shape
        around = min(WARM_UP_PAIRS, count)
        ends = library.concatenate([targets[count - around :], targets[:around]])
        costs = self._path_costs(ends, library.zeros((STATES, vectors), dtype=targets.dtype))
        (first, *_), _ = self._trace(ends[around:], costs[around:], costs[-1].argmin(axis=0))
        start = _IMPOSSIBLE * (library.arange(STATES)[:, None] != first).astype(targets.dtype)
        states, details = self._trace(targets, self._path_costs(targets, start), first)
        return library.stack(states[1:], axis=1), library.stack(details, axis=1)

    def _path_costs(self, targets: Any, first: Any) -> list[Any]:
        """Cost of the cheapest path to each state, before the first pair and after each.

        Args:
            first: Costs of the states before the first pair, float32 ``[states, vectors]``.
        """
        if self._on_cpu:
            return self._path_costs_in_place(targets, first)
        costs = [first]
        for target in targets:
            errors, *others = (factors @ target for factors in self._by_detail)
            for other in others:
                errors = mx.minimum(errors, other)
            costs.append((errors.reshape(STATES, STATES, -1) + costs[-1][:, None]).min(axis=0))
        return costs

    def _path_costs_in_place(self, targets: np.ndarray, first: np.ndarray) -> list[np.ndarray]:
        """``_path_costs`` in numpy, without new arrays in its steps."""
        costs = np.empty((len(targets) + 1, *first.shape), np.float32)
        costs[0] = first
        errors, other = np.empty((2, STATES * STATES, first.shape[1]), np.float32)
        branches = errors.reshape(STATES, STATES, -1)
        for i, target in enumerate(targets):
            np.matmul(self._by_detail[0], target, out=errors)
            for factors in self._by_detail[1:]:
                np.minimum(errors, np.matmul(factors, target, out=other), out=errors)
            np.add(branches, costs[i, :, None], out=branches)
            np.minimum.reduce(branches, axis=0, out=costs[i + 1])
        return list(costs)

    def _trace(self, targets: Any, costs: list[Any], last: Any) -> tuple[list[Any], list[Any]]:
        """Follow the cheapest path that ends in the state ``last``, backwards.

        Returns:
            States before the first pair and after each, and the detail of each pair: integers ``[vectors]``.
        """
        count = self._by_nibble.shape[1] // 3
        states, details = [last], []
        for target, cost in zip(targets[::-1], costs[-2::-1], strict=True):
            state = states[-1]
            factors = self._library.take(self._by_nibble, state, axis=0)
            x, y, square = factors[:, :count], factors[:, count : 2 * count], factors[:, 2 * count :]
            errors = x * target[0][:, None] + y * target[1][:, None] + square
            branches = errors.reshape(len(state), -1, STATES) + cost.T[:, None]
            best = branches.reshape(len(state), -1).argmin(axis=-1)
            states.append(best % STATES)
            details.append(best // STATES)
        return states[::-1], details[::-1]

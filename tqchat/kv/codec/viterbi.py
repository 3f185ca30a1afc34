"""The cheapest path of vectors through a trellis: the Viterbi algorithm, for all vectors at once."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from tqchat.kv.codec.near_branches import STATES, NearBranches

PAIRS_BEFORE = 8
"""Pairs at a vector's end that are searched before its first pair, too, so that its first state is one that
continues them. Squared errors with 0, 4 and 6, relative to those with 8: 1.037, 1.004, 1.0015 (4 bits, 128
coordinates).
"""

PAIRS_AGAIN = 8
"""Pairs searched again from a vector's start, where the path does not start in the state that it ends in."""

STEPS = 192
"""Steps per unit of a coordinate, to which the search rounds: squared errors are whole numbers then. It adds
0.1 % to the error of 4-bit codes, less to that of others.
"""

MARGIN = 1.25
"""Coordinates beyond so many times the table's largest value are searched as if they were that large, so that
the squared error of the best branch is below 2^20 and leaves four bits to a state.
"""

_IMPOSSIBLE = float(1 << 24)
"""Cost of a state that a path cannot start in."""

_CHUNK_VECTORS = 3072
"""Most vectors searched at a time by a thread of a CPU: with fewer, threads wait for each other's Python."""

_LEAST_NEAR_VECTORS = 512
"""Fewer vectors of which near branches are tried are not worth waking a thread, as blocks are padded."""

_PARTS = 8
"""Parts in which errors are computed: a BLAS would share a larger product among threads, which are busy."""

_LEAST_VECTORS = 256
"""Fewer are not worth waking a thread."""

_CORES = os.cpu_count() or 1


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_CORES, "trellis")


class Costs(NamedTuple):
    """Costs of the cheapest paths to each state after each pair, up to a number by pair and vector.

    Costs below 2^20, as of all states on cheapest paths, are whole numbers, and sixteenths tell the state
    before the pair.

    Attributes:
        found: float32 ``[pairs, states, slots]``.
        slots: By pair the slots of vectors, integers ``[vectors]``.
    """

    found: Any
    slots: Any

    def from_pair(self, first: int) -> Costs:
        return Costs(self.found[first:], self.slots[first:])


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
        # The squared error of a branch is the product with a target.
        factors = np.concatenate([np.ones_like(squares), -2 * steps, squares], axis=-1).astype(np.float32)
        self._factors: list[Any] = (
            [part.reshape(_PARTS, -1, 4) for part in factors]
            if self._on_cpu
            else list(map(mx.array, factors))
        )
        self._x, self._y = (self._library.array(np.ascontiguousarray(entries[..., i])) for i in range(2))
        self._near = partial(NearBranches, entries, factors, STEPS, self._limit)
        self._has_details = len(table) > 1

    def best_path(self, pairs: mx.array, few_branches: bool = False) -> tuple[mx.array, mx.array]:
        """Nibbles and details of a circular path that costs 1 % more than the cheapest at 32 pairs, less at
        more, but 8 % at 8 and several times as much at one or two.

        It starts and ends in the state that the cheapest path over the last pairs and then all of them has
        between the last and the first.

        Args:
            pairs: float32 ``[vectors, pairs, 2]``.
            few_branches: Try only branches that lie near each pair, at 4 bits and on a CPU.

        Returns:
            uint32 ``[vectors, pairs]`` each.
        """
        vectors = len(pairs)
        inside = mx.clip(mx.where(mx.isnan(pairs), 0, pairs), -self._limit, self._limit)
        targets = inside.transpose(1, 2, 0)
        if not self._on_cpu:
            nibbles, details = self._circular(targets)
            return nibbles.astype(mx.uint32), details.astype(mx.uint32)
        held = np.array(targets)
        near = self._near_branches if self._has_details and few_branches else None
        rounds = -(-vectors // (_CHUNK_VECTORS * _CORES))
        least = _LEAST_VECTORS if near is None else _LEAST_NEAR_VECTORS
        size = -(-vectors // max(1, min(rounds * _CORES, vectors // least)))
        chunks = [np.ascontiguousarray(held[..., i : i + size]) for i in range(0, vectors, size)]
        search = partial(self._circular, near=near)
        found = map(search, chunks) if len(chunks) == 1 else _threads().map(search, chunks)
        nibbles, details = (np.concatenate(part).astype(np.uint32) for part in zip(*found, strict=True))
        return mx.array(nibbles), mx.array(details)

    @cached_property
    def _near_branches(self) -> NearBranches:
        """Made on first use, as it takes 0.1 s."""
        return self._near()

    def _circular(self, targets: Any, near: NearBranches | None = None) -> tuple[Any, Any]:
        """``best_path`` of arrays of ``_library``.

        Args:
            targets: float32 ``[pairs, 2, vectors]``.
            near: The search of near branches, if only those are tried.
        """
        library = self._library
        count, _, vectors = targets.shape
        rounded = library.round(targets * STEPS)
        squares = library.square(rounded).sum(axis=1, keepdims=True)
        rounded = library.concatenate([squares, rounded, library.ones_like(squares)], axis=1)
        before = min(PAIRS_BEFORE, count)
        if near is not None:
            costs = Costs(*near.forward(rounded, np.arange(-before, count)))
        else:
            lap = library.concatenate([rounded[count - before :], rounded])
            costs = self._forward(lap, library.zeros((STATES, vectors), dtype=library.float32))
        # The cheapest path anywhere tells the state between the last pair and the first.
        costs = costs.from_pair(before)
        ends = _trace(library, costs, _cheapest(library, costs))[0]
        states = _trace(library, costs, ends)
        states = self._closed(rounded[:PAIRS_AGAIN], states, ends)
        windows = STATES * states[1:] + states[:-1]
        return states[1:].T, self._details(windows, targets[:, 0], targets[:, 1]).T

    def _closed(self, targets: Any, states: Any, ends: Any) -> Any:
        """Let paths start in the states ``ends``.

        Args:
            targets: Of the first pairs, over which those paths that start elsewhere are searched again.
            states: From ``_trace``.
        """
        library, count = self._library, len(targets)
        columns = np.flatnonzero(states[0] != ends) if self._on_cpu else library.arange(len(ends))
        if not len(columns):
            return states
        start = _IMPOSSIBLE * (library.arange(STATES)[:, None] != ends[columns]).astype(library.float32)
        costs = self._forward(targets[..., columns], start)
        states[: count + 1, columns] = _trace(library, costs, states[count, columns])
        return states

    def _forward(self, targets: Any, costs: Any) -> Costs:
        """The cheapest paths to each state, by trying all branches.

        Args:
            targets: In steps, ``[pairs, 4, vectors]``: the sum of both coordinates' squares, both, and 1.
            costs: Of the states before the first pair, float32 ``[states, vectors]``.
        """
        states = self._library.arange(STATES, dtype=self._library.float32)[:, None] / STATES
        forward = self._forward_in_place if self._on_cpu else self._forward_in_mlx
        found = forward(targets, costs, states)
        return Costs(found, [self._library.arange(costs.shape[1])] * len(found))

    def _forward_in_mlx(self, targets: mx.array, costs: mx.array, states: mx.array) -> mx.array:
        found = []
        for target in targets:
            errors, *others = (factors @ target for factors in self._factors)
            for other in others:
                errors = mx.minimum(errors, other)
            branches = mx.round(errors).reshape(STATES, STATES, -1) + (costs + states)
            found.append(branches.min(axis=1))
            costs = mx.floor(found[-1])
            costs = costs - costs.min(axis=0)
        return mx.stack(found)

    def _forward_in_place(self, targets: np.ndarray, first: np.ndarray, states: np.ndarray) -> np.ndarray:
        """Without new arrays of all branches."""
        costs = first.copy()
        errors, other = np.empty((2, _PARTS, STATES * STATES // _PARTS, first.shape[1]), np.float32)
        branches = errors.reshape(STATES, STATES, -1)
        found = np.empty((len(targets), *first.shape), np.float32)
        for i, target in enumerate(targets):
            np.matmul(self._factors[0], target, out=errors)
            for factors in self._factors[1:]:
                np.minimum(errors, np.matmul(factors, target, out=other), out=errors)
            costs += states
            np.add(branches, costs, out=branches)
            np.minimum.reduce(branches, axis=1, out=found[i])
            np.floor(found[i], out=costs)
            costs -= costs.min(axis=0)
        return found

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


def _cheapest(library: Any, costs: Costs) -> Any:
    """The states after the last pair that cost least."""
    return library.take(costs.found[-1], costs.slots[-1], axis=1).argmin(axis=0)


def _trace(library: Any, costs: Costs, last: Any) -> Any:
    """The states before the first pair and after each on the cheapest path that ends in the state ``last``.

    Args:
        last: Integers ``[vectors]``.

    Returns:
        int32 ``[pairs + 1, vectors]``.
    """
    states = [last.astype(library.int32)]
    for after, slots in zip(costs.found[::-1], costs.slots[::-1], strict=True):
        cost = library.take(after.reshape(-1), states[-1] * after.shape[1] + slots)
        states.append((STATES * (cost - library.floor(cost))).astype(library.int32))
    return library.stack(states[::-1])

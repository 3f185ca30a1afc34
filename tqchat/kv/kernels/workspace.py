"""Working memory of attention launches, and the order in which they run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from math import gcd
from typing import Any

import mlx.core as mx

from tqchat.kv.kernels.device import MIN_INPUT_SIZE, SIMD_WIDTH, Launch, kernels, run, unused_input
from tqchat.kv.kernels.source import KernelSpec
from tqchat.kv.storage.threads import thread_key

LAYOUT_CACHE_SIZE = 16
"""Sliding-window and full-attention layers alternate, so each needs its own entry."""

COPY_THREADS = 256
"""Threads per threadgroup of the copying kernel; each copies a unit."""

LARGEST_UNIT = 16
"""Most bytes that a thread copies."""

JOINED = 16
"""Outputs that one launch waits for; Metal passes at most 31 arrays to a kernel."""


class ThreadWorkspace:
    """Working memory of one thread's launches: partial results of the splits.

    Launches that share it run one after the other, as a model's layers do anyway.

    Attributes:
        array: Block counters, zero between launches, and partial results; minimal if another launch merges.
            Set by ``reserve``, like the others.
        before: Output of the last launch; an input of the next, to order them.
        layouts: Cached constructor of the layouts on this array.
    """

    array: mx.array | None = None
    before: mx.array
    layouts: Callable[..., Any]

    def reserve(self, floats: int, make_layouts: Callable[..., Any]) -> None:
        """Grow the array to at least ``floats``. Existing layouts continue to use the smaller array.

        Args:
            make_layouts: Called with the array.
        """
        if self.array is None:
            self.before = unused_input(mx.float32)
        if self.array is None or self.array.size < floats:
            self.array = mx.zeros(floats) if floats else unused_input(mx.float32)
            self.layouts = lru_cache(maxsize=LAYOUT_CACHE_SIZE)(partial(make_layouts, self.array))

    @property
    def has_launched(self) -> bool:
        """Whether there has been a launch, so that ``before`` is set."""
        return self.array is not None

    def wait_for(self, outputs: Sequence[mx.array]) -> None:
        """Let the next launch run after others that ran after the last one, and do not depend on each other.

        Args:
            outputs: Of the others.
        """
        if len(outputs) == 1:
            (self.before,) = outputs
            return
        for start in range(0, len(outputs), JOINED - 1):
            part = [self.before, *outputs[start : start + JOINED - 1]]
            self.before = _compiled_join(thread_key())(*part, *part[:1] * (JOINED - len(part)))


class Workspace(threading.local):
    """Working memory shared by the layers of a model.

    Attributes:
        of_thread: The calling thread's, because lazy arrays of one thread cannot be evaluated by another.
    """

    def __init__(self) -> None:
        self.of_thread = ThreadWorkspace()

    @property
    def arrays(self) -> list[mx.array]:
        """What it holds between steps, except the output of the last launch, which the launcher has."""
        array = self.of_thread.array
        return [] if array is None else [array]


class LayerLaunches:
    """Launches of one layer, which write tokens into tails: a ``TailWriter``.

    Attributes:
        order: Their workspace, which orders them.
        output: Of the last launch; what depends on it runs after all of them.
    """

    def __init__(self, order: ThreadWorkspace) -> None:
        self.order = order
        self.output = order.before

    def copy_of(self, array: mx.array, capacity: int) -> mx.array:
        """A copy of an array that they wrote to, with so much capacity, computed after them."""
        return copy_with_room(array, capacity, self.output)


def copy_with_room(array: mx.array, capacity: int, after: mx.array) -> mx.array:
    """A copy of vectors in an array with room for more, and zeros there.

    By a kernel: launches that wrote into the array are nothing that MLX would wait for, or copy it for.

    Args:
        array: ``[batch, heads, tokens, width]`` with contiguous rows.
        capacity: Length of the copy's axis of tokens.
        after: Computed before.
    """
    copied: mx.array = _compiled_copy(thread_key(), array.shape, array.dtype, capacity)(array, after)
    return copied


@lru_cache(maxsize=64)
def _compiled_copy(
    thread: object, shape: tuple[int, ...], dtype: mx.Dtype, capacity: int
) -> Callable[[mx.array, mx.array], mx.array]:
    """``copy_with_room`` as a compiled function of the array and what it is computed after."""
    batch, heads, _, width = shape
    row = width * dtype.size
    unit = gcd(row, LARGEST_UNIT)
    constants = ("THREADS", COPY_THREADS), ("UNIT", unit), ("WIDTH", row // unit), ("SIZE", dtype.size)
    spec = KernelSpec("copy", ("source", "after", "sizes"), ("copied",), constants)
    units = batch * heads * capacity * (row // unit)
    launch: Launch = {
        "grid": (-(-units // COPY_THREADS) * COPY_THREADS, 1, 1),
        "threadgroup": (COPY_THREADS, 1, 1),
        "output_shapes": [(batch, heads, capacity, width)],
        "output_dtypes": [dtype],
    }
    # Kernels get strides by value.
    sizes = mx.as_strided(unused_input(mx.float32), [1], [capacity])

    def copy(array: mx.array, after: mx.array) -> mx.array:
        device_kernels = kernels()
        assert device_kernels is not None
        return run(device_kernels.compiled(spec), (array, after, sizes), launch)[0]

    return mx.compile(copy)


@lru_cache(maxsize=8)
def _compiled_join(thread: object) -> Callable[..., mx.array]:
    """A launch that does nothing after ``JOINED`` outputs, as a compiled function of them."""
    names = tuple(f"after_{number}" for number in range(JOINED))
    spec = KernelSpec("join", names, ("done",), ())

    def join(*outputs: mx.array) -> mx.array:
        device_kernels = kernels()
        assert device_kernels is not None
        return run(device_kernels.compiled(spec), outputs, DONE)[0]

    return mx.compile(join)


DONE: Launch = {
    "grid": (SIMD_WIDTH, 1, 1),
    "threadgroup": (SIMD_WIDTH, 1, 1),
    "output_shapes": [(MIN_INPUT_SIZE,)],
    "output_dtypes": [mx.float32],
}
"""A launch whose output says only that it has run."""

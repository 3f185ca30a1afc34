"""Working memory of attention launches, and the order in which they run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import mlx.core as mx

from tqchat.kv.kernels.device import Launch, kernels, run, unused_input
from tqchat.kv.kernels.source import KernelSpec
from tqchat.kv.storage.threads import thread_key

LAYOUT_CACHE_SIZE = 16
"""Sliding-window and full-attention layers alternate, so each needs its own entry."""

COPY_THREADS = 256
"""Threads per threadgroup of the copying kernel; each copies 16 bytes."""


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

    def copy_of(self, array: mx.array) -> mx.array:
        """A copy of an array that they wrote to, computed after them.

        By a kernel: MLX would take the array for unchanged, and see no reason to wait or to copy.
        """
        copied: mx.array = _compiled_copy(thread_key(), array.shape, array.dtype)(array, self.output)
        return copied


@lru_cache(maxsize=64)
def _compiled_copy(
    thread: object, shape: tuple[int, ...], dtype: mx.Dtype
) -> Callable[[mx.array, mx.array], mx.array]:
    """The copy of an array of vectors as a compiled function of it and the output to wait for."""
    spec = KernelSpec("copy", ("source", "after"), ("copied",), (("THREADS", COPY_THREADS), ("S", dtype)))
    bytes_ = dtype.size
    for length in shape:
        bytes_ *= length
    launch: Launch = {
        "grid": (-(-bytes_ // (16 * COPY_THREADS)) * COPY_THREADS, 1, 1),
        "threadgroup": (COPY_THREADS, 1, 1),
        "output_shapes": [shape],
        "output_dtypes": [dtype],
    }

    def copy(array: mx.array, output: mx.array) -> mx.array:
        device_kernels = kernels()
        assert device_kernels is not None
        return run(device_kernels.compiled(spec), (array, output), launch)[0]

    return mx.compile(copy)

"""Reading files into the memory of arrays, by several threads."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import cache
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np

T = TypeVar("T")

READ_THREADS = 8
_MAX_BUFFERS = 512
"""Buffers of one read call; systems allow 1,024."""


def read_array(shape: Sequence[int], dtype: mx.Dtype, fill: Callable[[memoryview], None]) -> mx.array:
    """An array, evaluated.

    MLX has it read into the array's own memory; on CUDA it then copies to the GPU, where an array made from
    host memory would stay in managed memory, which is slow.

    Args:
        shape: Not of an empty array.
        fill: Called with the array's memory, which holds anything, as bytes. What it raises is raised here.
    """
    source = _NpyFile(tuple(shape), dtype, fill)
    loaded: Any = mx.load(source, format="npy")  # type: ignore[arg-type]
    if source.error is not None:
        raise source.error
    array: mx.array = loaded
    if array.dtype != dtype:
        array = array.view(dtype)
        mx.eval(array)
    return array


def read_small_array(shape: Sequence[int], dtype: mx.Dtype, fill: Callable[[memoryview], None]) -> mx.array:
    """``read_array`` for some kilobytes: copied to the array, which takes a tenth of the time."""
    kind = _numpy_kind(dtype)
    content = bytearray(math.prod(shape) * kind.itemsize)
    fill(memoryview(content))
    array = mx.array(np.frombuffer(content, kind).reshape(shape))
    if array.dtype != dtype:
        array = array.view(dtype)
        mx.eval(array)
    return array


def _numpy_kind(dtype: mx.Dtype) -> np.dtype[Any]:
    """The dtype in numpy; that of integers of the same size for bfloat16, which it lacks, and for float64, of
    which ``mx.array`` makes float32.
    """
    if dtype == mx.float64:
        return np.dtype(np.uint64)
    try:
        return np.dtype(str(dtype).removeprefix("mlx.core.").removesuffix("_"))
    except TypeError:
        return np.dtype(f"u{dtype.size}")


def read_fully(descriptor: int, buffers: Sequence[memoryview], offset: int) -> None:
    """Fill buffers of bytes, one after the other, from this position of a file.

    Raises:
        OSError: if that fails, or the file ends before.
    """
    waiting = [buffer for buffer in buffers if len(buffer)]
    while waiting:
        count = os.preadv(descriptor, waiting[:_MAX_BUFFERS], offset)
        if not count:
            raise OSError(0, "a file is shorter than what was written")
        offset += count
        filled = 0
        while filled < len(waiting) and count >= len(waiting[filled]):
            count -= len(waiting[filled])
            filled += 1
        waiting = waiting[filled:]
        if count:
            waiting[0] = waiting[0][count:]


def in_threads(work: Callable[[T], None], items: Sequence[T]) -> None:
    """Call ``work`` with each item, in several threads if there are several."""
    calls: list[Future[None]] = [Future() for _ in items]

    def run(call: Future[None], item: T) -> None:
        if call.set_running_or_notify_cancel():
            try:
                work(item)
            except BaseException as error:
                call.set_exception(error)
            else:
                call.set_result(None)

    submitted = 0
    if len(items) > 1:
        with suppress(RuntimeError):  # no more threads: the program is ending, or has as many as it may
            for call, item in zip(calls, items, strict=True):
                _readers().submit(run, call, item)
                submitted += 1
    # The executor keeps the item whose thread could not be started, for a later thread: it must not be read
    # then, when its memory may be freed.
    own = [index for index in range(submitted, len(items)) if calls[index].cancel()]
    others = [call for call in calls if not call.cancelled()]
    wait(others)  # all of them, as after an error their memory may be freed
    for call in others:
        call.result()
    for index in own:
        work(items[index])


class _NpyFile:
    """An array as a file in numpy's format, for ``mx.load``.

    Attributes:
        error: Why the array could not be read. MLX ends the process if ``readinto`` raises.
    """

    closed = False

    def __init__(self, shape: tuple[int, ...], dtype: mx.Dtype, fill: Callable[[memoryview], None]) -> None:
        kind = _numpy_kind(dtype)
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": kind.str, "fortran_order": False, "shape": shape}
        )
        self._header, self._fill = header.getvalue(), fill
        self._bytes = math.prod(shape) * dtype.size
        self._position = 0
        self.error: Exception | None = None

    def seek(self, position: int, whence: int = 0) -> int:
        self._position = position
        return position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:
        target = memoryview(buffer).cast("B")
        start, self._position = self._position, self._position + len(target)
        if start < len(self._header):
            target[:] = self._header[start : self._position]
            return len(target)
        try:
            if start != len(self._header) or len(target) != self._bytes:
                raise OSError(0, "an array is not read in one go")
            self._fill(target)
        except Exception as error:
            self.error = error
        return len(target)


@cache
def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(READ_THREADS, thread_name_prefix="tqchat-read")

"""Writing arrays to a file on a thread of its own."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import mlx.core as mx
import numpy as np

WRITE_PART_BYTES = 8 << 20
"""Most bytes that are still written once the writes are no longer needed."""

SMALL_BYTES = 1 << 20
"""Smaller arrays are written at once: that takes less than a millisecond."""

STOP_WAIT_S = 1.0
"""Longest wait for that last part: a disk may hang."""

_total = threading.RLock()  # the collector may call ``stop`` at any time
_total_bytes = 0


def waiting_bytes() -> int:
    """Bytes of all arrays in memory that wait to be written."""
    return _total_bytes


def in_own_buffer(array: mx.array) -> mx.array:
    """The array in a buffer of its own; that of ``mx.contiguous`` may be shared and would count twice."""
    return mx.where(mx.array(True), array, array)


class Waiting:
    """An array that is not in the file yet.

    Args:
        view: The array's bytes, evaluated.
    """

    def __init__(self, array: mx.array, view: mx.array) -> None:
        self.array = array
        self._view = view
        self._lock = threading.Lock()
        self._content: np.ndarray[Any, Any] | None = None
        # On CUDA the content is taken when it is written: that moves the buffer, which takes long.
        self.nbytes = array.nbytes if mx.cuda.is_available() else _span(self.content)

    @property
    def content(self) -> np.ndarray[Any, Any]:
        """Its bytes, not contiguous if the array is a slice of storage with spare capacity."""
        with self._lock:
            if self._content is None:
                self._content = np.asarray(self._view)
            return self._content

    @classmethod
    def of(cls, arrays: Sequence[mx.array]) -> list[Waiting]:
        if mx.cuda.is_available():
            # Reading an array moves its buffer to managed memory for good: not that of a live cache.
            arrays = [in_own_buffer(array) for array in arrays]
        else:
            arrays = [array[...] for array in arrays]  # other objects: mlx-lm assigns into its own
        flat = [array if array.ndim else array.reshape(1) for array in arrays]
        views = [array.view(mx.uint8) for array in flat]
        mx.eval(arrays, views)  # on the thread that made them
        return [cls(array, view) for array, view in zip(arrays, views, strict=True)]


def _span(content: np.ndarray[Any, Any]) -> int:
    """Bytes of the buffer that an array keeps in memory, spare capacity included."""
    return max(int(count * step) for count, step in zip(content.shape, content.strides, strict=True))


class WriteBehind:
    """Writes arrays in order. Until an array is in the file it stays in memory.

    Its thread runs only while there is something to write. After a failed write nothing more is written: the
    other arrays stay in memory until ``drop_failed``.

    Args:
        file: Written here only, at the offsets given.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._state = threading.Condition()
        self._waiting: dict[int, Waiting] = {}
        self._lost: set[int] = set()
        self._bytes = self._held_bytes = 0
        self._error: OSError | None = None
        self._keeps_failed = True
        self._stopped = False
        self._thread: threading.Thread | None = None

    def add(self, arrays: Mapping[int, mx.array]) -> None:
        """Have arrays written that are not empty, by offset; small ones are on return.

        Raises:
            OSError: if that failed, or an earlier write.
        """
        for offset, waiting in zip(arrays, Waiting.of(list(arrays.values())), strict=True):
            if waiting.nbytes < SMALL_BYTES:
                self._write(offset, waiting.content)
                continue
            with self._state:
                self._raise_error()
                self._waiting[offset] = waiting
                self._count(waiting.nbytes)
                self._state.notify_all()
                if self._thread is None:
                    thread = threading.Thread(target=self._run, name="tqchat-spill", daemon=True)
                    thread.start()
                    self._thread = thread

    @contextmanager
    def holding(self, most: int) -> Iterator[None]:
        """Write only what exceeds ``most`` bytes meanwhile: writing slows whoever makes the arrays."""
        with self._state:
            self._held_bytes = most
        try:
            yield
        finally:
            with self._state:
                self._held_bytes = 0
                self._state.notify_all()

    def find(self, offset: int) -> Waiting | None:
        """An array that is not in the file yet.

        Raises:
            OSError: if it never will be.
        """
        with self._state:
            if offset in self._lost:
                self._raise_error()
                raise OSError(0, "an array was not written")
            return self._waiting.get(offset)

    def is_lost(self, offset: int) -> bool:
        """Whether an array was not written and is in memory no more."""
        return offset in self._lost

    def wait(self, most: int, timeout_s: float | None = None) -> bool:
        """Wait until at most ``most`` bytes are not written yet.

        Returns:
            False after the timeout.

        Raises:
            OSError: if a write failed.
        """
        with self._state:
            done = self._state.wait_for(lambda: self._bytes <= most or self._error is not None, timeout_s)
            self._raise_error()
            return done

    def drop_failed(self) -> None:
        """Free what could not be written, now and later: ``find`` then raises."""
        with self._state:
            self._keeps_failed = False
            if self._error is not None:
                self._drop()

    def stop(self) -> None:
        """Write nothing more: the arrays are no longer needed."""
        with self._state:
            self._stopped = True
            self._drop()
            thread = self._thread
        # The collector may call this on the thread itself.
        if thread is not None and thread is not threading.current_thread():
            thread.join(STOP_WAIT_S)

    def _run(self) -> None:
        while (offset := self._next()) is not None:
            try:
                if (waiting := self._waiting.get(offset)) is not None:
                    self._write(offset, waiting.content)
            except (OSError, MemoryError, RuntimeError) as error:  # MLX raises the last
                with self._state:
                    self._error = error if isinstance(error, OSError) else OSError(errno.ENOMEM, "no memory")
                    if not self._keeps_failed:
                        self._drop()
                    self._state.notify_all()
                return
            with self._state:
                if self._waiting.pop(offset, None) is not None:
                    assert waiting is not None
                    self._count(-waiting.nbytes)
                waiting = None  # freed before the others go on; MLX frees arrays on any thread
                self._state.notify_all()

    def _next(self) -> int | None:
        """Offset of the oldest array; ``None`` ends the thread."""
        with self._state:
            self._state.wait_for(lambda: self._bytes > self._held_bytes or not self._waiting or self._stopped)
            offset = next(iter(self._waiting), None)
            if offset is None or self._stopped:
                self._thread = None
                return None
            return offset

    def _write(self, offset: int, content: np.ndarray[Any, Any]) -> None:
        for block in _blocks(content):
            for start in range(0, len(block), WRITE_PART_BYTES):
                part = block[start : start + WRITE_PART_BYTES]
                while len(part):
                    if self._stopped:
                        return
                    count = os.pwrite(self._file.fileno(), part, offset)
                    offset += count
                    part = part[count:]

    def _drop(self) -> None:
        self._lost.update(self._waiting)
        self._waiting.clear()
        self._count(-self._bytes)
        self._state.notify_all()

    def _count(self, added: int) -> None:
        global _total_bytes
        self._bytes += added
        with _total:
            _total_bytes += added

    def _raise_error(self) -> None:
        if self._error is not None:
            raise OSError(self._error.errno, self._error.strerror) from self._error


def _blocks(content: np.ndarray[Any, Any]) -> Iterator[memoryview]:
    """The bytes in order, as few contiguous parts; what is scattered is copied, a matrix at a time."""
    if content.flags.c_contiguous or content.ndim <= 2:
        yield np.ascontiguousarray(content).data.cast("B")
    else:
        for part in content:
            yield from _blocks(part)

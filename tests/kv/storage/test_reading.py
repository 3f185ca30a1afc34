"""Reading files into arrays."""

from __future__ import annotations

import os
import threading
import time
from itertools import pairwise

import mlx.core as mx
import pytest

from tqchat.kv.storage import reading


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "numbers"
    path.write_bytes(bytes(range(256)) * 40)
    descriptor = os.open(path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize("read", [reading.read_array, reading.read_small_array])
@pytest.mark.parametrize(
    "dtype", [mx.uint8, mx.bool_, mx.uint32, mx.float16, mx.bfloat16, mx.float32, mx.float64]
)
def test_an_array_gets_the_bytes_it_is_filled_with(read, dtype):
    with mx.stream(mx.cpu):  # float64 needs it
        expected = mx.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
        content = bytes(memoryview(expected.view(mx.uint8)))

    def fill(memory):
        memory[:] = content

    with mx.stream(mx.cpu):
        array = read((2, 3), dtype, fill)
        assert array.dtype == dtype
        assert mx.array_equal(array, expected)


@pytest.mark.parametrize("read", [reading.read_array, reading.read_small_array])
def test_an_array_read_by_one_thread_is_used_by_another(read):
    """MLX evaluates lazy arrays only in the thread that made them."""
    arrays = []

    def fill(memory):
        memory[:] = b"\0" * len(memory)

    thread = threading.Thread(target=lambda: arrays.append(read((2, 3), mx.bfloat16, fill)))
    thread.start()
    thread.join()
    assert arrays[0].tolist() == [[0] * 3] * 2


@pytest.mark.parametrize("read", [reading.read_array, reading.read_small_array])
def test_an_error_while_an_array_is_filled_is_raised(read):
    def fill(memory):
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        read((2, 3), mx.float32, fill)


def test_buffers_are_filled_one_after_the_other(file, monkeypatch):
    expected = os.pread(file, 1000, 300)
    whole = bytearray(1000)
    cut = (0, 0, 7, 8, 500, 501, 1000)
    buffers = [memoryview(whole)[a:b] for a, b in pairwise(cut)]
    preadv = os.preadv

    def few_bytes(descriptor, targets, offset):
        """As after a signal: less than was asked for, ending inside a buffer."""
        return preadv(descriptor, [targets[0][:100]], offset)

    monkeypatch.setattr(os, "preadv", few_bytes)
    reading.read_fully(file, buffers, 300)
    assert whole == expected


def test_more_buffers_than_one_call_takes_are_filled(file):
    whole = bytearray(3000)
    reading.read_fully(file, [memoryview(whole)[at : at + 1] for at in range(3000)], 0)
    assert whole == os.pread(file, 3000, 0)


def test_a_file_that_ends_early_is_an_error(file):
    with pytest.raises(OSError, match="shorter"):
        reading.read_fully(file, [memoryview(bytearray(20_000))], 0)


def test_an_error_in_one_thread_is_raised_after_all_have_ended():
    done = []

    def work(item):
        if item == 1:
            raise ValueError("one")
        done.append(item)

    with pytest.raises(ValueError, match="one"):
        reading.in_threads(work, range(6))
    assert sorted(done) == [0, 2, 3, 4, 5]


@pytest.mark.parametrize("startable", [0, 1])
def test_what_no_thread_could_be_started_for_is_done_once(monkeypatch, startable):
    """The executor keeps the call that it failed to start a thread for, and passes it to a later thread."""
    reading._readers.cache_clear()
    start = threading.Thread.start
    started = []

    def start_few(thread):
        if len(started) >= startable:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    done = []
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start_few)
        reading.in_threads(done.append, range(6))
    assert sorted(done) == [0, 1, 2, 3, 4, 5]
    reading.in_threads(lambda item: time.sleep(0.01), range(4))  # by threads that also take what was left
    assert sorted(done) == [0, 1, 2, 3, 4, 5]

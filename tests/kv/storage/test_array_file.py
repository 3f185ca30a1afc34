"""Arrays in temporary files: what is written behind, and what is not written yet."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.kv.storage.disks import Disk, full
from tqchat.kv.storage import array_file, write_behind
from tqchat.kv.storage.array_file import ArrayFile
from tqchat.kv.storage.write_behind import waiting_bytes

KINDS = {
    "capacity": mx.random.normal((1, 2, 300, 8)).astype(mx.bfloat16)[:, :, :200],
    "large": mx.random.normal((1, 3, 900, 64)).astype(mx.float16),
    "transposed": mx.arange(24).reshape(2, 3, 4).swapaxes(-1, -2),
    "scalar": mx.array(3.0),
    "flags": mx.array([True, False, True]),
    "empty": mx.zeros((0, 3)),
    "words": mx.arange(5, dtype=mx.uint32),
    "long": mx.array([1 << 40], dtype=mx.int64),
}


def content(array: mx.array) -> bytes:
    return bytes(np.asarray(mx.contiguous(array).reshape(-1).view(mx.uint8))) if array.size else b""


def test_arrays_are_the_same_before_and_after_they_are_written(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(array_file, "READ_PART_BYTES", 1000)  # several threads read one array
    monkeypatch.setattr(write_behind, "WRITE_PART_BYTES", 700)
    disk.is_open.clear()
    file = ArrayFile.temporary(tmp_path)
    stored = file.write(KINDS)
    assert not file.wait(0, timeout_s=0) and waiting_bytes() > 0
    for _ in range(2):
        for name, array in KINDS.items():
            read = stored[name].read()
            assert (read.dtype, read.shape) == (array.dtype, array.shape)
            assert content(read) == bytes(stored[name].content()) == content(array), name
        disk.is_open.set()
        assert file.wait()
    assert disk.written == file.size == sum(array.nbytes for array in KINDS.values())
    assert waiting_bytes() == 0 and not list(tmp_path.iterdir())


def test_what_is_read_early_can_be_changed(disk: Disk, tmp_path: Path) -> None:
    disk.is_open.clear()
    file = ArrayFile.temporary(tmp_path)
    source = mx.arange(1000)
    stored = file.write({"x": source})["x"]
    read = stored.read()
    read[:10] = 7
    source[:10] = 8
    assert mx.array_equal(stored.read(), mx.arange(1000))
    disk.is_open.set()
    file.wait()
    assert mx.array_equal(stored.read(), mx.arange(1000))


def test_small_arrays_are_written_at_once(tmp_path: Path) -> None:
    file = ArrayFile.temporary(tmp_path)
    stored = file.write({"x": mx.arange(1000)})["x"]
    assert waiting_bytes() == 0 and mx.array_equal(stored.read(), mx.arange(1000))
    with full(), pytest.raises(OSError):
        file.write({"y": mx.arange(1000)})


def test_spare_capacity_that_waits_is_counted(disk: Disk, tmp_path: Path) -> None:
    disk.is_open.clear()
    storage = mx.zeros((1, 4, 1000, 8), mx.float16)
    file = ArrayFile.temporary(tmp_path)
    file.write({"x": storage[:, :, :10]})
    assert waiting_bytes() > 0.9 * storage.nbytes and file.size == 4 * 10 * 8 * 2


def test_space_is_reserved_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with full(1000), pytest.raises(OSError):
        ArrayFile.temporary(tmp_path).reserve(1001)
    ArrayFile.temporary(tmp_path).reserve(0)
    monkeypatch.delattr(array_file.os, "posix_fallocate", raising=False)  # as on a Mac
    ArrayFile.temporary(tmp_path).reserve(1000)
    with pytest.raises(OSError):
        ArrayFile.temporary(tmp_path).reserve(1 << 60)


@pytest.mark.parametrize("dropped", [False, True])
def test_a_failed_write_keeps_what_is_in_memory_until_it_is_dropped(
    disk: Disk, tmp_path: Path, dropped: bool
) -> None:
    file = ArrayFile.temporary(tmp_path)
    first = file.write({"x": mx.arange(100)})["x"]
    file.wait()
    disk.is_open.clear()
    second = file.write({"y": mx.arange(500)})["y"]
    if dropped:
        file.drop_failed()
    with full(500), pytest.raises(OSError):
        disk.is_open.set()
        file.wait()
    with pytest.raises(OSError):
        file.write({"z": mx.arange(3)})
    if not dropped:
        assert mx.array_equal(second.read(), mx.arange(500))
        file.drop_failed()
    with pytest.raises(OSError):
        second.read()
    assert waiting_bytes() == 0 and mx.array_equal(first.read(), mx.arange(100))


@pytest.mark.parametrize("error", [MemoryError, RuntimeError])
def test_a_writer_without_memory_reports_it(
    error: type[Exception], disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(content: object) -> None:
        raise error("out of memory")

    monkeypatch.setattr(write_behind, "_blocks", fails)
    file = ArrayFile.temporary(tmp_path)
    stored = file.write({"x": mx.arange(100)})["x"]
    with pytest.raises(OSError, match="no memory"):
        file.wait(0, timeout_s=10)
    assert mx.array_equal(stored.read(), mx.arange(100))
    file.drop_failed()
    assert stored.is_lost and waiting_bytes() == 0


def test_a_file_that_was_cut_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    file = ArrayFile(path.open("w+b"), tmp_path)
    stored = file.write({"x": mx.arange(1000)})["x"]
    with path.open("r+b") as other:
        other.truncate(1000)
    for read in (stored.read, stored.content):
        with pytest.raises(OSError, match="shorter"):
            read()


def test_after_an_error_no_thread_reads_into_memory_that_may_be_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = ArrayFile.temporary(tmp_path)
    stored = file.write({"x": mx.arange(1000)})["x"]
    began, returned, finished = threading.Event(), threading.Event(), threading.Event()

    def preadv(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if offset == 0:
            began.wait()
            raise OSError(5, "a bad sector")
        began.set()
        returned.wait(0.1)  # for what may not happen yet
        finished.set()
        return len(buffers[0])

    monkeypatch.setattr(array_file, "READ_PART_BYTES", 2000)
    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(OSError, match="bad sector"):
        stored.read()
    assert finished.is_set()
    returned.set()


def test_nothing_is_written_for_a_file_that_nobody_has(disk: Disk, tmp_path: Path) -> None:
    def threads() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "tqchat-spill"]

    disk.is_open.clear()
    file = ArrayFile.temporary(tmp_path)
    file.write({"x": mx.arange(1000), "y": mx.arange(1000)})
    (thread,) = threads()
    del file
    assert waiting_bytes() == 0
    disk.is_open.set()
    thread.join()
    assert disk.written <= 4000 and not threads()


EXIT = """
import os, threading
import mlx.core as mx
from tqchat.kv.storage import write_behind
from tqchat.kv.storage.array_file import ArrayFile
write_behind.SMALL_BYTES, write_behind.STOP_WAIT_S = 0, 0.01
os.pwrite = lambda *write: threading.Event().wait()
file = ArrayFile.temporary()
stored = file.write({"x": mx.arange(1000)})
print(write_behind.waiting_bytes())
"""


def test_a_disk_that_hangs_does_not_hold_up_the_exit() -> None:
    done = subprocess.run(
        [sys.executable, "-c", EXIT], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("4000\n", "")

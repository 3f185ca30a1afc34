"""Scheme changes while the disk is slow, and on one that fills up."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tests.kv import tiny
from tests.kv.storage.disks import Disk, full
from tests.kv.test_cache import logits
from tqchat.kv import convert, convert_in_place, make_prompt_cache, memory_report
from tqchat.kv.cache import SchemeCache
from tqchat.kv.conversion import ConversionFailed, ConversionStopped
from tqchat.kv.scheme import RAW
from tqchat.kv.storage.write_behind import waiting_bytes

LAYERS, TOKENS = 4, 300
ENOUGH = 1 << 30


@pytest.fixture
def cache() -> list[Any]:
    model = tiny.llama(num_hidden_layers=LAYERS)
    cache = make_prompt_cache(model, "fp16", dtype=mx.float16)
    logits(model, cache, tiny.tokens(TOKENS), TOKENS - 1)
    return cache


def stored(cache: list[Any]) -> list[dict[str, bytes]]:
    """All arrays, as they are stored."""
    sides = [side.arrays() for layer in cache for side in layer.sides]
    return [{name: bytes(np.asarray(mx.contiguous(x))) for name, x in arrays.items()} for arrays in sides]


def wait(cache: list[Any]) -> None:
    for layer in cache:
        for _, _, side in layer.earlier:
            side.file.wait()


@pytest.mark.parametrize("how", ["in place", "copied"])
def test_going_back_before_all_is_written(disk: Disk, cache: list[Any], how: str, tmp_path: Path) -> None:
    def change(scheme: str) -> None:
        nonlocal cache
        if how == "in place":
            convert_in_place(cache, scheme, folder=tmp_path, backlog=ENOUGH)
        else:
            cache = [part for layer in cache for part in convert([layer], scheme)]

    before = stored(cache)
    disk.is_open.clear()
    change("affine8")
    between = stored(cache)
    assert waiting_bytes() >= LAYERS * 2 * TOKENS * 2 * 64 * 2
    for scheme, same in (("fp16", before), ("affine8", between)) * 2:
        change(scheme)
        assert stored(cache) == same
    assert disk.written == 0
    disk.is_open.set()
    wait(cache)
    assert disk.written > 0
    for scheme, same in (("fp16", before), ("affine8", between)) * 2:
        change(scheme)
        assert stored(cache) == same
    assert not list(tmp_path.iterdir())


def test_no_more_waits_in_memory_than_asked_and_a_stop_is_heeded(disk: Disk, cache: list[Any]) -> None:
    before, waiting = stored(cache), list[int]()
    layer = cache[0].nbytes

    def stopped() -> bool:
        waiting.append(waiting_bytes())
        return len(waiting) > LAYERS

    disk.is_open.clear()
    with pytest.raises(ConversionStopped):
        convert_in_place(cache, "affine8", stopped=stopped)
    # One layer while the next is converted; then that one as well, until the disk has the first.
    assert waiting == [0, layer, *[2 * layer] * (LAYERS - 1)]
    assert memory_report(cache).scheme == "fp16" and stored(cache) == before
    assert waiting_bytes() == 0  # nobody goes back to it
    disk.is_open.set()
    convert_in_place(cache, "affine8")
    convert_in_place(cache, "fp16")
    assert stored(cache) == before


@pytest.mark.parametrize("kind", ["full", "filled up"])
def test_a_full_disk_leaves_the_cache_unchanged(disk: Disk, cache: list[Any], kind: str) -> None:
    before, converted = stored(cache), list[int]()

    def progress(done: int, total: int) -> None:
        converted.append(done)

    if kind == "full":
        with full(LAYERS * cache[0].nbytes // 2), pytest.raises(ConversionFailed, match="too large"):
            convert_in_place(cache, "affine8", progress=progress)
        assert converted == [] and disk.written == 0
    else:
        # Others have taken what this system cannot reserve.
        room = int(2.5 * TOKENS * 2 * 64 * 2)
        with full_while(disk, room), pytest.raises(ConversionFailed, match="too large"):
            convert_in_place(cache, "affine8", progress=progress)
        assert converted and 0 < disk.written <= room
    assert memory_report(cache).scheme == "fp16" and stored(cache) == before
    convert_in_place(cache, "affine8")
    convert_in_place(cache, "fp16")
    assert stored(cache) == before


def test_what_a_failed_disk_did_not_get_is_neither_promised_nor_relied_on(
    disk: Disk, cache: list[Any]
) -> None:
    before = stored(cache)
    disk.is_open.clear()
    convert_in_place(cache, "affine8", backlog=ENOUGH)
    assert ("key", RAW) in memory_report(cache).earlier
    file = next(iter(cache[0].earlier))[2].file
    changed = copy.copy(cache)
    convert_in_place(changed, "fp16", backlog=ENOUGH)  # from memory, so that the file is that of all layers
    assert stored(changed) == before
    with full(100), pytest.raises(OSError):
        disk.is_open.set()
        file.wait()
    assert ("key", RAW) not in memory_report(cache).earlier
    assert cache[0].earlier.get("key", RAW) is None  # queries are observed where nothing was fitted before
    layers = iter([False] * (LAYERS - 1) + [True])
    with pytest.raises(ConversionStopped):
        convert_in_place(changed, "turbo4", stopped=lambda: next(layers))
    assert memory_report(changed).scheme == "fp16" and stored(changed) == before
    for scheme in ("turbo4", "fp16"):
        convert_in_place(changed, scheme)
        assert memory_report(changed).scheme == scheme
    assert stored(changed) == before


def full_while(disk: Disk, room: int) -> Any:
    """A disk that fills up once a conversion has reserved its space."""
    disk.reserves = False
    return full(room)


def test_a_disk_that_fails_later_loses_nothing_but_exactness(disk: Disk, cache: list[Any]) -> None:
    before = [side.fetch(mx.float32) for layer in cache for side in layer.sides]
    disk.is_open.clear()
    convert_in_place(cache, "affine8", backlog=ENOUGH)
    side = cache[0].earlier.get("key", RAW)
    assert waiting_bytes() > 0 and side is not None
    with full(100), pytest.raises(OSError):
        disk.is_open.set()
        side.file.wait()
    assert waiting_bytes() == 0
    convert_in_place(cache, "fp16")
    assert memory_report(cache).scheme == "fp16"
    assert [layer.offset for layer in cache] == [TOKENS] * LAYERS
    after = [side.fetch(mx.float32) for layer in cache for side in layer.sides]
    for a, b in zip(before, after, strict=True):
        assert a.shape == b.shape and 0 < mx.abs(a - b).mean() < 0.01 * mx.abs(a).mean()
    assert all(isinstance(layer, SchemeCache) and layer.rounding["key"].times for layer in cache)

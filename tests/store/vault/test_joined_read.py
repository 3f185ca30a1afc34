"""Restoring without copies: files are read into the arrays of the whole sequence."""

from __future__ import annotations

import resource
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from tests.store.vault.test_segments import SCHEMES, SavedChat, assert_same
from tests.store.vault.test_vault import ID, flip, segments
from tqchat.engine import backend
from tqchat.store.vault import Vault
from tqchat.store.vault.manifest import MANIFEST, Manifest, read_manifest

backend.prepare()

if TYPE_CHECKING:
    from tqchat.engine.models import LoadedModel


@pytest.fixture
def never_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading files one by one, whose arrays are then copied, fails the test."""

    def fail(*files: object) -> None:
        raise AssertionError("files are read one by one")

    monkeypatch.setattr("tqchat.store.vault.segments.read", fail)


def manifest_of(vault: Vault) -> Manifest:
    return read_manifest(vault.folder / ID / MANIFEST)


@pytest.mark.usefixtures("never_copied")
@pytest.mark.parametrize("scheme", [*SCHEMES, "trellis3", "turbo3"])
def test_a_cache_of_many_segments_is_read_to_its_place(vault: Vault, model: LoadedModel, scheme: str) -> None:
    chat = SavedChat(vault, model, scheme, 1500)
    chat.save()
    for count in (200, 90, 64):
        chat.grow(count)
        chat.save()
    found = chat.load()
    assert len(found.pieces) >= 4
    assert found.tokens == chat.tokens
    assert_same(found.cache, chat.cache)


@pytest.mark.usefixtures("never_copied")
@pytest.mark.parametrize("scheme", ["fp16", "turbo4"])
def test_several_threads_read_an_array(
    vault: Vault, model: LoadedModel, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tqchat.kv.storage.reading import read_fully
    from tqchat.store.vault import joined_read

    chat = SavedChat(vault, model, scheme, 700)
    chat.save()
    for count in (200, 90, 64, 100):
        chat.grow(count)
        chat.save()
    readers = set()

    def noting_thread(descriptor: int, buffers: Sequence[memoryview], offset: int) -> None:
        readers.add(threading.current_thread().name)
        read_fully(descriptor, buffers, offset)

    monkeypatch.setattr(joined_read, "read_fully", noting_thread)
    monkeypatch.setattr(joined_read, "_MIN_THREAD_BYTES", 1 << 10)
    monkeypatch.setattr(joined_read, "_threads", lambda: 3)
    found = chat.load()
    assert any(name.startswith("tqchat-read") for name in readers)
    assert found.tokens == chat.tokens
    assert_same(found.cache, chat.cache)


@pytest.mark.usefixtures("never_copied")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_tokens_of_a_segment_that_were_trimmed_are_left_out(
    vault: Vault, model: LoadedModel, scheme: str
) -> None:
    chat = SavedChat(vault, model, scheme, 700)
    chat.save()
    for keep in (600, 400):
        chat.rewind(keep)
        chat.grow(150, seed=keep)
        chat.save()
    assert any(piece.used < piece.end for piece in manifest_of(vault).pieces)
    found = chat.load()
    assert found.tokens == chat.tokens
    assert_same(found.cache, chat.cache)


@pytest.mark.usefixtures("never_copied")
@pytest.mark.parametrize("scheme", ["fp16", "turbo4"])
def test_a_restored_cache_goes_on_in_the_memory_it_was_read_into(
    vault: Vault, model: LoadedModel, scheme: str
) -> None:
    chat = SavedChat(vault, model, scheme, 1440)
    chat.save()
    live, twin = chat.cache, chat.load().cache

    def stores(cache: list[Any]) -> list[Any]:
        sides = [side for layer in cache for side in layer.sides]
        return [side.recent if scheme == "fp16" else side.packed for side in sides]

    before = [(store.capacity, store.length) for store in stores(twin)]
    chat.grow(90)
    chat.cache = twin
    del chat.tokens[-90:]
    chat.grow(90)
    assert_same(twin, live)
    for store, (capacity, length) in zip(stores(twin), before, strict=True):
        assert store.length > length
        assert store.capacity == capacity


@pytest.mark.usefixtures("never_copied")
def test_the_room_behind_the_tokens_holds_zeros(
    vault: Vault, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlx.core as mx

    from tqchat.kv.storage import reading
    from tqchat.store.vault import joined_read

    def into_used_memory(read: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(shape: Sequence[int], dtype: Any, fill: Callable[[memoryview], None]) -> Any:
            def fill_used(memory: memoryview) -> None:
                memory[:] = b"\x3f" * len(memory)
                fill(memory)

            return read(shape, dtype, fill_used)

        return wrapped

    for name in ("read_array", "read_small_array"):
        monkeypatch.setattr(joined_read, name, into_used_memory(getattr(reading, name)))
    chat = SavedChat(vault, model, "turbo4", 1500)
    chat.save()
    cache = chat.load().cache
    assert_same(cache, chat.cache)
    for layer in cache:
        for side in layer.sides:
            for array in side.packed.arrays:
                assert array.shape[2] > side.packed.length
                assert not mx.any(array[:, :, side.packed.length :])


@pytest.mark.parametrize("scheme", ["fp16", "turbo4"])
def test_nothing_is_taken_from_files_of_which_one_is_damaged(
    vault: Vault, model: LoadedModel, scheme: str
) -> None:
    from tqchat.store.vault import joined_read

    chat = SavedChat(vault, model, scheme, 400)
    chat.save()
    for _ in range(2):
        chat.grow(200)
        chat.save()
    folder, manifest = vault.folder / ID, manifest_of(vault)
    assert joined_read.read(folder, manifest) is not None
    for file in segments(vault):
        for at in (3, 40, file.stat().st_size // 2, -1):
            flip(file, at)
            assert joined_read.read(folder, manifest) is None, (file.name, at)
            flip(file, at)
        content = file.read_bytes()
        for other in (content[:-1], content + b"\0", b""):
            file.write_bytes(other)
            assert joined_read.read(folder, manifest) is None
        file.write_bytes(content)
    assert joined_read.read(folder, manifest) is not None


def test_more_files_than_may_be_open_are_read_one_by_one(
    vault: Vault, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tqchat.store.vault import joined_read

    chat = SavedChat(vault, model, "turbo4", 1500)
    chat.save()
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (5, 5))
    assert joined_read.read(vault.folder / ID, manifest_of(vault)) is None
    assert_same(chat.load().cache, chat.cache)


@pytest.mark.parametrize(
    "shapes",
    [
        {"0.key.recent_0": (1, 5000, 4, 8)},
        {"0.key.recent_0": (1, 2, 0, 8)},
    ],
    ids=["heads", "no tokens"],
)
def test_files_that_no_cache_has_are_not_joined(
    vault: Vault, model: LoadedModel, shapes: dict[str, tuple[int, ...]]
) -> None:
    from dataclasses import replace

    import mlx.core as mx

    from tqchat.store.vault import joined_read
    from tqchat.store.vault.segments import write

    SavedChat(vault, model, "turbo4", 300).save()
    folder, manifest = vault.folder / ID, manifest_of(vault)

    def written(arrays: dict[str, Any]) -> Manifest:
        tokens = {"tokens": mx.zeros((4,), mx.uint32)}
        return replace(manifest, pieces=(), tokens=4, rest=write(folder, tokens | arrays))

    assert joined_read.read(folder, written({"0.key.recent_0": mx.ones((1, 2, 4, 8))})) is not None
    arrays = {name: mx.zeros(shape) for name, shape in shapes.items()}
    assert joined_read.read(folder, written(arrays)) is None

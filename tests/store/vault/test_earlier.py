"""Tokens as they were under earlier schemes, saved with a cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.store.vault.test_vault import FINGERPRINT, ID, filled, flip
from tqchat.engine import backend
from tqchat.store.vault import Restored, Vault
from tqchat.store.vault.manifest import MANIFEST, digest
from tqchat.store.vault.segments import EARLIER_PREFIX
from tqchat.units import GB

backend.prepare()

if TYPE_CHECKING:
    from tests.kv.storage.disks import Disk
    from tqchat.engine.models import LoadedModel

TOKENS = [3 + n % 900 for n in range(300)]


def changed(model: LoadedModel, scheme: str = "turbo3", backlog: int = 0) -> list[Any]:
    """A cache that was filled under turbo4 and changed to another scheme."""
    from tqchat.kv import convert_in_place

    cache = filled(model, TOKENS, "turbo4")
    convert_in_place(cache, scheme, backlog=backlog)
    return cache


def save(vault: Vault, cache: list[Any], tokens: list[int] = TOKENS, name: str = ID) -> None:
    scheme = cache[0].scheme.name
    vault.save(name, cache, tokens, fingerprint=FINGERPRINT, scheme=scheme)


def load(vault: Vault, scheme: str = "turbo3") -> Restored:
    found = vault.load(ID, fingerprint=FINGERPRINT, scheme=scheme)
    assert isinstance(found, Restored) and found.damage is None, found
    return found


def held(cache: list[Any]) -> list[Any]:
    """All keys and values of a cache, decoded."""
    return [side.fetch(side.dtype).tolist() for layer in cache for side in layer.sides]


def back(cache: list[Any], scheme: str = "turbo4") -> list[Any]:
    """All keys and values of the cache once it is changed to ``scheme``."""
    from tqchat.kv import convert

    return held(convert(cache, scheme))


def kept(vault: Vault, name: str = ID) -> list[Path]:
    return sorted((vault.folder / name).glob(f"{EARLIER_PREFIX}*"))


def test_going_back_after_a_restart_gives_what_was_there(vault: Vault, model: LoadedModel) -> None:
    cache = changed(model)
    save(vault, cache)
    assert back(load(vault).cache) == back(cache) == back(filled(model, TOKENS, "turbo4"))


def test_a_save_right_behind_a_change_has_what_is_not_written_yet(
    vault: Vault, model: LoadedModel, disk: Disk
) -> None:
    disk.is_open.clear()
    cache = changed(model, backlog=GB)
    save(vault, cache)
    assert disk.written == 0
    disk.is_open.set()
    assert back(load(vault).cache) == back(filled(model, TOKENS, "turbo4"))


def test_a_file_of_which_more_is_needed_than_was_saved_is_saved_again(
    vault: Vault, model: LoadedModel
) -> None:
    from tqchat.kv import convert_in_place

    cache = filled(model, TOKENS, "fp16")
    before = held(cache)
    for scheme in ("turbo4", "turbo0v4"):  # the second takes the keys back
        convert_in_place(cache, scheme)
    save(vault, cache)
    for scheme in ("turbo4", "turbo0v4", "turbo4"):
        convert_in_place(cache, scheme)
        save(vault, cache)
        found = load(vault, scheme).cache
        assert back(found, "fp16") == before
    cache = found  # the same from the saved file
    for scheme in ("turbo0v4", "turbo4"):
        convert_in_place(cache, scheme)
        save(vault, cache)
        assert back(load(vault, scheme).cache, "fp16") == before


def test_files_are_written_once_and_go_with_the_scheme_and_the_conversation(
    vault: Vault, model: LoadedModel
) -> None:
    from tqchat.kv import convert_in_place

    cache = changed(model)
    save(vault, cache)
    (first,) = kept(vault)
    written = first.stat()
    restored = load(vault).cache
    for again in (cache, restored):
        save(vault, again)
        assert kept(vault) == [first] and first.stat().st_ino == written.st_ino
    assert vault.size(ID) == sum(path.stat().st_size for path in (vault.folder / ID).iterdir())
    convert_in_place(restored, "turbo4")
    save(vault, restored)
    (other,) = kept(vault)
    assert other != first
    vault.remove(ID)
    assert not vault.folder.joinpath(ID).exists()


def test_trimmed_tokens_do_not_come_back(vault: Vault, model: LoadedModel) -> None:
    import mlx.core as mx

    cache = changed(model)
    save(vault, cache)
    restored, others = load(vault).cache, [7 + n % 800 for n in range(120)]
    for one in (cache, restored):
        for layer in one:
            layer.trim(100)
        model.model(mx.array([others]), cache=one)
    tokens = [*TOKENS[:200], *others]
    save(vault, restored, tokens)
    again = load(vault)
    assert again.tokens == tokens
    assert back(again.cache) == back(restored) == back(cache)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "one bit": lambda path: flip(path, -100),
    "its header": lambda path: flip(path, 40),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_loses_nothing_but_exactness(vault: Vault, model: LoadedModel, kind: str) -> None:
    cache = changed(model)
    save(vault, cache)
    DAMAGE[kind](kept(vault)[0])
    restored = load(vault).cache
    assert held(restored) == held(cache)
    assert len(back(restored)) == len(back(cache)) and back(restored) != back(cache)
    save(vault, restored)
    assert load(vault).tokens == TOKENS


MUTATIONS: list[tuple[str, int, Any]] = [
    ("layer", 3, "9"),
    ("layer", 3, ["0"]),
    ("number", 4, 1 << 70),
    ("number", 4, None),
    *(("description", at, value) for at, value in enumerate(["x", ["turbo", 99], 0, "int8", 10**9, 299])),
    ("description", 0, ["key"]),
    ("description", 5, 10**9),
    ("description", 6, [[5, 0]]),
    ("description", 6, 3),
    ("description", 1, ["affine", 8]),
]


@pytest.mark.parametrize(("what", "at", "value"), MUTATIONS)
def test_what_does_not_fit_the_layers_is_left_out(
    vault: Vault, model: LoadedModel, what: str, at: int, value: Any
) -> None:
    cache = changed(model)
    save(vault, cache)
    path = vault.folder / ID / MANIFEST
    manifest = json.loads(path.read_text())
    del manifest["digest"]
    (entry,) = manifest["earlier"]
    if what == "description":
        for description in entry[5][0]:
            description[at] = value
    else:
        entry[at] = [value] * len(entry[at])
    path.write_text(json.dumps(manifest | {"digest": digest(manifest)}))
    restored = load(vault).cache
    assert restored[0].offset == len(TOKENS)
    assert len(back(restored)) == 2 * len(cache)


def test_they_are_the_first_to_go_when_space_is_short(vault: Vault, model: LoadedModel) -> None:
    cache = changed(model)
    for name in ("a", "b", ID):
        save(vault, cache, name=name)
    whole, extra = vault.size("a"), kept(vault, "a")[0].stat().st_size
    assert 0 < extra < whole
    vault.budget = (3 * whole - extra // 2) / GB
    assert vault.prune_candidates() == []
    assert vault.prune_earlier(dry_run=True) == extra and kept(vault, "a")
    assert vault.prune() == [] and [len(kept(vault, name)) for name in ("a", "b", ID)] == [0, 1, 1]
    vault.budget = (2 * (whole - extra) + (whole - extra) // 2) / GB
    assert [entry.conversation for entry in vault.prune()] == ["a"]
    assert [entry.conversation for entry in vault.entries()] == ["b", ID]
    assert not kept(vault, "b") and not kept(vault)
    # Nothing is pruned to make room for them.
    save(vault, changed(model, "turbo2"), name=ID)
    assert not kept(vault) and load(vault, "turbo2").tokens == TOKENS
    vault.budget = 10 * whole / GB
    save(vault, changed(model, "turbo2"), name=ID)
    assert kept(vault)

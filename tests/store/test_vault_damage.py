"""Mutations of everything on disk. ``TQCHAT_MUTATIONS=5000`` is the long form."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.store.test_vault import ID, PRINT
from tests.store.test_vault_segments import Talk, assert_same
from tqchat.engine import backend
from tqchat.store.manifest import MANIFEST, digest
from tqchat.store.vault import Refused, Restored, Vault

backend.prepare()

if TYPE_CHECKING:
    from tqchat.engine.models import LoadedModel

MUTATIONS = int(os.environ.get("TQCHAT_MUTATIONS", "300"))


@pytest.fixture(scope="module")
def model(llama_folder: Path) -> LoadedModel:
    from tqchat.engine import models

    return models.load(str(llama_folder))


Mutation = Callable[[random.Random, Path, Path], Any]
"""Takes the conversation's folder and another conversation's."""


def _any(chance: random.Random, folder: Path) -> Path:
    return chance.choice(sorted(folder.iterdir()))


def _flip(chance: random.Random, folder: Path, other: Path) -> None:
    path = _any(chance, folder)
    content = bytearray(path.read_bytes())
    for _ in range(chance.choice((1, 1, 1, 30))):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def _flip_header(chance: random.Random, folder: Path, other: Path) -> None:
    path = chance.choice(sorted(folder.glob("*.safetensors")))
    content = bytearray(path.read_bytes())
    content[chance.randrange(min(300, len(content)))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def _cut(chance: random.Random, folder: Path, other: Path) -> None:
    path = _any(chance, folder)
    os.truncate(path, chance.choice((0, 1, 7, 8, 9, chance.randrange(path.stat().st_size))))


def _grow(chance: random.Random, folder: Path, other: Path) -> None:
    path = _any(chance, folder)
    path.write_bytes(path.read_bytes() + chance.randbytes(chance.choice((1, 64, 5000))))


def _zeros(chance: random.Random, folder: Path, other: Path) -> None:
    path = _any(chance, folder)
    content = bytearray(path.read_bytes())
    start = chance.randrange(len(content))
    end = min(start + chance.choice((1, 4096, len(content))), len(content))
    content[start:end] = bytes(end - start)
    path.write_bytes(content)


def _swap(chance: random.Random, folder: Path, other: Path) -> None:
    one, two = chance.sample(sorted(folder.glob("*.safetensors")), 2)
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)


def _foreign(chance: random.Random, folder: Path, other: Path) -> None:
    shutil.copy(_any(chance, other), _any(chance, folder))


def _foreign_manifest(chance: random.Random, folder: Path, other: Path) -> None:
    shutil.copy(other / MANIFEST, folder / MANIFEST)


def _all_foreign(chance: random.Random, folder: Path, other: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(other, folder)


def _remove(chance: random.Random, folder: Path, other: Path) -> None:
    _any(chance, folder).unlink()


def _random(chance: random.Random, folder: Path, other: Path) -> None:
    _any(chance, folder).write_bytes(chance.randbytes(chance.randrange(3000)))


def _folder(chance: random.Random, folder: Path, other: Path) -> None:
    path = _any(chance, folder)
    path.unlink()
    path.mkdir()


def _huge(chance: random.Random, folder: Path, other: Path) -> None:
    path = chance.choice(sorted(folder.glob("*.safetensors")))
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    if chance.random() < 0.3:
        path.write_bytes(struct.pack("<Q", chance.choice((1 << 63, 1 << 40, len(content)))) + content[8:])
        return
    header = json.loads(content[8 : 8 + length])
    entry = header[chance.choice(sorted(header))]
    entry["shape"] = chance.choice(([1 << 40], [1 << 31, 1 << 31], [-1, -8], [2**70], ["9"], [], None, 3))
    if chance.random() < 0.5:
        entry["data_offsets"] = [0, chance.choice((1 << 50, 0, -1))]
    text = json.dumps(header).encode()[:length].ljust(length)
    path.write_bytes(content[:8] + text + content[8 + length :])


def _old_version(chance: random.Random, folder: Path, other: Path) -> None:
    _rewrite(folder, **{chance.choice(("format", "codec", "mlx_lm")): chance.choice((0, 1, 99, "0.1", None))})


def _wrong_model(chance: random.Random, folder: Path, other: Path) -> None:
    _rewrite(folder, fingerprint="another")


def _rewrite(folder: Path, **changes: Any) -> None:
    told = json.loads((folder / MANIFEST).read_text())
    del told["digest"]
    told |= changes
    (folder / MANIFEST).write_text(json.dumps(told | {"digest": digest(told)}))


KINDS: list[Mutation] = [
    _flip,
    _flip,
    _flip_header,
    _cut,
    _grow,
    _zeros,
    _swap,
    _foreign,
    _foreign_manifest,
    _all_foreign,
    _remove,
    _random,
    _folder,
    _huge,
    _old_version,
    _wrong_model,
]


@pytest.mark.parametrize("scheme", ["fp16", "turbo0v4"])
def test_no_mutation_crashes_or_is_taken_for_the_cache(
    tmp_path: Path, model: LoadedModel, scheme: str
) -> None:
    chance = random.Random(os.environ.get("TQCHAT_SEED", f"damage {scheme}"))
    good, other = Vault(tmp_path / "good"), Vault(tmp_path / "other")
    talk = Talk(good, model, scheme, 260)
    talk.save()
    for _ in range(2):
        talk.grow(150)
        talk.save()
    stranger = Talk(other, model, scheme, 300)
    stranger.tokens[0] = 5
    stranger.save()
    (other.folder / ID).rename(other.folder / "other")
    _rewrite(other.folder / "other", conversation="other")

    expected: dict[int, list[Any]] = {}
    used = refused = 0
    peak = _peak()
    for _ in range(MUTATIONS // 2):
        vault = Vault(tmp_path / "mutated")
        shutil.rmtree(vault.folder, ignore_errors=True)
        shutil.copytree(good.folder, vault.folder)
        kind = chance.choice(KINDS)
        kind(chance, vault.folder / ID, other.folder / "other")
        found = vault.load(ID, fingerprint=PRINT, scheme=scheme, wanted=talk.tokens)
        if found is None:
            assert not (vault.folder / ID / MANIFEST).exists()
        elif isinstance(found, Refused):
            assert found.reason and "\n" not in found.reason
            refused += 1
        else:
            assert isinstance(found, Restored)
            count = len(found.tokens)
            assert found.tokens == talk.tokens[:count]
            if count not in expected:
                fresh = Talk(good, model, scheme, 260)
                for _ in range(2):
                    fresh.grow(150)
                fresh.rewind(count)
                expected[count] = fresh.cache
            assert_same(found.cache, expected[count])
            assert (found.damage is None) == (count == len(talk.tokens))
            used += 1
    assert used and refused
    assert _peak() - peak < 64 << 20


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

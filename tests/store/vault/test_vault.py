from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tqchat.engine import backend
from tqchat.store.vault import Refused, Restored, Vault, VaultError
from tqchat.store.vault.manifest import MANIFEST, read_manifest

backend.prepare()

if TYPE_CHECKING:
    from tqchat.engine.models import LoadedModel

ID = "5f0c1d2e"
FINGERPRINT = "fingerprint"


def filled(model: LoadedModel, tokens: list[int], scheme: str = "turbo0v4") -> list[Any]:
    """A cache with ``tokens`` prefilled."""
    import mlx.core as mx

    from tqchat import kv

    cache = kv.make_prompt_cache(model.model, scheme, dtype=model.cache_dtype)
    model.model(mx.array([tokens[:-1]]), cache=cache)
    model.model(mx.array([tokens[-1:]]), cache=cache)
    mx.eval([layer.state for layer in cache])
    return cache


def save(vault: Vault, model: LoadedModel, count: int = 300, scheme: str = "turbo0v4") -> list[int]:
    tokens = [3 + n % 900 for n in range(count)]
    vault.save(
        ID, filled(model, tokens, scheme), tokens, fingerprint=FINGERPRINT, scheme=scheme, rounding=(16, 4)
    )
    return tokens


def load(vault: Vault, fingerprint: str = FINGERPRINT, scheme: str = "turbo0v4") -> Restored | Refused | None:
    return vault.load(ID, fingerprint=fingerprint, scheme=scheme)


def restored(vault: Vault) -> Restored:
    found = load(vault)
    assert isinstance(found, Restored), found
    return found


def segments(vault: Vault) -> list[Path]:
    """The segment files in token order, then the file of the remaining arrays."""
    manifest = read_manifest(vault.folder / ID / MANIFEST)
    names = [piece.file.name for piece in manifest.pieces]
    return [vault.folder / ID / name for name in (*names, manifest.rest.name)]


def test_a_saved_cache_is_restored_bit_for_bit(vault: Vault, model: LoadedModel) -> None:
    import mlx.core as mx
    from mlx.utils import tree_flatten

    tokens = save(vault, model)
    found = restored(vault)
    assert found.tokens == tokens
    assert found.rounding == (16, 4)
    for mine, theirs in zip(found.cache, filled(model, tokens), strict=True):
        assert mine.offset == theirs.offset
        pairs = zip(tree_flatten(mine.state[1]), tree_flatten(theirs.state[1]), strict=True)
        assert all(a[0] == b[0] and mx.array_equal(a[1], b[1]) for a, b in pairs)


def test_load_returns_none_if_nothing_was_saved(vault: Vault) -> None:
    assert load(vault) is None
    assert vault.size(ID) == 0
    assert vault.scheme(ID) is None


def test_files_are_private_to_their_owner(vault: Vault, model: LoadedModel) -> None:
    old = os.umask(0)
    try:
        save(vault, model)
    finally:
        os.umask(old)
    assert stat.S_IMODE(vault.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((vault.folder / ID).stat().st_mode) == 0o700
    files = list((vault.folder / ID).iterdir())
    assert len(files) == 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert vault.size(ID) == sum(path.stat().st_size for path in files)


def test_a_second_save_replaces_the_first(vault: Vault, model: LoadedModel) -> None:
    save(vault, model, 200)
    first = segments(vault)
    tokens = save(vault, model, 260)
    assert not any(path.exists() for path in first)
    assert restored(vault).tokens == tokens


def test_a_loaded_cache_does_not_depend_on_its_files(vault: Vault, model: LoadedModel) -> None:
    import mlx.core as mx

    tokens = save(vault, model)
    found = restored(vault)
    for path in segments(vault):
        path.write_bytes(b"\0" * path.stat().st_size)
    whole = filled(model, tokens)
    assert mx.array_equal(found.cache[0].keys_and_values()[0], whole[0].keys_and_values()[0])


def test_remove_deletes_all_files(vault: Vault, model: LoadedModel) -> None:
    save(vault, model)
    vault.remove(ID)
    assert not (vault.folder / ID).exists()
    assert load(vault) is None
    vault.remove(ID)


@pytest.mark.parametrize("bad", ["", ".", "..", "../x", "a/b", "/etc", "-x", "a" * 200, "a\0b", "a b", "é"])
def test_invalid_conversation_ids_are_refused(vault: Vault, bad: str) -> None:
    assert isinstance(vault.load(bad, fingerprint=FINGERPRINT, scheme="fp16"), Refused)
    assert vault.scheme(bad) is None
    with pytest.raises(VaultError):
        vault.remove(bad)
    with pytest.raises(VaultError):
        vault.save(bad, [], [], fingerprint=FINGERPRINT, scheme="fp16")


def test_another_model_or_scheme_is_refused(vault: Vault, model: LoadedModel) -> None:
    save(vault, model)
    assert "another model" in refusal(load(vault, fingerprint="other"))
    assert "turbo0v4" in refusal(load(vault, scheme="fp16"))
    assert vault.scheme(ID) == "turbo0v4"
    assert isinstance(load(vault), Restored)


def refusal(found: Restored | Refused | None) -> str:
    assert isinstance(found, Refused), found
    assert not found.reason.endswith(".")
    return found.reason


def rewrite(vault: Vault, **changes: Any) -> None:
    """Change fields of the manifest and update its digest."""
    from tqchat.store.vault.manifest import digest

    path = vault.folder / ID / MANIFEST
    manifest = json.loads(path.read_text())
    del manifest["digest"]
    manifest |= changes
    path.write_text(json.dumps(manifest | {"digest": digest(manifest)}))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": 99}, "another version of tqchat"),
        ({"codec": 99}, "another version of tqchat"),
        ({"mlx_lm": "0.1.0"}, "0.1.0"),
        ({"conversation": "other"}, "another conversation"),
        ({"layout": [[], []]}, "layers"),
        ({"rest": ["gone.safetensors", 1, ""]}, "damaged"),
        ({"rest": ["../../etc/passwd", 1, ""]}, "damaged"),
        ({"pieces": []}, "damaged"),
        ({"pieces": [["0" * 32 + ".safetensors", 9, "", 0, 200, 100]]}, "missing"),
        ({"structure": [[], []]}, "damaged"),
        ({"tokens": None}, "damaged"),
        ({"rounding": 3}, "damaged"),
        ({"surprise": 3}, "damaged"),
    ],
)
def test_a_mismatching_manifest_is_refused(
    vault: Vault, model: LoadedModel, changes: dict[str, Any], reason: str
) -> None:
    save(vault, model)
    rewrite(vault, **changes)
    assert reason in refusal(load(vault))


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x40
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path, Path], Any]] = {
    "one bit of the segment": lambda manifest, segment: flip(segment, -100),
    "the segment's header": lambda manifest, segment: flip(segment, 40),
    "a segment cut short": lambda manifest, segment: segment.write_bytes(segment.read_bytes()[:-1]),
    "an empty segment": lambda manifest, segment: segment.write_bytes(b""),
    "no segment": lambda manifest, segment: segment.unlink(),
    "a folder for a segment": lambda manifest, segment: (segment.unlink(), segment.mkdir()),
    "one bit of the manifest": lambda manifest, segment: flip(manifest, 200),
    "a manifest cut short": lambda manifest, segment: manifest.write_bytes(manifest.read_bytes()[:-9]),
    "an empty manifest": lambda manifest, segment: manifest.write_bytes(b""),
    "a manifest of something else": lambda manifest, segment: manifest.write_text("[1, 2]"),
    "zeros for a manifest": lambda manifest, segment: manifest.write_bytes(b"\0" * 500),
    "the manifest before there were segments": lambda manifest, segment: manifest.write_text(OLD_MANIFEST),
}
OLD_MANIFEST = json.dumps({"format": 1, "snapshot": "a.safetensors", "digest": "0" * 64})


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_refused_and_repaired_by_the_next_save(vault: Vault, model: LoadedModel, kind: str) -> None:
    save(vault, model)
    DAMAGE[kind](vault.folder / ID / MANIFEST, segments(vault)[0])
    assert refusal(load(vault))
    tokens = save(vault, model, 220)
    assert restored(vault).tokens == tokens
    if "folder" not in kind:
        assert len(list((vault.folder / ID).iterdir())) == 3


def test_an_unwritable_folder_raises_vault_error(vault: Vault, model: LoadedModel) -> None:
    vault.folder.parent.mkdir(exist_ok=True)
    vault.folder.write_text("a file where the folder should be")
    with pytest.raises(VaultError, match="could not be saved"):
        save(vault, model)


def test_leftovers_of_a_killed_process_are_deleted_once_stale(vault: Vault, model: LoadedModel) -> None:
    save(vault, model)
    folder = vault.folder / ID
    old, fresh, orphan = (folder / f"{name}.safetensors" for name in ("new-old", "new-fresh", "orphan"))
    for path in (old, fresh, orphan):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    save(vault, model)
    assert (old.exists(), fresh.exists(), orphan.exists()) == (False, True, False)
    restored(vault)


@pytest.mark.parametrize("durable", [True, False])
def test_a_vault_that_need_not_survive_a_power_loss_does_not_wait_for_the_disk(
    tmp_path: Path, model: LoadedModel, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    flushed: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (flushed.append(descriptor), real(descriptor))[1])
    vault = Vault(tmp_path / "caches").with_lesser(tmp_path / "requests", durable=durable)
    save(vault, model, 300)
    tokens = save(vault, model, 400)
    assert bool(flushed) == durable
    assert restored(vault).tokens == tokens


def test_a_power_loss_behind_a_save_that_was_not_flushed_is_told(tmp_path: Path, model: LoadedModel) -> None:
    vault = Vault(tmp_path / "caches", durable=False)
    save(vault, model)
    for path in segments(vault):
        with path.open("r+b") as file:  # as a file system leaves what it had not written
            file.seek(path.stat().st_size // 2)
            file.write(bytes(path.stat().st_size - path.stat().st_size // 2))
    assert not isinstance(load(vault), Restored) or not restored(vault).tokens

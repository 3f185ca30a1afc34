from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tqchat.engine import backend
from tqchat.store.vault import MANIFEST, Refused, Restored, Vault, VaultError

backend.prepare()

if TYPE_CHECKING:
    from tqchat.engine.models import LoadedModel

ID = "5f0c1d2e"
PRINT = "fingerprint"


@pytest.fixture(scope="module")
def model(llama_folder: Path) -> LoadedModel:
    from tqchat.engine import models

    return models.load(str(llama_folder))


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "caches")


def filled(model: LoadedModel, tokens: list[int], scheme: str = "turbo0v4") -> list[Any]:
    """A cache that has read ``tokens`` and packed what it can."""
    import mlx.core as mx

    from tqchat import kv

    cache = kv.make_prompt_cache(model.model, scheme, dtype=model.cache_dtype)
    model.model(mx.array([tokens[:-1]]), cache=cache)
    model.model(mx.array([tokens[-1:]]), cache=cache)
    mx.eval([layer.state for layer in cache])
    return cache


def save(vault: Vault, model: LoadedModel, count: int = 300, scheme: str = "turbo0v4") -> list[int]:
    tokens = [3 + n % 900 for n in range(count)]
    vault.save(ID, filled(model, tokens, scheme), tokens, fingerprint=PRINT, scheme=scheme, rounding=(16, 4))
    return tokens


def load(vault: Vault, fingerprint: str = PRINT, scheme: str = "turbo0v4") -> Restored | Refused | None:
    return vault.load(ID, fingerprint=fingerprint, scheme=scheme)


def restored(vault: Vault) -> Restored:
    found = load(vault)
    assert isinstance(found, Restored), found
    return found


def snapshot(vault: Vault) -> Path:
    (path,) = (vault.folder / ID).glob("*.safetensors")
    return path


def test_what_is_saved_comes_back_bit_for_bit(vault: Vault, model: LoadedModel) -> None:
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


def test_nothing_saved_is_no_reason(vault: Vault) -> None:
    assert load(vault) is None
    assert vault.size(ID) == 0
    assert vault.scheme(ID) is None


def test_files_are_the_owners_alone(vault: Vault, model: LoadedModel) -> None:
    old = os.umask(0)
    try:
        save(vault, model)
    finally:
        os.umask(old)
    assert stat.S_IMODE(vault.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((vault.folder / ID).stat().st_mode) == 0o700
    files = list((vault.folder / ID).iterdir())
    assert len(files) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert vault.size(ID) == sum(path.stat().st_size for path in files)


def test_a_second_save_replaces_the_first(vault: Vault, model: LoadedModel) -> None:
    save(vault, model, 200)
    first = snapshot(vault)
    tokens = save(vault, model, 260)
    assert snapshot(vault) != first
    assert restored(vault).tokens == tokens


def test_an_overwritten_conversation_does_not_change_a_cache_that_was_loaded(
    vault: Vault, model: LoadedModel
) -> None:
    import mlx.core as mx

    tokens = save(vault, model)
    found = restored(vault)
    path = snapshot(vault)
    path.write_bytes(b"\0" * path.stat().st_size)
    whole = filled(model, tokens)
    assert mx.array_equal(found.cache[0].keys_and_values()[0], whole[0].keys_and_values()[0])


def test_forgetting_removes_everything(vault: Vault, model: LoadedModel) -> None:
    save(vault, model)
    vault.forget(ID)
    assert not (vault.folder / ID).exists()
    assert load(vault) is None
    vault.forget(ID)


@pytest.mark.parametrize("bad", ["", ".", "..", "../x", "a/b", "/etc", "-x", "a" * 200, "a\0b", "a b", "é"])
def test_ids_that_are_no_folder_names_are_refused(vault: Vault, bad: str) -> None:
    assert isinstance(vault.load(bad, fingerprint=PRINT, scheme="fp16"), Refused)
    assert vault.scheme(bad) is None
    with pytest.raises(VaultError):
        vault.forget(bad)
    with pytest.raises(VaultError):
        vault.save(bad, [], [], fingerprint=PRINT, scheme="fp16")


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
    """Change the manifest and give it a right digest again: another version, not a damaged one."""
    from tqchat.store.vault import _digest

    path = vault.folder / ID / MANIFEST
    manifest = json.loads(path.read_text())
    del manifest["digest"]
    manifest |= changes
    path.write_text(json.dumps(manifest | {"digest": _digest(manifest)}))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": 99}, "another version of tqchat"),
        ({"codec": 99}, "another version of tqchat"),
        ({"mlx_lm": "0.1.0"}, "0.1.0"),
        ({"layout": []}, "layers"),
        ({"snapshot": "gone.safetensors"}, "missing"),
        ({"snapshot": "../../etc/passwd"}, "missing"),
        ({"sha256": "0" * 64}, "checksum"),
        ({"tokens": None}, "damaged"),
        ({"rounding": 3}, "damaged"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
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
    "one bit of the snapshot": lambda manifest, snapshot: flip(snapshot, -100),
    "the snapshot's header": lambda manifest, snapshot: flip(snapshot, 40),
    "a snapshot cut short": lambda manifest, snapshot: snapshot.write_bytes(snapshot.read_bytes()[:-1]),
    "an empty snapshot": lambda manifest, snapshot: snapshot.write_bytes(b""),
    "no snapshot": lambda manifest, snapshot: snapshot.unlink(),
    "one bit of the manifest": lambda manifest, snapshot: flip(manifest, 200),
    "a manifest cut short": lambda manifest, snapshot: manifest.write_bytes(manifest.read_bytes()[:-9]),
    "an empty manifest": lambda manifest, snapshot: manifest.write_bytes(b""),
    "a manifest of something else": lambda manifest, snapshot: manifest.write_text("[1, 2]"),
    "zeros for a manifest": lambda manifest, snapshot: manifest.write_bytes(b"\0" * 500),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_refused_and_the_next_save_heals_it(vault: Vault, model: LoadedModel, kind: str) -> None:
    save(vault, model)
    DAMAGE[kind](vault.folder / ID / MANIFEST, snapshot(vault))
    assert refusal(load(vault))
    tokens = save(vault, model, 220)
    assert restored(vault).tokens == tokens
    assert len(list((vault.folder / ID).iterdir())) == 2


def test_a_folder_that_cannot_be_written_is_one_sentence(vault: Vault, model: LoadedModel) -> None:
    vault.folder.parent.mkdir(exist_ok=True)
    vault.folder.write_text("a file where the folder should be")
    with pytest.raises(VaultError, match="could not be saved"):
        save(vault, model)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from tests.store.test_vault import ID, load, save
from tqchat.engine import backend, models
from tqchat.store.vault import Restored, Vault, VaultError
model, vault = models.load(sys.argv[1]), Vault(Path(sys.argv[2]))
tokens = save(vault, model, 200)
before = sorted((path.name, path.read_bytes()) for path in (vault.folder / ID).iterdir())
size = vault.size(ID)
for limit in (0, 10, 1000, size // 3, size - 2000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        save(vault, model, 400)
    except VaultError as error:
        print(error)
    after = sorted((path.name, path.read_bytes()) for path in (vault.folder / ID).iterdir())
    assert after == before, limit
    found = load(vault)
    assert isinstance(found, Restored) and found.tokens == tokens
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert save(vault, model, 400) == load(vault).tokens
"""


def test_a_full_disk_leaves_what_was_saved_before(llama_folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(llama_folder), str(tmp_path / "caches")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    sentences = done.stdout.splitlines()
    assert len(sentences) == 5
    assert all(line.startswith("The cache could not be saved (") for line in sentences)


SAVE_FOR_EVER = """
import sys
from pathlib import Path
from tests.store.test_vault import save
from tqchat.engine import models
from tqchat.store.vault import Vault
model, vault = models.load(sys.argv[1]), Vault(Path(sys.argv[2]))
for count in range(200, 100000):
    save(vault, model, 200 + count % 100)
    print(count, flush=True)
"""


def test_a_kill_at_any_moment_leaves_a_whole_cache(llama_folder: Path, tmp_path: Path) -> None:
    vault = Vault(tmp_path / "caches")
    for saves in (1, 2, 3):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOR_EVER, str(llama_folder), str(vault.folder)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        for _ in range(saves):
            assert process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        found = restored(vault)
        assert found.cache[0].offset == len(found.tokens) >= 200


def test_what_a_killed_process_left_is_cleared_away_once_it_is_old(vault: Vault, model: LoadedModel) -> None:
    save(vault, model)
    folder = vault.folder / ID
    old, fresh, orphan = (folder / f"{name}.safetensors" for name in ("new-old", "new-fresh", "orphan"))
    for path in (old, fresh, orphan):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    save(vault, model)
    assert (old.exists(), fresh.exists(), orphan.exists()) == (False, True, False)
    restored(vault)

"""Saves on a full disk: a file size limit fails a different write each time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import resource, sys
from pathlib import Path
from tests.store.vault.test_vault import ID, filled, load
from tests.store.vault.test_segments import grow
from tqchat.engine import backend, models
from tqchat.store.vault import Restored, Vault, VaultError

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

model, vault = models.load(sys.argv[1]), Vault(Path(sys.argv[2]))
tokens = [3 + n % 900 for n in range(200)]
cache = filled(model, tokens)
metadata = dict(fingerprint="fingerprint", scheme="turbo0v4")
first = vault.save(ID, cache, tokens, **metadata)
before = sorted((path.name, path.read_bytes()) for path in (vault.folder / ID).iterdir())
tokens = tokens + grow(model, cache, 300)
refused = size = 0
while True:
    limit(size)
    try:
        vault.save(ID, cache, tokens, pieces=first.pieces, **metadata)
        break
    except VaultError as error:
        refused += 1
        assert str(error).startswith("The cache could not be saved ("), error
    finally:
        limit(resource.RLIM_INFINITY)
    after = sorted((path.name, path.read_bytes()) for path in (vault.folder / ID).iterdir())
    assert after == before, size
    found = load(vault)
    assert isinstance(found, Restored) and found.tokens == tokens[:200]
    size = max(size * 5 // 4, size + 300)
found = load(vault)
assert found.tokens == tokens and found.damage is None
print(refused)
"""


def test_a_full_disk_leaves_the_previous_save_intact(llama_folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(llama_folder), str(tmp_path / "caches")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 15

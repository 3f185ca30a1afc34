"""What killed processes and deleted conversations leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tqchat import files
from tqchat.paths import Paths
from tqchat.store.database import Database
from tqchat.store.vault.manifest import MANIFEST
from tqchat.ui.parts import leftovers

HOLD = """
import os, sys, tempfile
from tqchat import files
from tqchat.paths import locate
from tqchat.store.database import Database
paths = locate()
made = [tempfile.mkstemp(dir=file.parent, prefix=files.own_prefix(files.temporary_prefix(file)))[1]
        for file in (paths.state_file, paths.presets, paths.unsent_text)]
copies = files.temporary_folder()
made.append(copies.__enter__())
(made[-1] / "tqchat.db").write_bytes(b"messages")
lease = Database(paths.database).leases.acquire("abc")
print(*made, paths.data_dir / "leases" / "abc", sep="\\n", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def spills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)


def test_a_killed_process_leaves_nothing_for_ever(paths: Paths) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdin is not None
    made = [Path(process.stdout.readline().strip()) for _ in range(5)]
    assert all(path.exists() for path in made)
    leftovers.remove(paths, [])
    assert all(path.exists() for path in made), "the process still runs"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()
    leftovers.remove(paths, [])
    assert not any(path.exists() for path in made)


def test_files_that_are_not_ours_or_are_young_stay(paths: Paths) -> None:
    old, young = paths.state_dir / ".state.toml.abcdefgh", paths.state_dir / ".state.toml.hgfedcba"
    others = [paths.state_dir / "state.toml.bak", paths.data_dir / "leases" / "notes.txt", paths.state_file]
    (paths.data_dir / "leases").mkdir()
    (paths.data_dir / "leases" / "folder").mkdir()
    for file in (old, young, *others):
        file.write_text("")
    os.utime(old, (time.time() - 7200,) * 2)
    (paths.state_dir / ".state.toml.1-x").symlink_to(paths.data_dir)
    leftovers.remove(paths, [])
    assert not old.exists() and young.exists() and all(file.exists() for file in others)


def test_caches_of_conversations_that_are_gone_are_removed(paths: Paths) -> None:
    for name in ("kept", "gone", "held", "foreign"):
        (paths.caches / name).mkdir()
        (paths.caches / name / (MANIFEST if name != "foreign" else "notes.txt")).write_text("{}")
    with Database(paths.database) as database, database.leases.acquire("held"):
        leftovers.remove(paths, [])
        assert len(list(paths.caches.iterdir())) == 4, "without conversations the database may be another"
        leftovers.remove(paths, ["kept"])
    assert sorted(folder.name for folder in paths.caches.iterdir()) == ["foreign", "held", "kept"]


def test_an_atomic_write_names_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(Path, "replace", lambda self, target: seen.append(self.name))
    files.write_atomically(tmp_path / "state.toml", b"x")
    assert seen[0].startswith(f".state.toml.{os.getpid()}-")

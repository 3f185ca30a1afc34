"""The disk budget, least-recently-used pruning, and ``tqchat cache``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.store.vault.test_vault import FINGERPRINT, ID, filled
from tqchat.cli import main
from tqchat.engine import backend
from tqchat.paths import Paths
from tqchat.store.database import Database
from tqchat.store.vault import Refused, Vault, VaultError, budget
from tqchat.store.vault.manifest import MANIFEST
from tqchat.units import GB

backend.prepare()

if TYPE_CHECKING:
    from tqchat.engine.models import LoadedModel


def save(vault: Vault, model: LoadedModel, name: str, age: int = 0, count: int = 300) -> None:
    tokens = [3 + n % 900 for n in range(count)]
    vault.save(name, filled(model, tokens), tokens, fingerprint=FINGERPRINT, scheme="turbo0v4")
    manifest = vault.folder / name / MANIFEST
    when = manifest.stat().st_mtime - age
    os.utime(manifest, (when, when))


def names(vault: Vault) -> list[str]:
    return [entry.conversation for entry in vault.entries()]


def test_prune_deletes_the_least_recently_used_first(tmp_path: Path, model: LoadedModel) -> None:
    vault = Vault(tmp_path / "caches")
    for age, name in enumerate("dcba"):
        save(vault, model, name, age * 100)
    assert names(vault) == ["a", "b", "c", "d"]
    one = vault.size("a")
    vault.budget = 4.5 * one / GB
    assert vault.prune() == []
    # A restore counts as a use.
    assert vault.load("a", fingerprint=FINGERPRINT, scheme="turbo0v4") is not None
    vault.budget = 2.5 * one / GB
    assert [entry.conversation for entry in vault.prune_candidates()] == ["b", "c"]
    assert [entry.conversation for entry in vault.prune_candidates(keep=["b"])] == ["c", "d"]
    vault.prune()
    assert names(vault) == ["d", "a"]


def test_a_save_prunes_other_conversations_only(tmp_path: Path, model: LoadedModel) -> None:
    vault = Vault(tmp_path / "caches")
    save(vault, model, "open", age=1000)
    save(vault, model, "other", age=10)
    vault.budget = 2.2 * vault.size("open") / GB
    # Its own previous state is the oldest cache, but must survive if the save fails.
    save(vault, model, "open")
    assert "open" in names(vault)
    assert names(vault) == ["open"]
    vault.budget /= 4
    with pytest.raises(VaultError, match=r"cache budget of [0-9.]+ k?B"):
        save(vault, model, "open")
    assert not isinstance(vault.load("open", fingerprint=FINGERPRINT, scheme="turbo0v4"), Refused)


def test_reserved_disk_space_stays_free(
    tmp_path: Path, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = Vault(tmp_path / "caches", budget=5)
    save(vault, model, "old", age=10)
    free = GB + 10_000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("U", (), {"total": 100 << 30, "free": free}))
    assert vault.prune() == []
    free, vault.budget = 0, None
    with pytest.raises(VaultError, match="almost full"):
        save(vault, model, "new")
    free, vault.budget = GB + 10_000, 5
    with pytest.raises(VaultError, match="almost full"):
        save(vault, model, "new")
    assert names(vault) == []
    assert vault.load("new", fingerprint=FINGERPRINT, scheme="turbo0v4") is None
    assert vault.budget_bytes() == 5 * GB
    vault.budget = None
    assert vault.budget_bytes() == free // 4


def test_listing_and_pruning_do_not_import_mlx(tmp_path: Path, model: LoadedModel) -> None:
    vault = Vault(tmp_path / "caches")
    save(vault, model, ID)
    code = (
        "import sys; from pathlib import Path; from tqchat.store.vault import budget\n"
        "from tqchat.store.vault import Vault\n"
        "vault = Vault(Path(sys.argv[1]))\n"
        "assert [budget.with_manifest(e).tokens for e in vault.entries()] == [300]\n"
        f"assert vault.scheme({ID!r})\n"
        f"assert vault.size({ID!r})\n"
        "vault.prune()\n"
        "assert not {'mlx', 'mlx.core', 'numpy'} & set(sys.modules), sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code, str(vault.folder)], check=True)
    assert names(vault) == [ID]


# tqchat cache


@pytest.fixture
def two(paths: Paths, model: LoadedModel) -> Vault:
    """Two caches: of an existing conversation, and of one that is not in the database."""
    vault = Vault(paths.caches)
    with Database(paths.database) as database:
        save(vault, model, database.create("About dogs", None, "turbo0v4").id, age=7300)
    save(vault, model, "gone")
    return vault


def test_cache_lists_size_tokens_scheme_and_age(two: Vault, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache"]) == 0
    gone, dogs, _, total = capsys.readouterr().out.splitlines()
    for part in ("300 tokens", "turbo0v4", "kB", "2 h", "About dogs"):
        assert part in dogs
    assert "(no such conversation)" in gone
    assert " of " in total
    assert main(["cache", "list"]) == 0


def test_prune_deletes_caches_without_a_conversation_and_those_over_budget(
    two: Vault, paths: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", "prune", "--dry-run"]) == 0
    assert "gone" in capsys.readouterr().out
    assert len(two.entries()) == 2
    assert main(["cache", "prune"]) == 0
    assert [budget.with_manifest(entry).tokens for entry in two.entries()] == [300]
    assert "gone" not in names(two)
    assert main(["cache", "prune"]) == 0
    assert "The caches are within the budget" in capsys.readouterr().out
    paths.config_file.write_text("cache_budget = 0.00001\n")
    with Database(paths.database) as database, database.leases.acquire(names(two)[0]):
        assert main(["cache", "prune"]) == 0
        assert len(two.entries()) == 1
    assert main(["cache", "prune"]) == 0
    assert two.entries() == []


def test_wipe_and_prune_do_their_work_beside_anything(
    two: Vault, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "photo").write_text("mine")
    (mine / "manifest.json").write_text("mine")
    (two.folder / "link").symlink_to(mine)
    (two.folder / "loop").symlink_to(two.folder / "loop")
    (two.folder / "a name with spaces").mkdir()
    (two.folder / "photos").mkdir()
    (two.folder / "photos" / "1.jpg").write_text("mine")
    (two.folder / "notes").write_text("mine")
    (two.folder / "\x1b]0;x\x07").write_text("mine")
    os.mkfifo(two.folder / "pipe")
    (two.folder / "empty").mkdir()
    for name in list(names(two)):  # folders, pipes and links where files should be
        folder = two.folder / name
        os.mkfifo(folder / "new-pipe.safetensors")
        (folder / "new-folder.safetensors" / "deep").mkdir(parents=True)
        (folder / "new-link.safetensors").symlink_to(mine)
    first = names(two)[0]
    (two.folder / first / "manifest.json").unlink()
    (two.folder / first / "manifest.json").mkdir()
    left = {"link", "loop", "a name with spaces", "photos", "notes", "\x1b]0;x\x07", "pipe"}
    for command in ("prune", "wipe"):
        assert main(["cache"]) == 0
        assert main(["cache", command, *(["--yes"] if command == "wipe" else [])]) == 0
        shown = capsys.readouterr().out
        assert "Left in" in shown and "\x1b" not in shown and "photos (not a saved cache)" in shown
        assert "link (a link)" in shown
    assert {path.name for path in two.folder.iterdir()} == left
    assert (mine / "photo").read_text() == (mine / "manifest.json").read_text() == "mine"
    assert main(["cache", "wipe", "--yes"]) == 0


def test_wipe_reports_what_it_cannot_delete_and_deletes_the_rest(
    two: Vault, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = names(two)[0]
    rmdir = os.rmdir

    def refuse(path: str, *args: Any, **options: Any) -> None:
        if str(path).endswith(first):
            raise PermissionError(1, "Operation not permitted")
        rmdir(path, *args, **options)

    monkeypatch.setattr(os, "rmdir", refuse)
    assert main(["cache", "wipe", "--yes"]) == 1
    assert "operation not permitted" in capsys.readouterr().out
    assert [path.name for path in two.folder.iterdir()] == [first]


def test_wipe_asks_for_confirmation(
    two: Vault, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["cache", "wipe"]) == 2
    assert "--yes" in capsys.readouterr().err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert main(["cache", "wipe"]) == 1
    assert len(two.entries()) == 2
    assert main(["cache", "wipe", "--yes"]) == 0
    assert two.entries() == []
    assert main(["cache"]) == 0
    assert "There are no saved caches." in capsys.readouterr().out


def test_a_lesser_vault_gets_what_the_other_leaves_and_is_deleted_first(
    two: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = sum(entry.bytes for entry in two.entries())
    vault = Vault(two.folder, 3 * used / 1e9)
    lesser = vault.with_lesser(tmp_path / "lesser")
    shutil.copytree(two.folder, lesser.folder)
    assert vault.budget_bytes() == 3 * used
    assert lesser.budget_bytes() == 2 * used
    assert lesser.prune() == [] == vault.prune()
    vault.budget = 1.4 * used / 1e9
    assert vault.prune() == []
    assert len(lesser.entries()) == 0, "what the other one leaves is too little for any of two"
    shutil.rmtree(lesser.folder)
    shutil.copytree(two.folder, lesser.folder)
    # An almost full disk: one byte must be freed beyond the reserve.
    total = shutil.disk_usage(tmp_path).total
    reserve = budget.reserved_bytes(two.folder)
    usage = lambda folder: (total, reserve - 1 + freed())  # noqa: E731
    freed = lambda: 2 * used - sum(one.bytes for one in (*lesser.entries(), *vault.entries()))  # noqa: E731
    monkeypatch.setattr(budget, "_usage", usage)
    vault.budget = 10.0
    vault.prune()
    assert len(lesser.entries()) == 1
    assert len(vault.entries()) == 2

"""Complete models are found offline, whatever the cache's references say, and in other programs' folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.models import tiny_llama
from tqchat.engine.commands import STARTER
from tqchat.engine.hub import catalog, local_cache, other_apps
from tqchat.engine.hub.resolve import local_folder

REPO = "org/tiny"
OLD, NEW, CONFIGS = "a" * 40, "b" * 40, "c" * 40


@pytest.fixture(autouse=True)
def no_other_apps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_apps, "folders", tuple)


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub" / "models--org--tiny"


def snapshot(storage: Path, commit: str = NEW) -> Path:
    """A complete snapshot whose files are links to blobs, as huggingface_hub writes them."""
    folder = tiny_llama(storage / "snapshots" / commit)
    blobs = storage / "blobs"
    blobs.mkdir(exist_ok=True)
    for path in list(folder.iterdir()):
        blob = blobs / f"{commit}-{path.name}"
        path.rename(blob)
        path.symlink_to(os.path.relpath(blob, folder))
    return folder


def configs_only(storage: Path) -> Path:
    folder = storage / "snapshots" / CONFIGS
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def write_ref(storage: Path, content: str | bytes) -> None:
    (storage / "refs").mkdir(exist_ok=True)
    (storage / "refs" / "main").write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize(
    "ref",
    [None, NEW, f"{NEW}\n", f" {NEW} \r\n", CONFIGS, "d" * 40, "", "../../..", b"\xff\xfe", "x" * 10_000],
)
def test_a_complete_snapshot_is_found_whatever_the_ref_says(storage: Path, ref: str | bytes | None) -> None:
    folder = snapshot(storage)
    configs_only(storage)
    if ref is not None:
        write_ref(storage, ref)
    assert local_cache.cached_folder(REPO) == folder
    assert local_folder(REPO) == folder
    assert [one.ref for one in catalog.scan()] == [STARTER, REPO]


def test_of_two_complete_snapshots_the_ref_decides_then_the_newest(storage: Path) -> None:
    old, new = snapshot(storage, OLD), snapshot(storage, NEW)
    os.utime(old, (1, 1))
    assert local_cache.cached_folder(REPO) == new
    write_ref(storage, f"{OLD}\n")
    assert local_cache.cached_folder(REPO) == old


def test_a_ref_that_is_a_pipe_is_not_opened(storage: Path) -> None:
    folder = snapshot(storage)
    (storage / "refs").mkdir()
    os.mkfifo(storage / "refs" / "main")
    assert local_cache.cached_folder(REPO) == folder


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_snapshot_without_one_of_its_files_is_not_complete(storage: Path, missing: str) -> None:
    folder = snapshot(storage)
    (folder / missing).resolve().unlink()
    assert local_cache.cached_folder(REPO) is None


def test_a_snapshot_without_one_of_its_shards_is_not_complete(storage: Path) -> None:
    folder = snapshot(storage)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    assert local_cache.cached_folder(REPO) is None
    table = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(table))
    assert local_cache.cached_folder(REPO) is None


def test_a_complete_model_that_cannot_be_loaded_is_listed_with_the_reason(storage: Path) -> None:
    folder = snapshot(storage)
    path = folder / "config.json"
    path.resolve().write_text(json.dumps({"model_type": "bert"}))
    assert local_folder(REPO) == folder
    (one,) = (one for one in catalog.scan() if one.ref == REPO)
    assert one.problem == f"{REPO} is an encoder (bert), which turns text into vectors and writes none; " + (
        "choose a chat model."
    )


def test_a_linked_cache_is_followed(storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = snapshot(storage)
    (tmp_path / "link").symlink_to(storage.parent)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "link"))
    found = local_cache.cached_folder(REPO)
    assert found is not None
    assert found.resolve() == folder.resolve()


def test_a_read_only_cache_is_used(storage: Path) -> None:
    folder = snapshot(storage)
    write_ref(storage, NEW)
    paths = [storage, *storage.rglob("*")]
    modes = {path: path.stat().st_mode for path in paths if not path.is_symlink()}
    try:
        for path in modes:
            path.chmod(0o555 if path.is_dir() else 0o444)
        before = sorted(storage.rglob("*"))
        assert local_folder(REPO) == folder
        assert sorted(storage.rglob("*")) == before
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME", "HUGGINGFACE_HUB_CACHE"])
def test_the_variables_of_the_cache_are_honoured(tmp_path: Path, variable: str) -> None:
    root = tmp_path / "elsewhere"
    hub = root / "hub" if variable == "HF_HOME" else root
    folder = snapshot(hub / "models--org--tiny")
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE"))
    }
    code = "from tqchat.engine.hub import local_cache; print(local_cache.cached_folder('org/tiny'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {variable: str(root), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(folder)


def test_a_missing_or_unreadable_cache_has_no_models(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_cache.cached_folder(REPO) is None
    assert local_cache.cached_repos() == []
    storage.parent.mkdir()
    storage.write_text("a file")
    assert local_cache.cached_folder(REPO) is None


def test_a_model_of_another_program_is_found_by_its_name(
    tmp_path: Path, storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "lmstudio" / "models"
    folder = tiny_llama(root / "org" / "tiny")
    monkeypatch.setattr(other_apps, "folders", lambda: (root,))
    assert local_folder(REPO) == folder
    assert str(folder) in [one.ref for one in catalog.scan()]
    (folder / "model.safetensors").write_bytes(b"half")
    assert local_folder(REPO) is None


def test_lm_studios_folders_and_its_own_choice_are_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".lmstudio").mkdir()
    (tmp_path / ".lmstudio" / "settings.json").write_text(json.dumps({"downloadsFolder": "/data/models"}))
    found = list(other_apps.folders())
    assert tmp_path / ".lmstudio" / "models" in found
    assert tmp_path / ".cache" / "lm-studio" / "models" in found
    assert Path("/data/models") in found
    (tmp_path / ".lmstudio" / "settings.json").write_text("[")
    assert Path("/data/models") not in list(other_apps.folders())

"""Sizes of cached models, and deleting them."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest
from huggingface_hub import constants

from tqchat.engine.hub import disk_use
from tqchat.engine.hub.disk_use import NotDeleted
from tqchat.engine.hub.local_cache import PARTIAL_SUFFIX

REPO = "org/tiny"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


def model(cache: Path, repo: str = REPO, size: int = 1000) -> Path:
    """A repo of two versions that share a blob."""
    storage = cache / f"models--{repo.replace('/', '--')}"
    (storage / "blobs").mkdir(parents=True)
    (storage / "blobs" / "one").write_bytes(bytes(size))
    for commit in ("1", "2"):
        (storage / "snapshots" / commit).mkdir(parents=True)
        (storage / "snapshots" / commit / "model.safetensors").symlink_to("../../blobs/one")
    return storage


def refusal(repo: str = REPO, *in_use: Path) -> str:
    with pytest.raises(NotDeleted) as caught:
        disk_use.delete(repo, in_use)
    assert str(caught.value).endswith(".")
    return str(caught.value)


def test_a_shared_blob_counts_once(cache: Path) -> None:
    storage = model(cache, "org/large", 50_000)
    # Links and nothing else come on top.
    assert 50_000 <= disk_use.storage_bytes(storage) < 51_000


def test_a_deleted_model_is_gone_with_all_versions_and_locks(cache: Path) -> None:
    storage, other = model(cache), model(cache, "org/other")
    locks = cache / ".locks" / storage.name
    locks.mkdir(parents=True)
    freed = disk_use.storage_bytes(storage)
    assert disk_use.delete(REPO) == freed
    assert not storage.exists()
    assert not locks.exists()
    assert (other / "blobs" / "one").stat().st_size == 1000


def test_a_model_reached_through_a_link_is_not_deleted(cache: Path, tmp_path: Path) -> None:
    real = model(tmp_path / "elsewhere")
    (cache / real.name).symlink_to(real)
    text = refusal()
    assert f"is a link in the Hugging Face cache to {real}" in text
    assert (real / "blobs" / "one").is_file()


def test_what_a_link_in_a_model_points_to_stays(cache: Path, tmp_path: Path) -> None:
    storage = model(cache)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("kept")
    (storage / "blobs" / "folder").symlink_to(tmp_path / "precious")
    (storage / "blobs" / "file").symlink_to(tmp_path / "precious" / "file")
    disk_use.delete(REPO)
    assert not storage.exists()
    assert (tmp_path / "precious" / "file").read_text() == "kept"


def test_the_loaded_model_is_not_deleted(cache: Path) -> None:
    storage = model(cache)
    folder = storage / "snapshots" / "2"
    assert refusal(REPO, Path("/nowhere"), folder) == f"{REPO} is loaded; load another model first."
    disk_use.delete(REPO, [storage.with_name("models--org--tiny2")])
    assert not storage.exists()


def test_a_model_that_is_being_downloaded_is_not_deleted(cache: Path) -> None:
    storage = model(cache)
    with (storage / "blobs" / f"two{PARTIAL_SUFFIX}").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "is being downloaded" in refusal()
    disk_use.delete(REPO)
    assert not storage.exists()


@pytest.mark.parametrize("repo", ["org/none", "../..", "org/../tiny", "starter", ""])
def test_only_models_of_the_cache_are_deleted(cache: Path, repo: str) -> None:
    model(cache)
    assert "is not in the Hugging Face cache" in refusal(repo)
    assert len(list(cache.iterdir())) == 1


def test_a_file_in_place_of_a_model_is_left(cache: Path) -> None:
    (cache / "models--org--tiny").write_text("")
    assert "no folder of a model" in refusal()

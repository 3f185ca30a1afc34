"""Models in the local Hugging Face cache, complete or partly downloaded."""

from __future__ import annotations

import shutil
from pathlib import Path

from tqchat.engine.hub import model_folder
from tqchat.engine.hub.remote.download_errors import DownloadFailed

PARTIAL_SUFFIX = ".tqchat.incomplete"
"""Suffix of a blob that is still being downloaded."""

_MAX_REF_BYTES = 1_000


def cache_folder() -> Path:
    """The Hugging Face cache: ``HF_HUB_CACHE``, else ``hub`` in ``HF_HOME``."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def storage_folder(repo: str) -> Path:
    """Folder of all versions of a repo in the cache."""
    return cache_folder() / f"models--{repo.replace('/', '--')}"


def cached_folder(repo: str) -> Path | None:
    """Folder of a model that is complete in the cache, ``None`` otherwise. No network.

    The version that ``refs/main`` names is preferred, then the newest; a version without all of its files is
    passed over. Needs no right to write.
    """
    return next(
        (folder for folder in _snapshots(storage_folder(repo)) if model_folder.is_complete(folder)), None
    )


def cached_repos() -> list[tuple[str, Path]]:
    """Repo id and storage folder of each model in the cache, complete or not, sorted by name."""
    found = []
    try:
        folders = list(cache_folder().glob("models--*"))
    except OSError:
        return []
    for storage in folders:
        match storage.name.split("--")[1:]:  # repo names cannot contain two dashes
            case [owner, name] if owner and name:
                found.append((f"{owner}/{name}", storage))
    return sorted(found, key=lambda one: one[0].lower())


def partial_bytes(storage: Path) -> int:
    """Bytes received of an unfinished tqchat download; 0 if there is none."""
    blobs = list((storage / "blobs").glob("*"))
    if not any(blob.name.endswith(PARTIAL_SUFFIX) for blob in blobs):
        return 0
    return sum(blob.stat().st_size for blob in blobs if blob.is_file())


def discard_partial(repo: str) -> None:
    """Delete an unfinished download.

    Raises:
        DownloadFailed: if it cannot be deleted.
    """
    storage = next((folder for name, folder in cached_repos() if name == repo), None)
    if storage is None or not partial_bytes(storage):
        return
    try:
        if any((storage / "refs").glob("*")):  # another program has a version of it: delete only our files
            for file in (storage / "blobs").glob(f"*{PARTIAL_SUFFIX}"):
                file.unlink(missing_ok=True)
        else:
            shutil.rmtree(storage)
    except OSError as error:
        raise DownloadFailed(f"What is there of {repo} cannot be removed ({error.strerror}).") from error


def _snapshots(storage: Path) -> list[Path]:
    """Snapshots of a repo: the one of ``refs/main`` first, then from new to old."""
    try:
        folders = [folder for folder in (storage / "snapshots").iterdir() if folder.is_dir()]
        times = {folder: folder.stat().st_mtime for folder in folders}
    except OSError:
        return []
    main = _ref(storage / "refs" / "main")
    return sorted(folders, key=lambda folder: (folder.name != main, -times[folder], folder.name))


def _ref(path: Path) -> str:
    try:
        if not path.is_file() or path.stat().st_size > _MAX_REF_BYTES:
            return ""
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""

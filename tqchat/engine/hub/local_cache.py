"""Models in the local Hugging Face cache, complete or partly downloaded."""

from __future__ import annotations

import shutil
from pathlib import Path

from tqchat.engine.hub import model_folder
from tqchat.engine.hub.download_errors import DownloadFailed

PARTIAL_SUFFIX = ".tqchat.incomplete"
"""Suffix of a blob that is still being downloaded."""


def cached_folder(repo: str) -> Path | None:
    """Folder of a model that is complete in the cache, ``None`` otherwise. No network."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo, "config.json")
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    try:
        model_folder.check(folder)
    except model_folder.NeedsCustomCode:
        return folder
    except model_folder.NotAModel:
        return None
    return folder


def cached_repos() -> list[tuple[str, Path]]:
    """Repo id and storage folder of each model in the cache, complete or not, sorted by name."""
    from huggingface_hub import constants

    found = []
    for storage in Path(constants.HF_HUB_CACHE).glob("models--*"):
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

"""Disk use of models, and their deletion from the Hugging Face cache."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Collection
from pathlib import Path

from tqchat.engine.hub import local_cache
from tqchat.errors import TqchatError


class NotDeleted(TqchatError):
    """A model was not deleted."""


def storage_bytes(storage: Path) -> int:
    """Bytes of the files below a folder, each counted once. Links are not followed."""
    total, seen = 0, set()
    for folder, _, names in os.walk(storage):
        for name in names:
            try:
                status = (Path(folder) / name).lstat()
            except OSError:
                continue
            if (key := (status.st_dev, status.st_ino)) not in seen:
                seen.add(key)
                total += status.st_size
    return total


def delete(repo: str, in_use: Collection[Path] = ()) -> int:
    """Delete a model from the Hugging Face cache, all its versions; returns the bytes that were freed.

    Only the cache's own folder of the repo goes. A link in it is removed and what it points to stays.

    Args:
        in_use: Folders of the loaded models.

    Raises:
        NotDeleted: if it is not in the cache, in use, being downloaded, or reached through a link.
    """
    storage = next((folder for name, folder in local_cache.cached_repos() if name == repo), None)
    if storage is None:
        raise NotDeleted(f"{repo} is not in the Hugging Face cache; only models there can be deleted here.")
    check_deletable(repo, storage, in_use)
    freed = storage_bytes(storage)
    try:
        shutil.rmtree(storage)
        shutil.rmtree(storage.parent / ".locks" / storage.name, ignore_errors=True)
    except OSError as error:
        raise NotDeleted(f"{repo} cannot be deleted wholly ({error.strerror or error}).") from error
    return freed


def check_deletable(repo: str, storage: Path, in_use: Collection[Path] = ()) -> None:
    """Check that nothing uses a model of the cache, and that its folder is one.

    Raises:
        NotDeleted: with the reason.
    """
    if problem := _problem(repo, storage, in_use):
        raise NotDeleted(problem)


def _problem(repo: str, storage: Path, in_use: Collection[Path]) -> str | None:
    if storage.is_symlink():
        return f"{repo} is a link in the Hugging Face cache to {_target(storage)}; delete it there."
    if not storage.is_dir():
        return f"{storage} is no folder of a model."
    real = storage.resolve()
    if any(folder.resolve().is_relative_to(real) for folder in in_use):
        return f"{repo} is loaded; load another model first."
    if _is_downloading(storage):
        return f"{repo} is being downloaded; pause that first."
    return None


def _is_downloading(storage: Path) -> bool:
    for path in (storage / "blobs").glob(f"*{local_cache.PARTIAL_SUFFIX}"):
        if path.is_symlink() or not path.is_file():
            continue
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            continue
    return False


def _target(link: Path) -> str:
    try:
        return str(link.resolve())
    except OSError:
        return str(link.readlink())

"""``tqchat models pull`` and ``rm``."""

from __future__ import annotations

import sys
from pathlib import Path

from tqchat.commands.models.output import BadRequest, print_json
from tqchat.text import one_line
from tqchat.units import size


def pull(repo: str, as_json: bool) -> int:
    """Download a model into the Hugging Face cache, unless it is on this machine.

    Raises:
        BadRequest: if ``repo`` is no repo id.
        TqchatError: if the model cannot be downloaded or loaded.
    """
    from tqchat.engine.hub import resolve

    _check_repo(repo)
    there = resolve.local_folder(repo)
    folder = there or _download(repo)
    if as_json:
        print_json({"repo": repo, "folder": str(folder), "bytes": _weight_bytes(folder)})
    else:
        print(f"{repo} {'is now' if there is None else 'is already'} in {folder}.")
    return 0


def _download(repo: str) -> Path:
    """Download a model with progress on standard error, until a signal comes."""
    from tqchat.commands.interruption import Interruption
    from tqchat.commands.measuring import Progress
    from tqchat.commands.models.fetching import fetch

    progress = Progress()
    with Interruption() as interruption:
        try:
            return fetch(
                repo,
                interruption.stop,
                lambda done, total: progress(f"{size(done)} of {size(total)}", done, total),
            )
        finally:
            progress.end()
            if interruption.stop.is_set():
                print(f"tqchat: Run `tqchat models pull {repo}` again to resume.", file=sys.stderr)


def _weight_bytes(folder: Path) -> int:
    from tqchat.engine.hub import model_folder

    return sum(file.stat().st_size for file in model_folder.weight_files(folder))


def remove(repo: str, confirmed: bool, as_json: bool) -> int:
    """Delete a model, or what is there of one, from the Hugging Face cache.

    Raises:
        BadRequest: if ``repo`` is no repo id, or nobody can be asked.
        NotDeleted: if it is not in the cache, or in use.
    """
    from tqchat.engine.hub import disk_use, local_cache

    _check_repo(repo)
    storage = next((folder for name, folder in local_cache.cached_repos() if name == repo), None)
    partial = storage is not None and local_cache.cached_folder(repo) is None
    if storage is not None and not confirmed:
        if as_json or not sys.stdin.isatty():
            raise BadRequest("Nothing can be asked here; pass --yes to delete the model.")
        bytes_there = size(disk_use.storage_bytes(storage))
        shared = "the Hugging Face cache, which other programs use too"
        if input(f"Delete {repo} ({bytes_there}) from {shared}? [y/N] ").strip().lower() not in ("y", "yes"):
            print("Nothing was deleted.")
            return 1
    if storage is not None and partial and local_cache.partial_bytes(storage):
        freed = disk_use.storage_bytes(storage)
        disk_use.check_deletable(repo, storage)
        local_cache.discard_partial(repo)
        freed -= disk_use.storage_bytes(storage)
    else:
        freed = disk_use.delete(repo)
    if as_json:
        print_json({"repo": repo, "freed_bytes": freed})
    else:
        print(f"Deleted {repo}; {size(freed)} are free again.")
    return 0


def _check_repo(repo: str) -> None:
    from tqchat.engine.hub import resolve

    if not resolve.is_repo_id(repo):
        raise BadRequest(f"{one_line(repo)!r} is no Hugging Face model id; one looks like owner/name.")

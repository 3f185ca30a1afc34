"""The disk budget of saved caches and least-recently-used pruning, from file sizes and times."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from tqchat.store.vault.manifest import MANIFEST, ManifestError, read_manifest

GIB = 1 << 30
DEFAULT_BUDGET_BYTES = 20 * GIB


@dataclass(frozen=True)
class CacheEntry:
    """One conversation's caches on disk.

    Attributes:
        used_at: Unix time of the last save or restore.
        tokens, scheme, model: From the manifest, filled in by ``with_manifest``; else 0 and empty.
    """

    conversation: str
    folder: Path
    bytes: int
    used_at: float
    tokens: int = 0
    scheme: str = ""
    model: str = ""


def entries(folder: Path) -> list[CacheEntry]:
    """All saved caches in a folder, least recently used first."""
    found = []
    try:
        folders = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    except OSError:
        folders = []
    for path in folders:
        try:
            found.append(_entry(path))
        except OSError:
            continue  # removed meanwhile
    return sorted((entry for entry in found if entry.bytes), key=lambda entry: entry.used_at)


def with_manifest(entry: CacheEntry) -> CacheEntry:
    """The entry with tokens, scheme and model read from its manifest."""
    try:
        manifest = read_manifest(entry.folder / MANIFEST)
    except (ManifestError, OSError):
        return entry
    return replace(entry, tokens=manifest.tokens, scheme=manifest.scheme, model=manifest.model)


def budget_bytes(folder: Path, budget: float | None = None) -> int:
    """The cache budget in bytes: ``budget`` GiB; by default 20 GiB, at most a quarter of the disk space that
    would be free without caches."""
    if budget is not None:
        return int(budget * GIB)
    used = sum(entry.bytes for entry in entries(folder))
    return min(DEFAULT_BUDGET_BYTES, (_usage(folder)[1] + used) // 4)


def reserved_bytes(folder: Path) -> int:
    """Bytes to leave free on the disk whatever the budget: 1 GiB, at most 5 % of the disk."""
    return min(GIB, _usage(folder)[0] // 20)


def excess_bytes(folder: Path, limit: int, need: int) -> int:
    """Bytes to free before ``need`` more can be written."""
    used = sum(entry.bytes for entry in entries(folder))
    over = used + need - limit
    return max(over, need + reserved_bytes(folder) - _usage(folder)[1], 0)


def least_recently_used(
    found: Iterable[CacheEntry], surplus: int, keep: Collection[str] = ()
) -> list[CacheEntry]:
    """The least recently used caches that together take at least ``surplus`` bytes.

    Args:
        found: Caches, least recently used first.
        keep: Ids of conversations to leave out.
    """
    chosen = []
    for entry in found:
        if surplus <= 0:
            break
        if entry.conversation not in keep:
            chosen.append(entry)
            surplus -= entry.bytes
    return chosen


def _entry(folder: Path) -> CacheEntry:
    size, newest, manifest = 0, 0.0, None
    with os.scandir(folder) as files:
        for file in files:
            about = file.stat(follow_symlinks=False)
            size += about.st_size
            newest = max(newest, about.st_mtime)
            if file.name == MANIFEST:
                manifest = about.st_mtime  # a restore touches it
    return CacheEntry(folder.name, folder, size, newest if manifest is None else manifest)


def _usage(folder: Path) -> tuple[int, int]:
    """Total and free bytes of the disk of a folder (or of its nearest existing parent)."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    return usage.total, usage.free

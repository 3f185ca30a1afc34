"""The disk budget of saved caches and least-recently-used pruning, from file sizes and times."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from tqchat.store.vault.manifest import BRANCH_PREFIX, MANIFEST, ManifestError, read_manifest
from tqchat.store.vault.segments import EARLIER_PREFIX, SUFFIX
from tqchat.units import GB

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}", re.ASCII)
"""Ids of conversations, which name their folders."""
_OWN_FILE = re.compile(rf"\.?{re.escape(MANIFEST)}.*|{BRANCH_PREFIX}.*|.*{re.escape(SUFFIX)}")

DEFAULT_BUDGET_BYTES = 20 * GB


class EarlierEntry(NamedTuple):
    """A file with the tokens of earlier schemes."""

    path: Path
    bytes: int


@dataclass(frozen=True)
class CacheEntry:
    """One conversation's caches on disk.

    Attributes:
        bytes: Of all its files.
        earlier: Files with the tokens of earlier schemes.
        used_at: Unix time of the last save or restore.
        tokens, scheme, model: From the manifest, filled in by ``with_manifest``; else 0 and empty.
    """

    conversation: str
    folder: Path
    bytes: int
    used_at: float
    earlier: tuple[EarlierEntry, ...] = ()
    tokens: int = 0
    scheme: str = ""
    model: str = ""


def entries(folder: Path) -> list[CacheEntry]:
    """All saved caches in a folder, least recently used first."""
    found = [_entry(path) for path in _listed(folder) if _is_cache(path)]
    return sorted((entry for entry in found if entry.bytes), key=lambda entry: entry.used_at)


def empty_entries(folder: Path) -> list[str]:
    """Ids of the folders of caches that hold nothing."""
    return [path.name for path in _listed(folder) if _is_cache(path) and not _entry(path).bytes]


def foreign_files(folder: Path) -> dict[Path, str]:
    """What lies beside the caches and is none, each with the reason; it is never deleted."""
    found = {}
    for path in _listed(folder):
        if not _is_cache(path):
            found[path] = "a link" if path.is_symlink() else "not a saved cache"
    return found


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _is_cache(path: Path) -> bool:
    """Whether a folder is a conversation's: by its name, and by holding a file of a cache, or nothing."""
    try:
        if not ID.fullmatch(path.name) or not stat.S_ISDIR(path.lstat().st_mode):
            return False
        names = [file.name for file in path.iterdir()]
    except PermissionError:
        return True  # reported when it cannot be deleted
    except OSError:
        return False  # removed meanwhile
    return not names or any(_OWN_FILE.fullmatch(name) for name in names)


def with_manifest(entry: CacheEntry) -> CacheEntry:
    """The entry with tokens, scheme and model read from its manifest."""
    try:
        manifest = read_manifest(entry.folder / MANIFEST)
    except (ManifestError, OSError):
        return entry
    return replace(entry, tokens=manifest.tokens, scheme=manifest.scheme, model=manifest.model)


def budget_bytes(folder: Path, budget: float | None = None, others: int = 0) -> int:
    """The cache budget in bytes: ``budget`` GB; by default 20 GB, at most a quarter of the disk space that
    would be free without caches.

    Args:
        others: Bytes of caches in another folder.
    """
    if budget is not None:
        return int(budget * GB)
    used = others + sum(entry.bytes for entry in entries(folder))
    return min(DEFAULT_BUDGET_BYTES, (_usage(folder)[1] + used) // 4)


def reserved_bytes(folder: Path) -> int:
    """Bytes to leave free on the disk whatever the budget: 1 GB, at most 5 % of the disk."""
    return min(GB, _usage(folder)[0] // 20)


def excess_bytes(folder: Path, limit: int, need: int) -> int:
    """Bytes to free before ``need`` more can be written."""
    used = sum(entry.bytes for entry in entries(folder))
    over = used + need - limit
    return max(over, need + reserved_bytes(folder) - _usage(folder)[1], 0)


def earlier_files(found: Iterable[CacheEntry], surplus: int) -> list[EarlierEntry]:
    """Files with tokens of earlier schemes that together take at least ``surplus`` bytes, or all of them.

    Args:
        found: Caches, least recently used first.
    """
    chosen = []
    for file in (file for entry in found for file in entry.earlier):
        if surplus <= 0:
            break
        chosen.append(file)
        surplus -= file.bytes
    return chosen


def without_earlier(entry: CacheEntry) -> CacheEntry:
    """The entry once its tokens of earlier schemes are deleted."""
    return replace(entry, bytes=entry.bytes - sum(file.bytes for file in entry.earlier), earlier=())


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
    earlier = []
    try:
        with os.scandir(folder) as files:
            for file in files:
                about = file.stat(follow_symlinks=False)
                size += about.st_size
                newest = max(newest, about.st_mtime)
                if file.name.startswith(EARLIER_PREFIX):
                    earlier.append(EarlierEntry(folder / file.name, about.st_size))
                if file.name == MANIFEST:
                    manifest = about.st_mtime  # a restore touches it
    except OSError:
        # Removed meanwhile; or it may not be read, and then its own size stands for it.
        with suppress(OSError):
            about = folder.lstat()
            size, newest = size or about.st_size, newest or about.st_mtime
    return CacheEntry(folder.name, folder, size, newest if manifest is None else manifest, tuple(earlier))


def _usage(folder: Path) -> tuple[int, int]:
    """Total and free bytes of the disk of a folder (or of its nearest existing parent)."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    return usage.total, usage.free

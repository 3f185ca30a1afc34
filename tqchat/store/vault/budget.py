"""How much room the saved caches may take, and which of them go first, by the sizes and times of files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from tqchat.store.vault.manifest import MANIFEST, ManifestError, read_manifest

GIB = 1 << 30
MOST_BY_DEFAULT = 20 * GIB


@dataclass(frozen=True)
class Entry:
    """One conversation's caches on disk.

    ``tokens``, ``scheme`` and ``model`` are what its manifest says, once ``described`` has read it; 0 and
    empty where there is none that can be read.
    """

    conversation: str
    folder: Path
    bytes: int
    used_at: float
    tokens: int = 0
    scheme: str = ""
    model: str = ""


def entries(folder: Path) -> list[Entry]:
    """What lies below the folder of all caches, that used longest ago first."""
    found = []
    try:
        folders = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    except OSError:
        folders = []
    for path in folders:
        try:
            found.append(_entry(path))
        except OSError:
            continue  # removed this moment
    return sorted((entry for entry in found if entry.bytes), key=lambda entry: entry.used_at)


def described(entry: Entry) -> Entry:
    """An entry with what its manifest says."""
    try:
        manifest = read_manifest(entry.folder / MANIFEST)
    except (ManifestError, OSError):
        return entry
    return replace(entry, tokens=manifest.tokens, scheme=manifest.scheme, model=manifest.model)


def limit_for(folder: Path, budget: float | None = None) -> int:
    """Bytes that all caches together may take: ``budget`` GiB, or else 20, and no more than a quarter of what
    would be free without them."""
    if budget is not None:
        return int(budget * GIB)
    used = sum(entry.bytes for entry in entries(folder))
    return min(MOST_BY_DEFAULT, (_usage(folder)[1] + used) // 4)


def floor_of(folder: Path) -> int:
    """Bytes that stay free on the disk whatever the budget: 1 GiB, or a twentieth of a small disk."""
    return min(GIB, _usage(folder)[0] // 20)


def shortfall(folder: Path, limit: int, need: int) -> int:
    """How many bytes of caches are too many, if ``need`` more are to be written."""
    used = sum(entry.bytes for entry in entries(folder))
    over = used + need - limit
    return max(over, need + floor_of(folder) - _usage(folder)[1], 0)


def to_remove(found: Iterable[Entry], surplus: int, keep: Collection[str] = ()) -> list[Entry]:
    """The caches to remove so that at least ``surplus`` bytes are free, least recently used first.

    Args:
        found: As ``entries`` returns them.
        keep: Conversations that are never removed.
    """
    chosen = []
    for entry in found:
        if surplus <= 0:
            break
        if entry.conversation not in keep:
            chosen.append(entry)
            surplus -= entry.bytes
    return chosen


def _entry(folder: Path) -> Entry:
    size, newest, manifest = 0, 0.0, None
    with os.scandir(folder) as files:
        for file in files:
            about = file.stat(follow_symlinks=False)
            size += about.st_size
            newest = max(newest, about.st_mtime)
            if file.name == MANIFEST:
                manifest = about.st_mtime  # restoring touches it
    return Entry(folder.name, folder, size, newest if manifest is None else manifest)


def _usage(folder: Path) -> tuple[int, int]:
    """Bytes of the disk and those free on it; of the nearest folder that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    return usage.total, usage.free

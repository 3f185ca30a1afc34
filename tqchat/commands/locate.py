"""``tqchat locate``: prints all locations."""

from __future__ import annotations

import os
from pathlib import Path

from tqchat import paths
from tqchat.paths import expand_user
from tqchat.text import single_line


def main() -> int:
    """Print all locations, one per line."""
    print(table(locations()))
    return 0


def locations() -> list[tuple[str, Path]]:
    """Names and paths of everything tqchat reads or writes; they need not exist."""
    places = paths.locate()
    return [
        ("settings", places.config_file),
        ("themes", places.themes),
        ("state", places.state_file),
        ("conversations", places.database),
        ("caches", places.caches),
        ("logs", places.log_dir),
        ("models", downloads()),
        ("bundled model", paths.bundled("starter")),
    ]


def downloads() -> Path:
    """huggingface_hub's cache of downloaded models, which other programs share."""
    if folder := os.environ.get("HF_HUB_CACHE"):
        return expand_user(folder)
    if folder := os.environ.get("HF_HOME"):
        return expand_user(folder) / "hub"
    cache = expand_user(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return cache / "huggingface" / "hub"


def table(rows: list[tuple[str, Path]] | list[tuple[str, str]]) -> str:
    """Format names and values in two columns."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {single_line(str(value))}" for name, value in rows)

"""Model folders of other programs on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tqchat.engine.hub import model_folder
from tqchat.errors import TqchatError
from tqchat.paths import expand_user

FOLDERS = (
    "~/.lmstudio/models",
    "~/.cache/lm-studio/models",
    # Where programs built on MLX Swift keep models.
    "~/Library/Caches/models",
    "~/.cache/modelscope/hub/models",
)
"""Folders that hold ``owner/name`` folders of models."""

_LM_STUDIO_SETTINGS = ("~/.lmstudio/settings.json", "~/.cache/lm-studio/settings.json")


def folders() -> Iterator[Path]:
    """Model folders of other programs, whether or not they are there."""
    for place in FOLDERS:
        yield expand_user(place)
    for place in _LM_STUDIO_SETTINGS:
        path = expand_user(place)
        try:
            chosen = model_folder.read_json(path).get("downloadsFolder") if path.is_file() else None
        except (TqchatError, OSError):
            continue
        if isinstance(chosen, str) and chosen.startswith("/"):
            yield Path(chosen)


def model_folder_of(repo: str) -> Path | None:
    """Folder of a complete model that another program has downloaded as ``owner/name``."""
    for root in folders():
        folder = root / repo
        try:
            if folder.is_dir() and model_folder.is_complete(folder):
                return folder.resolve()
        except OSError:
            continue
    return None

"""Models on this machine, described from their files: no MLX, no network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqchat.engine.commands import STARTER
from tqchat.engine.hub import local_cache, model_folder, other_apps
from tqchat.engine.model_config import context_limit
from tqchat.errors import TqchatError
from tqchat.paths import bundled, expand_user

Source = Literal["bundled", "folder", "hub"]

_MAX_DEPTH = 3
_MAX_FOLDERS = 2_000


@dataclass(frozen=True)
class LocalModel:
    """A model on disk.

    Attributes:
        ref: The name to load it by.
        folder: ``None`` for an unfinished download.
        disk_bytes: Bytes of its weight files, or of the part already downloaded.
        problem: Why it cannot be loaded.
    """

    ref: str
    name: str
    source: Source
    folder: Path | None
    disk_bytes: int
    architecture: str = ""
    quantisation: str = ""
    context_limit: int | None = None
    problem: str | None = None


def scan(model_folders: Iterable[str] = ()) -> list[LocalModel]:
    """The bundled model, models in ``model_folders`` and models in the Hugging Face cache, sorted by name.

    A model that cannot be loaded is listed with the reason. Reads the disk: do not call it on the UI thread.
    """
    found = [describe(bundled("starter"), STARTER, STARTER, "bundled")]
    seen = {folder.resolve() for folder in (bundled("starter"),)}
    for root in (*model_folders, *other_apps.folders()):
        for folder in _model_folders(expand_user(str(root))):
            if (real := folder.resolve()) not in seen:
                seen.add(real)
                found.append(describe(folder, str(folder), folder.name, "folder"))
    return found + list(_cached())


def describe(folder: Path, ref: str, name: str, source: Source) -> LocalModel:
    """Describe a model folder from its files."""
    try:
        config = model_folder.check(folder)
        size = sum(file.stat().st_size for file in model_folder.weight_files(folder))
    except (TqchatError, OSError) as error:
        return LocalModel(ref, name, source, folder, 0, problem=str(error))
    return LocalModel(
        ref,
        name,
        source,
        folder,
        size,
        str(config["model_type"]),
        quantisation(config),
        context_limit(config),
    )


def quantisation(config: dict[str, Any]) -> str:
    """Short name of the weights' format: ``4-bit``, ``mxfp4``, ``bf16``."""
    text = config.get("text_config")
    for table in (config, text if isinstance(text, dict) else {}):
        entry = table.get("quantization") or table.get("quantization_config")
        if isinstance(entry, dict):
            mode, bits = entry.get("mode"), entry.get("bits")
            if isinstance(mode, str) and mode != "affine":
                return mode
            if isinstance(bits, int):
                return f"{bits}-bit"
            return str(entry.get("quant_method", "quantised"))
        dtype = table.get("torch_dtype") or table.get("dtype")
        if isinstance(dtype, str):
            return {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}.get(dtype, dtype)
    return ""


def _model_folders(root: Path) -> Iterator[Path]:
    """Folders below (or at) ``root`` that have a ``config.json`` with a ``model_type``."""
    queue = [(root, 0)]
    visited = 0
    while queue and visited < _MAX_FOLDERS:
        folder, depth = queue.pop(0)
        visited += 1
        try:
            if _is_model(folder):
                yield folder
            elif depth < _MAX_DEPTH:
                below = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
                queue += [(path, depth + 1) for path in below if path.is_dir()]
        except OSError:
            continue  # unreadable, or deleted meanwhile


def _is_model(folder: Path) -> bool:
    path = folder / "config.json"
    try:
        return path.exists() and isinstance(model_folder.read_json(path).get("model_type"), str)
    except (TqchatError, OSError):
        return False


def named_folder(name: str) -> Path | None:
    """The folder that a user names; ``None`` if there is none."""
    try:
        folder = expand_user(name)
        return folder if folder.is_dir() else None
    except (OSError, ValueError):
        return None


def _cached() -> Iterator[LocalModel]:
    """Complete models in the Hugging Face cache, and unfinished tqchat downloads."""
    for repo, storage in local_cache.cached_repos():
        folder = local_cache.cached_folder(repo)
        if folder is not None and _is_model(folder):
            yield describe(folder, repo, repo, "hub")
        elif received := local_cache.partial_bytes(storage):
            yield LocalModel(repo, repo, "hub", None, received)

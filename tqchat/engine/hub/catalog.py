"""The models that are on this machine, from their files alone: no MLX, no network."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqchat.engine import prompts
from tqchat.engine.commands import STARTER
from tqchat.engine.hub import download, model_folder
from tqchat.errors import TqchatError
from tqchat.paths import bundled

Source = Literal["bundled", "folder", "hub"]

KNOWN_FOLDERS = ("~/.lmstudio/models", "~/.cache/lm-studio/models")
"""Where another program keeps models that load here as well."""

_DEEPEST = 3
_MOST_FOLDERS = 2_000


@dataclass(frozen=True)
class Found:
    """A model on disk. ``ref`` loads it; ``folder`` is ``None`` for a download that was not finished.

    ``disk_bytes`` are its weights, or what has arrived of them. ``problem`` says why it cannot be loaded.
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


def scan(model_folders: Iterable[str] = ()) -> list[Found]:
    """The bundled model, those in the person's folders, and those in the hub's cache, each sorted by name.

    What is no model is passed over; a model that cannot be loaded is listed with the reason. Takes as long as
    the disk does: run it beside the screen.
    """
    found = [describe(bundled("starter"), STARTER, STARTER, "bundled")]
    seen = {folder.resolve() for folder in (bundled("starter"),)}
    for root in (*model_folders, *KNOWN_FOLDERS):
        for folder in _model_folders(Path(root).expanduser()):
            if (real := folder.resolve()) not in seen:
                seen.add(real)
                found.append(describe(folder, str(folder), folder.name, "folder"))
    return found + list(_hub())


def describe(folder: Path, ref: str, name: str, source: Source) -> Found:
    """What a model folder's own files say."""
    try:
        config = model_folder.check(folder)
        size = sum(file.stat().st_size for file in model_folder.weight_files(folder))
    except (TqchatError, OSError) as error:
        return Found(ref, name, source, folder, 0, problem=str(error))
    return Found(
        ref,
        name,
        source,
        folder,
        size,
        str(config["model_type"]),
        quantisation(config),
        prompts.context_limit(config),
    )


def quantisation(config: dict[str, Any]) -> str:
    """How the weights are kept, as short as people say it: ``4-bit``, ``mxfp4``, ``bf16``."""
    text = config.get("text_config")
    for table in (config, text if isinstance(text, dict) else {}):
        told = table.get("quantization") or table.get("quantization_config")
        if isinstance(told, dict):
            mode, bits = told.get("mode"), told.get("bits")
            if isinstance(mode, str) and mode != "affine":
                return mode
            if isinstance(bits, int):
                return f"{bits}-bit"
            return str(told.get("quant_method", "quantised"))
        dtype = table.get("torch_dtype") or table.get("dtype")
        if isinstance(dtype, str):
            return {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}.get(dtype, dtype)
    return ""


def _model_folders(root: Path) -> Iterator[Path]:
    """Folders below (or at) ``root`` that have a ``config.json`` with a ``model_type``."""
    waiting = [(root, 0)]
    looked = 0
    while waiting and looked < _MOST_FOLDERS:
        folder, depth = waiting.pop(0)
        looked += 1
        try:
            if _is_model(folder):
                yield folder
            elif depth < _DEEPEST:
                below = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
                waiting += [(path, depth + 1) for path in below if path.is_dir()]
        except OSError:
            continue  # not ours to read, or gone by now


def _is_model(folder: Path) -> bool:
    try:
        table = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(table, dict) and isinstance(table.get("model_type"), str)


def _hub() -> Iterator[Found]:
    """Whole models in the hub's cache, and downloads of ours that wait to go on."""
    for repo, storage in download.repos():
        folder = download.cached(repo)
        if folder is not None and _is_model(folder):
            yield describe(folder, repo, repo, "hub")
        elif arrived := download.arrived(storage):
            yield Found(repo, repo, "hub", None, arrived)

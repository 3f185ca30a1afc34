"""Checks that a folder is a complete model, before MLX reads it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from tqchat.errors import TqchatError

WEIGHT_PATTERN = "model*.safetensors"
"""The weight files that mlx-lm loads."""


class NotAModel(TqchatError):
    """The folder is not a model, or an incomplete or damaged one."""


class NeedsCustomCode(TqchatError):
    """The model can only be loaded by running its own Python code, which tqchat never does."""


def check(folder: Path) -> dict[str, Any]:
    """Check that a model is complete; returns its ``config.json``.

    Raises:
        NotAModel: if a file is missing, truncated or unreadable.
        NeedsCustomCode: if loading it would run code that comes with it.
    """
    if not (folder / "config.json").is_file():
        raise NotAModel(f"{folder} is no model folder: it has no config.json.")
    config = _read_json(folder / "config.json")
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise NotAModel(f"{folder / 'config.json'} does not say what kind of model it is (model_type).")
    if config.get("model_file") is not None:
        raise NeedsCustomCode(
            f"{folder.name} comes with its own Python code ({config['model_file']}), which tqchat "
            "never runs; choose a model of an architecture that mlx-lm knows."
        )
    weights = weight_files(folder)
    for path in weights:
        check_weights(path)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise NotAModel(f"{folder} has no tokenizer (tokenizer.json or tokenizer.model).")
    return config


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a model folder, complete by its index.

    Raises:
        NotAModel: if there are none, or some are missing.
    """
    weights = sorted(folder.glob(WEIGHT_PATTERN))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        table = _read_json(index).get("weight_map")
        named = {str(name) for name in table.values()} if isinstance(table, dict) else set()
        missing = sorted(named - {path.name for path in weights})
        if missing and weights:
            raise NotAModel(
                f"{folder} lacks {len(missing)} of {len(named)} weight files ({missing[0]} first): "
                "download it again."
            )
    if weights:
        return weights
    if any(folder.glob("*.gguf")):
        raise NotAModel(f"{folder} holds GGUF weights; tqchat loads MLX or safetensors models.")
    if any(folder.glob("*.bin")):
        raise NotAModel(f"{folder} holds PyTorch weights; convert them with `mlx_lm.convert` first.")
    raise NotAModel(f"{folder} is no model folder: it has no weights ({WEIGHT_PATTERN}).")


def check_weights(path: Path) -> None:
    """Check that a safetensors file has the length that its header states.

    Raises:
        NotAModel: if it has not, or is unreadable.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
            if length > size - 8:
                raise NotAModel(f"The weights in {path} are cut short: download or copy them again.")
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except OSError as error:
        raise NotAModel(f"The weights in {path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise NotAModel(f"The weights in {path} are damaged: download or copy them again.") from error
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise NotAModel(
            f"The weights in {path} are {'cut short' if size < expected else 'damaged'} "
            f"({size:,} of {expected:,} bytes): download or copy them again."
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NotAModel(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise NotAModel(f"{path} is no valid JSON: download or copy the model again.") from error
    if not isinstance(table, dict):
        raise NotAModel(f"{path} is no JSON table: download or copy the model again.")
    return table

"""Checks that a folder is a complete model that can be loaded, before MLX reads it."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

from tqchat.engine.hub import loadable, safetensors_header
from tqchat.engine.hub.model_errors import NeedsCustomCode, NotAModel, UnsupportedModel
from tqchat.files import is_nested_deeply
from tqchat.text import one_line

__all__ = [
    "TOKENIZER_FILES",
    "WEIGHT_PATTERN",
    "NeedsCustomCode",
    "NotAModel",
    "UnsupportedModel",
    "check",
    "display_name",
    "is_complete",
    "read_json",
    "weight_files",
]

WEIGHT_PATTERN = "model*.safetensors"
"""The weight files that mlx-lm loads."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tiktoken.model", "spiece.model")

_READ_PATTERNS = (
    *("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.spm", "*.bpe", "*.vocab", "*.py"),
    *("*.safetensors", "additional_chat_templates", "additional_chat_templates/*"),
)
_MAX_JSON_BYTES = 256 << 20
"""Longest file besides the weights: they are read whole."""
_SHARD = re.compile(r"(model.*)-(\d{1,6})-of-(\d{1,6})\.safetensors")


def check(folder: Path) -> dict[str, Any]:
    """Check that a model is complete and can be loaded; returns its ``config.json``.

    Raises:
        NotAModel: if a file is missing, truncated, unreadable or no regular file, or holds impossible values.
        NeedsCustomCode: if loading it would run code that comes with it.
        UnsupportedModel: if mlx-lm cannot load it.
    """
    config = _config(folder)
    _check_regular(folder)
    name, in_hub = display_name(folder), _hub_storage(folder) is not None
    loadable.check(
        name,
        config,
        _optional_json(folder / "tokenizer_config.json") or {},
        quant_config=_optional_json(folder / "hf_quant_config.json"),
        repo=in_hub,
    )
    _check_generation_config(folder / "generation_config.json")
    dtypes: set[str] = set()
    for path in weight_files(folder):
        dtypes |= safetensors_header.check(path)
    if any(dtype.startswith("F8_") for dtype in dtypes) and not _says_quantised(config, folder):
        raise UnsupportedModel(
            f"{name} holds FP8 weights, which its config.json does not account for; "
            f"{loadable.instead_of(name, in_hub)}."
        )
    _check_tokenizer(folder)
    return config


def is_complete(folder: Path) -> bool:
    """Whether configuration, tokenizer and all weights are there, whether or not they can be loaded."""
    try:
        _config(folder)
        for path in weight_files(folder):
            safetensors_header.check(path)
        _check_tokenizer(folder)
    except (NotAModel, UnsupportedModel):
        return False
    return True


def display_name(folder: Path) -> str:
    """The repo id of a model in the Hugging Face cache, else its folder's name."""
    storage = _hub_storage(folder)
    return one_line("/".join(storage.name.split("--")[1:]) if storage is not None else folder.name)


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a model folder, complete by its index or by their numbers.

    Raises:
        NotAModel: if some are missing, or the index is damaged.
        UnsupportedModel: if the weights have another format.
    """
    try:
        files = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise NotAModel(f"{folder} cannot be read: {error.strerror or error}.") from error
    weights = sorted(folder.glob(WEIGHT_PATTERN))
    if not weights:
        loadable.check_weight_names(display_name(folder), files, _hub_storage(folder) is not None)
    for path in weights:
        if not path.is_file():
            raise NotAModel(f"{path} is no regular file: download or copy the model again.")
    named = _indexed(folder / "model.safetensors.index.json")
    for path in weights:
        if found := _SHARD.fullmatch(path.name):
            stem, width, count = found[1], len(found[3]), int(found[3])
            if count > 10_000:
                raise NotAModel(f"{path} names {count:,} weight files: download or copy the model again.")
            named |= {f"{stem}-{number:0{width}}-of-{found[3]}.safetensors" for number in range(1, count + 1)}
            break
    missing = sorted(named - {path.name for path in weights})
    if missing:
        raise NotAModel(
            f"{folder} lacks {len(missing)} of {len(named)} weight files ({missing[0][:100]} first): "
            "download it again."
        )
    return weights


def read_json(path: Path) -> dict[str, Any]:
    """A JSON table.

    Raises:
        NotAModel: if the file is none, is no regular file, or cannot be read.
    """
    try:
        if not path.is_file():
            raise NotAModel(f"{path} is no regular file: download or copy the model again.")
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise NotAModel(f"{path} is too long: download or copy the model again.")
        table = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NotAModel(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise NotAModel(f"{path} is no valid JSON: download or copy the model again.") from error
    if not isinstance(table, dict):
        raise NotAModel(f"{path} is no JSON table: download or copy the model again.")
    if is_nested_deeply(table):
        raise NotAModel(f"{path} is nested too deeply: download or copy the model again.")
    return table


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        there = path.exists() or path.is_symlink()
    except OSError as error:
        raise NotAModel(f"{path} cannot be read: {error.strerror or error}.") from error
    if not there:
        if any((folder / name).is_file() for name in ("adapter_config.json", "adapters.safetensors")):
            raise NotAModel(
                f"{folder} is an adapter without its model; load the model it was trained "
                "for, with --adapter."
            )
        if any(folder.glob("*.gguf")):
            loadable.check_weight_names(display_name(folder), ["model.gguf"], repo=False)
        raise NotAModel(f"{folder} is no model folder: it has no config.json.")
    config = read_json(path)
    if not isinstance(config.get("model_type"), str):
        raise NotAModel(f"{path} does not say what kind of model it is (model_type).")
    return config


def _check_generation_config(path: Path) -> None:
    """Refuse a table of another type, which mlx-lm fails on; it ignores a file that is no JSON."""
    try:
        if path.is_file() and not isinstance(json.loads(path.read_bytes()), dict):
            raise NotAModel(f"{path} is no JSON table: correct or delete it.")
    except json.JSONDecodeError:
        pass
    except (OSError, ValueError, RecursionError) as error:
        raise NotAModel(f"{path} cannot be read: correct or delete it.") from error


def _optional_json(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.is_file() else None


def _check_regular(folder: Path) -> None:
    """Refuse pipes, devices and folders in place of files that mlx-lm or transformers would open."""
    for pattern in _READ_PATTERNS:
        for path in folder.glob(pattern):
            try:
                about = path.stat()
            except OSError as error:
                raise NotAModel(f"{path} cannot be read: {error.strerror or error}.") from error
            is_folder = stat.S_ISDIR(about.st_mode)
            if is_folder != (path.name == "additional_chat_templates") or not (
                is_folder or stat.S_ISREG(about.st_mode)
            ):
                raise NotAModel(f"{path} is no regular file: download or copy the model again.")
            if about.st_size > _MAX_JSON_BYTES and path.suffix != ".safetensors":
                raise NotAModel(f"{path} is too long: download or copy the model again.")


def _check_tokenizer(folder: Path) -> None:
    found = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not found:
        raise NotAModel(f"{folder} has no tokenizer (tokenizer.json or tokenizer.model).")
    if found == ["vocab.json"] and not (folder / "merges.txt").is_file():
        raise NotAModel(f"{folder} lacks a part of its tokenizer (merges.txt): download it again.")


def _indexed(index: Path) -> set[str]:
    """Names of the weight files in an index."""
    if not index.exists():
        return set()
    table = read_json(index).get("weight_map")
    names = set(table.values()) if isinstance(table, dict) and _are_names(list(table.values())) else None
    if names is None:
        raise NotAModel(
            f"{index} does not say which files hold the weights: download or copy the model again."
        )
    return names


def _are_names(values: list[Any]) -> bool:
    return all(
        isinstance(name, str) and name and len(name) <= 255 and "/" not in name and name.isprintable()
        for name in values
    )


def _says_quantised(config: dict[str, Any], folder: Path) -> bool:
    text = config.get("text_config")
    tables = (config, text if isinstance(text, dict) else {})
    keys = ("quantization", "quantization_config")
    return (
        any(table.get(key) for table in tables for key in keys) or (folder / "hf_quant_config.json").is_file()
    )


def _hub_storage(folder: Path) -> Path | None:
    """Storage folder of the repo whose snapshot a folder is."""
    snapshots = folder.parent
    storage = snapshots.parent
    return storage if snapshots.name == "snapshots" and storage.name.startswith("models--") else None

"""Which architectures the installed mlx-lm and transformers have, read from their source files."""

from __future__ import annotations

import ast
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_MODULE_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)
_MODEL_CLASS = re.compile(r"^(?:class Model\b|from .* import .*\bModel\b|Model\s*=)", re.MULTILINE)
_RELATIVE_IMPORT = re.compile(r"^from \.(\w*) import ([\w ,]+|\()", re.MULTILINE)
_ABSOLUTE_IMPORT = re.compile(r"^(?:    )?(?:import|from) ([A-Za-z_]\w*)", re.MULTILINE)
_GENERIC_TOKENIZERS = ("PreTrainedTokenizerFast", "TokenizersBackend", "PythonBackend")


def is_known(config: dict[str, Any]) -> bool:
    """Whether mlx-lm has the architecture of a ``config.json``. True without mlx-lm's files."""
    return _models_folder() is None or bool(_MODEL_CLASS.search(source(config)))


def source(config: dict[str, Any]) -> str:
    """Source of mlx-lm's module for an architecture and of the modules it imports; empty without one."""
    name = _module_name(config)
    return _source_with_imports(name) if _MODULE_NAME.fullmatch(name) and ".." not in name else ""


def missing_package(config: dict[str, Any]) -> str | None:
    """A package that mlx-lm's module for an architecture imports and that is not installed."""
    names: set[str] = set(_ABSOLUTE_IMPORT.findall(source(config)))
    for name in sorted(names):
        if find_spec(name) is None:
            return name
    return None


def has_tokenizer(tokenizer_class: object, model_type: str) -> bool:
    """Whether transformers has a tokenizer class of this name, or one for this architecture."""
    text = _tokenizer_tables()
    if not text:
        return True
    names = [f'"{model_type}"']
    if isinstance(tokenizer_class, str):
        base = tokenizer_class.removesuffix("Fast")
        if tokenizer_class in _GENERIC_TOKENIZERS:
            return True
        names += [f'"{base}"', f'"{base}Fast"']
    return any(name in text for name in names)


def _module_name(config: dict[str, Any]) -> str:
    """Module that mlx-lm loads an architecture with, by its own tables of other names."""
    by_type, by_class = _remapping()
    kind = str(config.get("model_type"))
    classes = config.get("architectures")
    classes = [classes] if isinstance(classes, str) else classes
    for architecture in classes if isinstance(classes, list) else ():
        if isinstance(architecture, str) and (kind, architecture) in by_class:
            return str(by_class[kind, architecture])
    return str(by_type.get(kind, kind))


@cache
def _models_folder() -> Path | None:
    spec = find_spec("mlx_lm")
    for place in (spec and spec.submodule_search_locations) or ():
        if (folder := Path(place) / "models").is_dir():
            return folder
    return None


@cache
def _remapping() -> tuple[dict[str, str], dict[tuple[str, str], str]]:
    """mlx-lm's tables of other names: by model type, and by model type and architecture."""
    tables: dict[str, Any] = {}
    folder = _models_folder()
    text = _read(folder.parent / "utils.py") if folder else ""
    for statement in ast.parse(text).body:
        match statement:
            case ast.Assign(
                targets=[ast.Name(id="MODEL_REMAPPING" | "MODEL_ARCHITECTURE_REMAPPING" as name)]
            ):
                tables[name] = ast.literal_eval(statement.value)
            case _:
                pass
    return tables.get("MODEL_REMAPPING", {}), tables.get("MODEL_ARCHITECTURE_REMAPPING", {})


@cache
def _source_with_imports(name: str) -> str:
    seen: dict[str, str] = {}
    queue = [name]
    while queue:
        module = queue.pop()
        if module in seen:
            continue
        folder = _models_folder()
        seen[module] = _read(folder / f"{module}.py") if folder else ""
        for package, names in _RELATIVE_IMPORT.findall(seen[module]):
            queue += [package] if package else [part.strip() for part in names.split(",")]
    return "\n".join(seen.values())


@cache
def _tokenizer_tables() -> str:
    spec = find_spec("transformers")
    for place in (spec and spec.submodule_search_locations) or ():
        if text := _read(Path(place) / "models" / "auto" / "tokenization_auto.py"):
            return text
    return ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""

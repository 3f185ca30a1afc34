"""Caches <-> one safetensors file.

The file is untrusted when it comes back: nothing in it is run, and its header is checked before it is read.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models import cache as mlx_cache

from tqchat.errors import TqchatError
from tqchat.kv.attention import routing
from tqchat.kv.cache import SchemeCache
from tqchat.kv.prompt_cache import LatentCache, cache_list
from tqchat.kv.window import WindowCache

CODEC_VERSION = 2
"""Goes up whenever packed tokens of an older version would be read differently."""

_CLASSES: dict[str, type[Any]] = {
    "SchemeCache": SchemeCache,
    "WindowCache": WindowCache,
    "LatentCache": LatentCache,
    **{
        name: getattr(mlx_cache, name)
        for name in (
            "KVCache",
            "RotatingKVCache",
            "ChunkedKVCache",
            "QuantizedKVCache",
            "ConcatenateKVCache",
            "ArraysCache",
        )
    },
}
"""The classes that a file may name; any other is refused."""

_DTYPE_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4} | {
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
_MAX_HEADER = 64 << 20


class CacheFileError(TqchatError):
    """A cache file that cannot be used: unreadable, cut off, or not one of ours."""


def save(path: str | Path, cache: list[Any], metadata: dict[str, str] | None = None) -> None:
    """Write a model's caches to ``path`` (``.safetensors``), packed tokens as packed.

    Args:
        metadata: What the caller wants back from ``load``.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CacheFileError(f"A cache file's name ends in .safetensors; {path.name} does not.")
    arrays: dict[str, mx.array] = {}
    layers = [describe_layer(layer, f"layer.{index}", arrays) for index, layer in enumerate(cache)]
    told = {"codec": CODEC_VERSION, "layers": layers, "metadata": metadata or {}}
    # Slices of storage with slack are not contiguous, and safetensors holds contiguous arrays only.
    contiguous = {name: mx.contiguous(array) for name, array in arrays.items()}
    mx.eval(contiguous)
    mx.save_safetensors(str(path), contiguous, {"tqchat": json.dumps(told)})


def load(path: str | Path) -> tuple[list[Any], dict[str, str]]:
    """The caches in a file written by ``save``, evaluated, and the caller's metadata.

    Raises:
        CacheFileError: if the file is missing, damaged, of another codec version, or not a cache file.
    """
    path = Path(path)
    header = _checked_header(path)
    try:
        told = json.loads(header["__metadata__"]["tqchat"])
        if told["codec"] != CODEC_VERSION:
            raise CacheFileError(
                f"{path.name} was written by codec version {told['codec']}; this is {CODEC_VERSION}."
            )
        loaded: Any = mx.load(str(path))
        arrays: dict[str, mx.array] = dict(loaded)
        # mx.load is lazy: the file must not be needed any more once this returns.
        mx.eval(arrays)
        cache = [rebuild_layer(layer, f"layer.{index}", arrays) for index, layer in enumerate(told["layers"])]
        mx.eval([layer.state for layer in cache if not layer.empty()])
        metadata = {str(key): str(value) for key, value in told["metadata"].items()}
    except CacheFileError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise CacheFileError(f"{path.name} is not a cache file that can be used: {error}") from error
    routing.install()
    return cache, metadata


def describe_layer(layer: Any, prefix: str, arrays: dict[str, mx.array]) -> dict[str, Any]:
    """What ``rebuild_layer`` needs to know about a layer; its arrays go into ``arrays`` as ``prefix.*``."""
    name = type(layer).__name__
    if isinstance(layer, mlx_cache.CacheList):
        parts = [describe_layer(part, f"{prefix}.{i}", arrays) for i, part in enumerate(layer.caches)]
        return {"class": "CacheList", "parts": parts}
    if _CLASSES.get(name) is not type(layer):
        raise CacheFileError(f"A cache of class {name} cannot be saved.")
    scalars: list[list[Any]] = []
    leaves: dict[str, Any] = dict(tree_flatten(layer.state, is_leaf=lambda x: x is None))
    for key, leaf in leaves.items():
        if isinstance(leaf, mx.array):
            arrays[f"{prefix}.{key}"] = leaf
        else:
            scalars.append([key, leaf])
    return {"class": name, "scalars": scalars}


def unsaved(layer: Any) -> dict[str, Any]:
    """What a layer knows besides its state: a copy of it is to be told."""
    names = ("rope", "packs_prompts", "stands_in", "_dtypes")
    return {name: getattr(layer, name) for name in names if hasattr(layer, name)}


def rebuild_layer(told: dict[str, Any], prefix: str, arrays: dict[str, mx.array]) -> Any:
    """The inverse of ``describe_layer``."""
    if told["class"] == "CacheList":
        parts = [rebuild_layer(part, f"{prefix}.{i}", arrays) for i, part in enumerate(told["parts"])]
        return cache_list(parts)
    if told["class"] not in _CLASSES:
        raise CacheFileError(f"The file names a cache class {told['class']!r} that is not allowed.")
    leaves = [
        (name.removeprefix(prefix + "."), a) for name, a in arrays.items() if name.startswith(prefix + ".")
    ]
    leaves += [(key, value) for key, value in told["scalars"]]
    state = tree_unflatten(sorted(leaves, key=lambda leaf: leaf[0]))
    if issubclass(_CLASSES[told["class"]], SchemeCache) and len(state) == 1:
        state = [state[0], {}]
    return _CLASSES[told["class"]].from_state(state)


def _checked_header(path: Path) -> dict[str, Any]:
    """A safetensors header whose every array lies inside the file and has the size that its shape says."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
            if length > min(size - 8, _MAX_HEADER):
                raise CacheFileError(f"{path.name} is cut off or is not a cache file.")
            header = json.loads(file.read(length))
    except OSError as error:
        raise CacheFileError(f"{path.name} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise CacheFileError(f"{path.name} is damaged: its header cannot be read.") from error
    if not isinstance(header, dict):
        raise CacheFileError(f"{path.name} is damaged: its header is no table.")
    for name, entry in header.items():
        if name != "__metadata__" and not _lies_inside(entry, size - 8 - length):
            raise CacheFileError(f"{path.name} is damaged: {name} does not lie inside the file.")
    return header


def _lies_inside(entry: Any, size: int) -> bool:
    try:
        start, end = entry["data_offsets"]
        wanted = math.prod(entry["shape"]) * _DTYPE_BYTES[entry["dtype"]]
        return 0 <= start <= end <= size and end - start == wanted and all(n >= 0 for n in entry["shape"])
    except (KeyError, TypeError, ValueError):
        return False

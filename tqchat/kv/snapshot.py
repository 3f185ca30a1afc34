"""Prompt caches <-> one safetensors file.

Files are untrusted: nothing in them is executed, and the header is checked before arrays are read.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import stat
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models import cache as mlx_cache

from tqchat.errors import TqchatError
from tqchat.files import Unreadable, open_regular, own_prefix
from tqchat.kv import untrusted
from tqchat.kv.attention import routing
from tqchat.kv.cache import TRANSIENT, SchemeCache
from tqchat.kv.prompt_cache import LatentCache, cache_list
from tqchat.kv.scheme import UnknownScheme
from tqchat.kv.untrusted import check_plain, parse_json, unflatten, whole
from tqchat.kv.window import WindowCache
from tqchat.text import one_line, shown_value

CODEC_VERSION = 3
"""Increased whenever packed tokens of an older version would be decoded differently."""

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
"""Cache classes that a file may name."""

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
_MAX_SHOWN_CHARS = 200
_MAX_DIMENSIONS = 8

DAMAGE = (
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    IndexError,
    OverflowError,
    RuntimeError,
    AssertionError,
    UnknownScheme,
)
"""What a damaged description may raise while a cache is built from it."""


class CacheFileError(TqchatError):
    """A cache file that cannot be used: unreadable, truncated or not a cache."""


def shown(error: Exception) -> str:
    """An error about a file's content as short text: it may quote the content."""
    return one_line(str(error))[:_MAX_SHOWN_CHARS]


def save(path: str | Path, cache: list[Any], metadata: dict[str, str] | None = None) -> None:
    """Write a prompt cache to ``path`` (``.safetensors``); packed tokens stay packed.

    Args:
        metadata: Returned by ``load``.

    Raises:
        CacheFileError: if the suffix is not ``.safetensors``, a layer's class cannot be saved, or writing
            fails; what the file held before is then intact.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CacheFileError(f"A cache file's name ends in .safetensors; {path.name} does not.")
    arrays: dict[str, mx.array] = {}
    layers = [describe_layer(layer, f"layer.{index}", arrays) for index, layer in enumerate(cache)]
    description = {"codec": CODEC_VERSION, "layers": layers, "metadata": metadata or {}}
    # Slices of storage with spare capacity are not contiguous; safetensors needs contiguous arrays.
    contiguous = {name: mx.contiguous(array) for name, array in arrays.items()}
    mx.eval(contiguous)
    # The whole file or the old one: mx.save_safetensors empties the file before it writes.
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{own_prefix('')}{secrets.token_hex(4)}.safetensors")
    try:
        temporary.touch(stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666)
        mx.save_safetensors(str(temporary), contiguous, {"tqchat": json.dumps(description)})
        temporary.replace(target)
    except (OSError, RuntimeError) as error:
        raise CacheFileError(f"{path.name} cannot be written ({shown(error)}).") from error
    finally:
        temporary.unlink(missing_ok=True)


def load(path: str | Path) -> tuple[list[Any], dict[str, str]]:
    """Read a prompt cache written by ``save``, evaluated, and its metadata.

    Raises:
        CacheFileError: if the file is missing, damaged, of another codec version, or not a cache file.
    """
    path = Path(path)
    header = _checked_header(path)
    try:
        description = parse_json(header["__metadata__"]["tqchat"])
        if description["codec"] != CODEC_VERSION:
            written = shown_value(description["codec"])
            raise CacheFileError(
                f"{path.name} was written by codec version {written}; this is {CODEC_VERSION}."
            )
        loaded: Any = mx.load(str(path))
        arrays: dict[str, mx.array] = dict(loaded)
        # mx.load is lazy; after this the file may be overwritten.
        mx.eval(arrays)
        cache = [
            rebuild_layer(layer, f"layer.{index}", arrays)
            for index, layer in enumerate(untrusted.layers(description["layers"]))
        ]
        mx.eval([layer.state for layer in cache if not layer.empty()])
        metadata = {str(key): str(value) for key, value in description["metadata"].items()}
    except CacheFileError:
        raise
    except DAMAGE as error:
        raise CacheFileError(f"{path.name} is not a cache file that can be used: {shown(error)}") from error
    routing.install()
    return cache, metadata


def can_save(layer: Any) -> bool:
    """Whether a layer's class, not a list of layers, is one that a file may name."""
    return _CLASSES.get(type(layer).__name__) is type(layer)


def describe_layer(layer: Any, prefix: str, arrays: dict[str, mx.array]) -> dict[str, Any]:
    """JSON description of a layer for ``rebuild_layer``; adds its arrays to ``arrays`` as ``prefix.*``."""
    name = type(layer).__name__
    if isinstance(layer, mlx_cache.CacheList):
        parts = [describe_layer(part, f"{prefix}.{i}", arrays) for i, part in enumerate(layer.caches)]
        return {"class": "CacheList", "parts": parts}
    if not can_save(layer):
        raise CacheFileError(
            f"This model's cache (of class {name}) cannot be saved: it is read again after a restart."
        )
    scalars: list[list[Any]] = []
    leaves: dict[str, Any] = dict(tree_flatten(layer.state, is_leaf=lambda x: x is None))
    for key, leaf in leaves.items():
        if isinstance(leaf, mx.array):
            arrays[f"{prefix}.{key}"] = leaf
        else:
            scalars.append([key, leaf])
    return {"class": name, "scalars": scalars}


def transient_attributes(layer: Any) -> dict[str, Any]:
    """Attributes of a layer that are not part of its state and must be copied with it."""
    return {name: getattr(layer, name) for name in TRANSIENT if hasattr(layer, name)}


def rebuild_layer(description: dict[str, Any], prefix: str, arrays: dict[str, mx.array]) -> Any:
    """The inverse of ``describe_layer``."""
    if description["class"] == "CacheList":
        parts = [rebuild_layer(part, f"{prefix}.{i}", arrays) for i, part in enumerate(description["parts"])]
        return cache_list(parts)
    if description["class"] not in _CLASSES:
        raise CacheFileError(
            f"The file names a cache class {shown_value(description['class'])} that is not allowed."
        )
    leaves = [
        (name.removeprefix(prefix + "."), a) for name, a in arrays.items() if name.startswith(prefix + ".")
    ]
    leaves += [(str(key), value) for key, value in description["scalars"]]
    state = unflatten(leaves)
    cache_class = _CLASSES[description["class"]]
    if not issubclass(cache_class, SchemeCache):
        check_plain(cache_class, state)
    return cache_class.from_state(state)


def _checked_header(path: Path) -> dict[str, Any]:
    """Header of a safetensors file, verified: each array lies inside the file and matches its shape."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
            if length > min(size - 8, _MAX_HEADER):
                raise CacheFileError(f"{path.name} is cut off or is not a cache file.")
            header = parse_json(file.read(length))
    except Unreadable as error:
        raise CacheFileError(f"{path.name} {error.reason}.") from error
    except OSError as error:
        raise CacheFileError(f"{path.name} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise CacheFileError(f"{path.name} is damaged: its header cannot be read.") from error
    if not isinstance(header, dict):
        raise CacheFileError(f"{path.name} is damaged: its header is not a table.")
    for name, entry in header.items():
        if name != "__metadata__" and not _lies_inside(entry, size - 8 - length):
            raise CacheFileError(f"{path.name} is damaged: {shown_value(name)} does not lie inside the file.")
    return header


def _lies_inside(entry: Any, size: int) -> bool:
    try:
        start, end = (whole(offset, 0, size) for offset in entry["data_offsets"])
        shape = [whole(n) for n in entry["shape"]]
        # The product of a long list of numbers would take minutes.
        expected = math.prod(shape) * _DTYPE_BYTES[entry["dtype"]] if len(shape) <= _MAX_DIMENSIONS else -1
        return end - start == expected
    except (KeyError, TypeError, ValueError):
        return False

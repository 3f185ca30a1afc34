"""Converting prompt caches to another scheme, layer by layer.

The tokens as they were are written to an unnamed temporary file, behind the conversion
(``storage.write_behind``). A later conversion to the same formats takes them back exactly
(``storage.earlier``).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import RotatingKVCache

from tqchat.errors import TqchatError
from tqchat.kv.attention import routing
from tqchat.kv.cache import ROLES, SchemeCache
from tqchat.kv.codec.rope import release_angles
from tqchat.kv.prompt_cache import convert_layer, flat_layers, layer_indices, replace_layers
from tqchat.kv.scheme import Scheme, parse_scheme
from tqchat.kv.snapshot import can_save, describe_layer, rebuild_layer, transient_attributes
from tqchat.kv.storage.array_file import ArrayFile, StoredArray
from tqchat.kv.storage.earlier import EarlierSide
from tqchat.kv.storage.side import Side
from tqchat.kv.window import WindowCache, as_window

Progress = Callable[[int, int], None]

FREE_DISK_FACTOR = 8
"""Tokens of an earlier scheme stay on disk if this many times their size is free beside them."""

STOP_INTERVAL_S = 0.1
"""Between two looks whether to stop while waiting for the disk."""

_LAYER = "layer"


class ConversionStopped(TqchatError):
    """The conversion was stopped; the cache is unchanged."""

    def __init__(self) -> None:
        super().__init__("The change of scheme was stopped; the cache is as it was.")


class ConversionFailed(TqchatError):
    """No temporary file could be written; the cache is unchanged."""


def convert(cache: list[Any], scheme: str | Scheme) -> list[Any]:
    """The same tokens under another scheme, in new caches; the old ones are unchanged.

    Tokens packed in a format that both schemes have are copied as they are, and so are those that an earlier
    conversion took from such a format. Others are decoded and packed again, so their rounding errors stay.
    Evaluated layer by layer. To replace a cache: ``cache[:] = convert(cache, "turbo0v4")``.

    Raises:
        UnknownScheme: if there is no scheme of that name.
    """
    scheme = parse_scheme(scheme) if isinstance(scheme, str) else scheme
    routing.install()
    file = temporary_file()
    try:
        return [
            convert_keeping(layer, scheme, number, file)
            for number, layer in zip(layer_indices(cache), cache, strict=True)
        ]
    finally:
        release_angles()


def temporary_file() -> ArrayFile | None:
    """For ``convert_keeping``; ``None`` if none can be made: later conversions back then decode tokens."""
    with suppress(OSError):
        file = ArrayFile.temporary()
        file.drop_failed()
        return file
    return None


def convert_keeping(layer: Any, scheme: Scheme, index: int, file: ArrayFile | None) -> Any:
    """One layer as ``convert`` does, evaluated.

    Args:
        index: Of the layer in ``flat_layers``.
        file: Where its tokens are kept as they were, in memory until they are written, at most those of one
            layer; ``None`` to keep none.
    """
    new = convert_layer(layer, scheme, index)
    mx.eval(new.state)
    if file is not None:
        with suppress(OSError):
            for old, part in zip(flat_layers([layer]), flat_layers([new]), strict=True):
                if (kept := _as_kept(old, part)) is not None and _has_room(file, kept.nbytes):
                    _keep_earlier(kept, part, _store(kept, file))
            file.wait(_allocated(layer))
    return new


def convert_in_place(
    cache: list[Any],
    scheme: str | Scheme,
    *,
    stopped: Callable[[], bool] = lambda: False,
    progress: Progress = lambda done, total: None,
    folder: Path | None = None,
    backlog: int = 0,
) -> None:
    """Convert a prompt cache to another scheme, as ``convert`` does.

    Each old layer is written to a temporary file, from which it is restored exactly if a later layer fails or
    ``stopped`` returns true. The writing goes on while the next layers are converted, and after the return.

    Peak memory is the larger of old and new cache, plus the layer being converted (twice on CUDA, where what
    is written is a copy), plus the old layers that are not written yet: at most one layer, or ``backlog``.

    Args:
        stopped: Called before each layer, and while waiting for the disk.
        progress: Called with the number of converted layers and of all layers.
        folder: Where to make the temporary file; by default the system's folder for large ones.
        backlog: Bytes of old layers that may be in memory until they are written.

    Raises:
        UnknownScheme: if there is no scheme of that name.
        ConversionStopped: if ``stopped`` returned true.
        ConversionFailed: if there is no space for the temporary file.
        RuntimeError: if MLX ran out of memory.
    """
    scheme = parse_scheme(scheme) if isinstance(scheme, str) else scheme
    routing.install()
    try:
        file = ArrayFile.temporary(folder)
        try:
            backlog = max(backlog, *(_allocated(layer) for layer in cache), 0)
            with file.holding(backlog):
                _convert(cache, scheme, stopped, progress, file, backlog)
        finally:
            file.drop_failed()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConversionFailed(f"The cache stays under its scheme: no temporary file ({reason}).") from error


def _convert(
    cache: list[Any],
    scheme: Scheme,
    stopped: Callable[[], bool],
    progress: Progress,
    file: ArrayFile,
    backlog: int,
) -> None:
    size = sum(_bytes_to_store(part) for part in flat_layers(cache))
    file.reserve(size)
    keeps = _has_room(file, size)
    replaced: list[dict[int, _StoredLayer]] = []
    try:
        for index, number in enumerate(layer_indices(cache)):
            if stopped():
                raise ConversionStopped
            new = convert_layer(cache[index], scheme, number)
            mx.eval(new.state)
            pairs = list(zip(flat_layers([cache[index]]), flat_layers([new]), strict=True))
            if any(_offset(old) != _offset(part) for old, part in pairs):
                raise RuntimeError("a converted layer does not hold the same tokens")
            stored: dict[int, _StoredLayer] = {}
            for place, (old, part) in enumerate(pairs):
                if part is old:
                    continue  # no scheme applies to it
                one = stored[place] = _store(old, file)
                kept = _as_kept(old, part) if keeps else None
                if kept is not None:
                    _keep_earlier(kept, part, one if kept is old else _store(kept, file))
            replaced.append(stored)
            cache[index] = new
            old = part = kept = None  # so that their memory can be freed
            del pairs
            while not file.wait(backlog, STOP_INTERVAL_S):
                if stopped():
                    raise ConversionStopped
            if mx.get_cache_memory() > backlog:
                mx.clear_cache()
            progress(index + 1, len(cache))
    except BaseException:
        for index, stored in enumerate(replaced):
            layers = {number: one.rebuild() for number, one in stored.items()}
            (cache[index],) = replace_layers([cache[index]], layers)
        raise
    finally:
        release_angles()
        mx.clear_cache()


@dataclass(frozen=True)
class _StoredLayer:
    """A layer in files: description, arrays and attributes that are not part of its state."""

    description: dict[str, Any]
    arrays: dict[str, StoredArray]
    attributes: dict[str, Any]

    def rebuild(self) -> Any:
        arrays = {name: stored.read() for name, stored in self.arrays.items()}
        layer = rebuild_layer(self.description, _LAYER, arrays)
        for name, value in self.attributes.items():
            setattr(layer, name, value)
        if not layer.empty():
            mx.eval(layer.state)
        return layer

    def side_arrays(self, role: str) -> dict[str, StoredArray]:
        """Arrays of ``Side.arrays``."""
        prefix = _side_prefix(role)
        return {name.removeprefix(prefix): a for name, a in self.arrays.items() if name.startswith(prefix)}


def _side_prefix(role: str) -> str:
    """Prefix of the names that ``describe_layer`` gives to a side's arrays."""
    return f"{_LAYER}.1.{role}_"


def _store(layer: Any, file: ArrayFile) -> _StoredLayer:
    """Write a layer's arrays, except those that a file holds already."""
    arrays: dict[str, mx.array] = {}
    description = describe_layer(layer, _LAYER, arrays)
    found = _found_in_files(layer)
    stored = found | file.write({name: array for name, array in arrays.items() if name not in found})
    return _StoredLayer(description, stored, transient_attributes(layer))


def _found_in_files(layer: Any) -> dict[str, StoredArray]:
    """Arrays of sides that have not changed since they were restored, by the names of ``describe_layer``."""
    if not isinstance(layer, SchemeCache):
        return {}
    sides = {role: side for role in ROLES if (side := layer.stored_side(role)) is not None}
    return {
        _side_prefix(role) + name: array
        for role, side in sides.items()
        for name, array in side.arrays.items()
    }


def _bytes_to_store(layer: Any) -> int:
    """Bytes that ``_convert`` writes of a layer, at most."""
    if not can_save(layer):
        return 0  # no scheme applies to it
    arrays: dict[str, mx.array] = {}
    describe_layer(layer, _LAYER, arrays)
    found = _found_in_files(layer)
    size = sum(array.nbytes for name, array in arrays.items() if name not in found)
    return 2 * size if isinstance(layer, RotatingKVCache) else size  # as it is, and in temporal order


def _allocated(layer: Any) -> int:
    return sum(int(part.nbytes) for part in flat_layers([layer]))


def _has_room(file: ArrayFile, count: int) -> bool:
    """Whether the disk has so much space that a file may stay, with ``count`` more bytes."""
    return shutil.disk_usage(file.folder).free >= FREE_DISK_FACTOR * (file.size + count)


def _as_kept(old: Any, new: Any) -> SchemeCache | None:
    """A layer in the form in which its tokens are kept beside ``new``; ``None`` if formats are the same."""
    if isinstance(old, RotatingKVCache) and isinstance(new, WindowCache):
        old = as_window(old)
    both = isinstance(old, SchemeCache) and isinstance(new, SchemeCache) and old is not new
    return old if both and any(_differ(*sides) for sides in zip(old.sides, new.sides, strict=True)) else None


def _differ(before: Side, after: Side) -> bool:
    return before.length > 0 and before.spec != after.spec


def _keep_earlier(old: SchemeCache, new: SchemeCache, stored: _StoredLayer) -> None:
    """Keep the sides that ``new`` has in another format than ``old``."""
    for role, before, after in zip(ROLES, old.sides, new.sides, strict=True):
        if _differ(before, after):
            first, rounding = old.offset - before.length, old.rounding[role]
            if (side := old.stored_side(role)) is not None:
                side = replace(side, first=first, end=old.offset, rounding=rounding)
            else:
                arrays = stored.side_arrays(role)
                number = min(array.offset for array in arrays.values())
                side = EarlierSide(arrays, before.head_dim, before.dtype, first, old.offset, rounding, number)
            new.earlier = new.earlier.with_side(role, before.spec, side)


def _offset(layer: Any) -> Any:
    return getattr(layer, "offset", None)

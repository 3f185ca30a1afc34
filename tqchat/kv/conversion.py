"""Converting prompt caches to another scheme, layer by layer.

The tokens as they were are written to an unnamed temporary file, from which a later conversion to the same
formats takes them back exactly (``storage.earlier``).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import RotatingKVCache

from tqchat.errors import TqchatError
from tqchat.kv.attention import routing
from tqchat.kv.cache import ROLES, SchemeCache
from tqchat.kv.prompt_cache import convert_layer, flat_layers, layer_indices, replace_layers
from tqchat.kv.scheme import Scheme, parse_scheme
from tqchat.kv.snapshot import describe_layer, rebuild_layer, transient_attributes
from tqchat.kv.storage.array_file import ArrayFile, StoredArray
from tqchat.kv.storage.earlier import EarlierSide
from tqchat.kv.window import WindowCache, as_window

Progress = Callable[[int, int], None]

FREE_DISK_FACTOR = 8
"""Tokens of an earlier scheme stay on disk if this many times their size is free beside them."""

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
    return [
        convert_keeping(layer, scheme, number, file)
        for number, layer in zip(layer_indices(cache), cache, strict=True)
    ]


def temporary_file() -> ArrayFile | None:
    """For ``convert_keeping``; ``None`` if none can be made: later conversions back then decode tokens."""
    with suppress(OSError):
        return ArrayFile.temporary()
    return None


def convert_keeping(layer: Any, scheme: Scheme, index: int, file: ArrayFile | None) -> Any:
    """One layer as ``convert`` does, evaluated.

    Args:
        index: Of the layer in ``flat_layers``.
        file: Where its tokens are kept as they were; ``None`` to keep none.
    """
    new = convert_layer(layer, scheme, index)
    mx.eval(new.state)
    if file is not None:
        with suppress(OSError):
            for old, part in zip(flat_layers([layer]), flat_layers([new]), strict=True):
                _keep_earlier(old, part, file)
    return new


def convert_in_place(
    cache: list[Any],
    scheme: str | Scheme,
    *,
    stopped: Callable[[], bool] = lambda: False,
    progress: Progress = lambda done, total: None,
    folder: Path | None = None,
) -> None:
    """Convert a prompt cache to another scheme, as ``convert`` does.

    Peak memory is the larger of old and new cache plus one layer: the old layer is written to the temporary
    file, from which it is restored exactly if a later layer fails or ``stopped`` returns true.

    Args:
        stopped: Called before each layer.
        progress: Called with the number of converted layers and of all layers.
        folder: Where to make the temporary file; by default the system's folder for large ones.

    Raises:
        UnknownScheme: if there is no scheme of that name.
        ConversionStopped: if ``stopped`` returned true.
        ConversionFailed: if there is no space for the temporary file.
        RuntimeError: if MLX ran out of memory.
    """
    scheme = parse_scheme(scheme) if isinstance(scheme, str) else scheme
    routing.install()
    try:
        _convert(cache, scheme, stopped, progress, ArrayFile.temporary(folder))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConversionFailed(f"The cache stays under its scheme: no temporary file ({reason}).") from error


def _convert(
    cache: list[Any], scheme: Scheme, stopped: Callable[[], bool], progress: Progress, file: ArrayFile
) -> None:
    replaced: list[list[_StoredLayer]] = []
    try:
        for index, number in enumerate(layer_indices(cache)):
            if stopped():
                raise ConversionStopped
            stored = [_store(part, file) for part in flat_layers([cache[index]])]
            new = convert_layer(cache[index], scheme, number)
            mx.eval(new.state)
            pairs = list(zip(flat_layers([cache[index]]), flat_layers([new]), strict=True))
            if any(_offset(old) != _offset(part) for old, part in pairs):
                raise RuntimeError("a converted layer does not hold the same tokens")
            for (old, part), one in zip(pairs, stored, strict=True):
                _keep_earlier(old, part, file, one)
            replaced.append(stored)
            cache[index] = new
            del old, part, pairs
            mx.clear_cache()
            progress(index + 1, len(cache))
    except BaseException:
        for index, stored in enumerate(replaced):
            layers = {number: one.rebuild() for number, one in enumerate(stored)}
            (cache[index],) = replace_layers([cache[index]], layers)
        raise


@dataclass(frozen=True)
class _StoredLayer:
    """A layer in a file: description, arrays and attributes that are not part of its state."""

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
        prefix = f"{_LAYER}.1.{role}_"
        return {name.removeprefix(prefix): a for name, a in self.arrays.items() if name.startswith(prefix)}


def _store(layer: Any, file: ArrayFile) -> _StoredLayer:
    arrays: dict[str, mx.array] = {}
    description = describe_layer(layer, _LAYER, arrays)
    stored = {name: file.write(array) for name, array in arrays.items()}
    return _StoredLayer(description, stored, transient_attributes(layer))


def _keep_earlier(old: Any, new: Any, file: ArrayFile, stored: _StoredLayer | None = None) -> None:
    """Keep the sides that ``new`` has in another format than ``old``, if the disk has space.

    Args:
        stored: ``old`` in ``file``, if it was written already.
    """
    if isinstance(old, RotatingKVCache) and isinstance(new, WindowCache):
        old, stored = as_window(old), None
    if not (isinstance(old, SchemeCache) and isinstance(new, SchemeCache)) or old is new:
        return
    size = file.size + (0 if stored else old.nbytes)
    if shutil.disk_usage(file.folder).free < FREE_DISK_FACTOR * size:
        return
    stored = stored or _store(old, file)
    for role, before, after in zip(ROLES, old.sides, new.sides, strict=True):
        if before.length and before.spec != after.spec:
            arrays = stored.side_arrays(role)
            side = EarlierSide(
                arrays,
                before.head_dim,
                before.dtype,
                old.offset - before.length,
                old.offset,
                old.rounding[role],
                min(array.offset for array in arrays.values()),
            )
            new.earlier = new.earlier.with_side(role, before.spec, side)


def _offset(layer: Any) -> Any:
    return getattr(layer, "offset", None)

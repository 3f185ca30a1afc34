"""Scheme A -> scheme B on a live cache, in place: layer by layer, and all or nothing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx

from tqchat.errors import TqchatError
from tqchat.kv.attention import routing
from tqchat.kv.prompt_cache import converted_layer, flat_layers
from tqchat.kv.scheme import Scheme, parse_scheme
from tqchat.kv.snapshot import describe_layer, rebuild_layer, unsaved

Progress = Callable[[int, int], None]


class ConversionStopped(TqchatError):
    """Somebody asked to stop; the cache is what it was."""

    def __init__(self) -> None:
        super().__init__("The change of scheme was stopped; the cache is as it was.")


class ConversionFailed(TqchatError):
    """There is no room for a temporary file; the cache is what it was."""


def convert_in_place(
    cache: list[Any],
    scheme: str | Scheme,
    *,
    stopped: Callable[[], bool] = lambda: False,
    progress: Progress = lambda done, total: None,
    folder: Path | None = None,
) -> None:
    """Put the tokens in a cache under another scheme.

    Memory peaks at what the larger of old and new takes, and one layer: a layer that was converted is let go
    of once it is in a private temporary file, from where it comes back, bit for bit, if a later one fails or
    ``stopped`` says so.

    Args:
        stopped: Asked before each layer.
        progress: Told how many layers are done, of how many.
        folder: Where to make the temporary file; by default where the system keeps those that are large.

    Raises:
        UnknownScheme: if there is no scheme of that name.
        ConversionStopped: if ``stopped`` said so.
        ConversionFailed: if there is no room for the file.
        RuntimeError: if memory ran out, as MLX says it.
    """
    scheme = parse_scheme(scheme) if isinstance(scheme, str) else scheme
    routing.install()
    try:
        with tempfile.TemporaryDirectory(prefix="tqchat-convert-", dir=folder or _large_files()) as place:
            _convert(cache, scheme, stopped, progress, Path(place))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConversionFailed(f"The cache stays under its scheme: no temporary file ({reason}).") from error


def _convert(
    cache: list[Any], scheme: Scheme, stopped: Callable[[], bool], progress: Progress, place: Path
) -> None:
    away: list[tuple[int, dict[str, Any], list[dict[str, Any]]]] = []
    try:
        for index in range(len(cache)):
            if stopped():
                raise ConversionStopped
            told, extras = _put_away(cache[index], _file(place, index))
            new = converted_layer(cache[index], scheme)
            mx.eval(new.state)
            if [_offset(part) for part in flat_layers([new])] != [
                _offset(part) for part in flat_layers([cache[index]])
            ]:
                raise RuntimeError("a converted layer does not hold the same tokens")
            away.append((index, told, extras))
            cache[index] = new
            mx.clear_cache()
            progress(index + 1, len(cache))
    except BaseException:
        for index, told, extras in away:
            cache[index] = _brought_back(_file(place, index), told, extras)
        raise


def _large_files() -> Path | None:
    """``/var/tmp``, unless the person chose: ``/tmp`` often is memory, which a conversion is to spare."""
    place = Path("/var/tmp")
    return place if "TMPDIR" not in os.environ and os.access(place, os.W_OK) else None


def _file(place: Path, index: int) -> Path:
    return place / f"{index}.safetensors"


def _put_away(layer: Any, file: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    arrays: dict[str, mx.array] = {}
    told = describe_layer(layer, "layer", arrays)
    # One array at a time: a slice of storage with slack must be copied before it can be written.
    for number, array in enumerate(arrays.values()):
        mx.save_safetensors(str(file.with_suffix(f".{number}.safetensors")), {"x": mx.contiguous(array)})
    told["files"] = list(arrays)
    return told, [unsaved(part) for part in flat_layers([layer])]


def _brought_back(file: Path, told: dict[str, Any], extras: list[dict[str, Any]]) -> Any:
    arrays: dict[str, mx.array] = {}
    for number, name in enumerate(told["files"]):
        loaded: Any = mx.load(str(file.with_suffix(f".{number}.safetensors")))
        arrays[f"{name}"] = loaded["x"]
    mx.eval(arrays)
    layer = rebuild_layer(told, "layer", arrays)
    for part, known in zip(flat_layers([layer]), extras, strict=True):
        for name, value in known.items():
            setattr(part, name, value)
    if not layer.empty():
        mx.eval(layer.state)
    return layer


def _offset(layer: Any) -> Any:
    return getattr(layer, "offset", None)

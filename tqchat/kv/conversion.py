"""Converting a live prompt cache to another scheme in place, layer by layer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx

from tqchat.errors import TqchatError
from tqchat.files import SPILL_PREFIX, own_prefix, spill_folder
from tqchat.kv.attention import routing
from tqchat.kv.prompt_cache import convert_layer, flat_layers
from tqchat.kv.scheme import Scheme, parse_scheme
from tqchat.kv.snapshot import describe_layer, rebuild_layer, transient_attributes

Progress = Callable[[int, int], None]


class ConversionStopped(TqchatError):
    """The conversion was stopped; the cache is unchanged."""

    def __init__(self) -> None:
        super().__init__("The change of scheme was stopped; the cache is as it was.")


class ConversionFailed(TqchatError):
    """No temporary file could be written; the cache is unchanged."""


def convert_in_place(
    cache: list[Any],
    scheme: str | Scheme,
    *,
    stopped: Callable[[], bool] = lambda: False,
    progress: Progress = lambda done, total: None,
    folder: Path | None = None,
) -> None:
    """Convert a prompt cache to another scheme.

    Peak memory is the larger of old and new cache plus one layer: the old layer is written to a private
    temporary file, from which it is restored exactly if a later layer fails or ``stopped`` returns true.

    Args:
        stopped: Called before each layer.
        progress: Called with the number of converted layers and of all layers.
        folder: Where to make the temporary files; by default the system's folder for large ones.

    Raises:
        UnknownScheme: if there is no scheme of that name.
        ConversionStopped: if ``stopped`` returned true.
        ConversionFailed: if there is no space for the temporary files.
        RuntimeError: if MLX ran out of memory.
    """
    scheme = parse_scheme(scheme) if isinstance(scheme, str) else scheme
    routing.install()
    try:
        with tempfile.TemporaryDirectory(
            prefix=own_prefix(SPILL_PREFIX), dir=folder or spill_folder()
        ) as directory:
            _convert(cache, scheme, stopped, progress, Path(directory))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConversionFailed(f"The cache stays under its scheme: no temporary file ({reason}).") from error


def _convert(
    cache: list[Any], scheme: Scheme, stopped: Callable[[], bool], progress: Progress, directory: Path
) -> None:
    spilled: list[tuple[int, dict[str, Any], list[dict[str, Any]]]] = []
    try:
        for index in range(len(cache)):
            if stopped():
                raise ConversionStopped
            description, attributes = _spill(cache[index], _file(directory, index))
            new = convert_layer(cache[index], scheme)
            mx.eval(new.state)
            if [_offset(part) for part in flat_layers([new])] != [
                _offset(part) for part in flat_layers([cache[index]])
            ]:
                raise RuntimeError("a converted layer does not hold the same tokens")
            spilled.append((index, description, attributes))
            cache[index] = new
            mx.clear_cache()
            progress(index + 1, len(cache))
    except BaseException:
        for index, description, attributes in spilled:
            cache[index] = _reload(_file(directory, index), description, attributes)
        raise


def _file(directory: Path, index: int) -> Path:
    return directory / f"{index}.safetensors"


def _spill(layer: Any, file: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    arrays: dict[str, mx.array] = {}
    description = describe_layer(layer, "layer", arrays)
    # One array at a time, because a slice with spare capacity is copied before it is written.
    for number, array in enumerate(arrays.values()):
        mx.save_safetensors(str(file.with_suffix(f".{number}.safetensors")), {"x": mx.contiguous(array)})
    description["files"] = list(arrays)
    return description, [transient_attributes(part) for part in flat_layers([layer])]


def _reload(file: Path, description: dict[str, Any], attributes: list[dict[str, Any]]) -> Any:
    arrays: dict[str, mx.array] = {}
    for number, name in enumerate(description["files"]):
        loaded: Any = mx.load(str(file.with_suffix(f".{number}.safetensors")))
        arrays[f"{name}"] = loaded["x"]
    mx.eval(arrays)
    layer = rebuild_layer(description, "layer", arrays)
    for part, known in zip(flat_layers([layer]), attributes, strict=True):
        for name, value in known.items():
            setattr(part, name, value)
    if not layer.empty():
        mx.eval(layer.state)
    return layer


def _offset(layer: Any) -> Any:
    return getattr(layer, "offset", None)

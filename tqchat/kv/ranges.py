"""A prompt cache as token ranges, for saving only what is new.

A packed token, or a raw one in a layer that packs nothing, changes only through a trim. Such *immutable*
tokens are stored as ranges ``[start, end)`` that are written once; everything else, fine tokens included, is
the *rest*.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models import cache as mlx_cache

from tqchat.kv import untrusted
from tqchat.kv.attention import routing
from tqchat.kv.cache import SchemeCache
from tqchat.kv.prompt_cache import LatentCache, cache_list, flat_layers
from tqchat.kv.snapshot import DAMAGE, CacheFileError, describe_layer, rebuild_layer, shown
from tqchat.kv.storage.side import Side
from tqchat.kv.storage.token_store import GROWTH_TOKENS, capacity_for

MAX_SINKS = 8
"""Layers with more sinks than this are saved whole."""

_PLAIN: dict[str, Callable[[], Any]] = {"KVCache": mlx_cache.KVCache, "LatentCache": LatentCache}

Arrays = dict[str, mx.array]


def is_ranged(layer: Any) -> bool:
    """Whether a layer's tokens can be stored as ranges.

    Windows and recurrent states cannot: they hold only the newest tokens.
    """
    if type(layer) is SchemeCache:
        return not layer.empty() and layer.queries.energy is None and layer.scheme.sinks <= MAX_SINKS
    if type(layer) in _PLAIN.values():
        return not layer.empty() and all(x.shape[2] >= layer.offset for x in (layer.keys, layer.values))
    return False


def immutable_tokens(cache: list[Any]) -> int:
    """Number of leading tokens that are immutable in every ranged layer; 0 if there is no such layer."""
    ends = []
    for layer in flat_layers(cache):
        if type(layer) is SchemeCache and not layer.empty():
            ends += [_immutable_side(side) if is_ranged(layer) else 0 for side in layer.sides]
        elif is_ranged(layer):
            ends.append(int(layer.offset))
    return min(ends, default=0)


def is_fully_ranged(cache: list[Any]) -> bool:
    """Whether every layer is ranged, so that immutable tokens alone are a usable cache."""
    return all(is_ranged(layer) for layer in flat_layers(cache))


def immutable_arrays(cache: list[Any], start: int, end: int) -> Arrays:
    """Arrays of the immutable tokens ``[start, end)`` by name, as lazy slices.

    The range that starts at token 0 also holds the fitted vectors and the rotations.
    """
    arrays: Arrays = {}
    for index, layer in enumerate(flat_layers(cache)):
        if not is_ranged(layer):
            continue
        if isinstance(layer, SchemeCache):
            for name, side in zip(("key", "value"), layer.sides, strict=True):
                arrays |= _prefixed(f"{index}.{name}.", _side_range(side, start, end))
                if start == 0 and side.packed.length:
                    _add_shared(arrays, f"{index}.{name}.", side, name)
        else:
            arrays[f"{index}.raw.0"] = layer.keys[:, :, start:end]
            arrays[f"{index}.raw.1"] = layer.values[:, :, start:end]
    return arrays


def rest(cache: list[Any], start: int) -> tuple[list[Any], Arrays]:
    """Description of the layers for ``rebuild``, and the arrays of all tokens that are not in ranges before
    ``start``.

    Args:
        start: At most ``immutable_tokens(cache)``.
    """
    arrays: Arrays = {}
    flat = flat_layers(cache)
    for index, layer in enumerate(flat):
        if not is_ranged(layer):
            continue
        if isinstance(layer, SchemeCache):
            for name, side in zip(("key", "value"), layer.sides, strict=True):
                arrays |= _prefixed(f"{index}.{name}.", _side_rest(side, start))
                if start == 0:
                    _add_shared(arrays, f"{index}.{name}.", side, name)
        else:
            arrays[f"{index}.raw.0"] = layer.keys[:, :, start : layer.offset]
            arrays[f"{index}.raw.1"] = layer.values[:, :, start : layer.offset]
    numbers = iter(range(len(flat)))
    return [_describe(layer, numbers, arrays) for layer in cache], arrays


def truncate_range(arrays: Arrays, start: int, end: int) -> Arrays:
    """The range ``[start, ...)`` without its tokens from ``end`` on."""
    shapes = {name: array.shape for name, array in arrays.items()}
    short: Arrays = {}
    for name, array in arrays.items():
        count = tokens_of_range(name, shapes, end - start)
        short[name] = array if count is None else array[:, :, :count]
    return short


def tokens_of_range(name: str, shapes: Mapping[str, Sequence[int]], count: int) -> int | None:
    """Upper bound of the tokens, of the first ``count`` of a range, that an array of it holds.

    ``None`` for arrays that belong to the range as a whole.

    Args:
        shapes: Of all arrays of the range.
    """
    side, _, store = name.rpartition(".")
    if store.startswith("packed_"):
        sinks = shapes.get(f"{side}.sinks_0")
        return max(0, count - (0 if sinks is None else sinks[2]))
    return count if store.startswith("recent_") or side.endswith(".raw") else None


def is_joined(name: str) -> bool:
    """Whether ``rebuild`` joins the arrays of this name of all ranges along the token axis."""
    side, _, store = name.rpartition(".")
    return store.startswith(("sinks_", "packed_", "fine_", "recent_")) or side.endswith(".raw")


def capacity_to_read(name: str, tokens: int) -> int:
    """Capacity to read so many tokens of an array into for ``rebuild``, so that the next append need not
    move them.
    """
    _, _, store = name.rpartition(".")
    grows = store.startswith(("packed_", "recent_")) and tokens >= GROWTH_TOKENS
    return capacity_for(tokens) if grows else tokens


def rebuild(
    structure: list[Any],
    parts: Sequence[dict[str, Any]],
    tokens: int,
    whole: Mapping[int, Any] | None = None,
) -> list[Any]:
    """Rebuild a prompt cache from all its ranges in order, evaluated.

    Args:
        structure: The description that ``rest`` returned.
        parts: The arrays of each range, then those of the rest unless it is omitted; or all of them, joined.
            Long ones may be ``RoomyArray``, of ``capacity_to_read``.
        tokens: Total number of tokens.
        whole: Layers that are not ranged, by index, in place of those in the rest.

    Raises:
        CacheFileError: if the parts do not form such a cache.
    """
    try:
        numbers = iter(range(untrusted.MAX_LAYERS))
        untrusted.whole(tokens)
        cache = [
            _rebuild(description, numbers, parts, tokens, whole or {})
            for description in untrusted.layers(structure)
        ]
    except (*DAMAGE, StopIteration) as error:
        raise CacheFileError(f"These parts do not make a cache: {shown(error)}.") from error
    routing.install()
    return cache


def _immutable_side(side: Side) -> int:
    if side.packed.length:
        return side.sinks.length + side.packed.length
    return side.length if side.spec.kind == "raw" else 0


def _side_range(side: Side, start: int, end: int) -> Arrays:
    if not side.encoded:
        return _store("recent", side, start, end)
    sinks = side.sinks.length
    arrays = _store("sinks", side, start, min(end, sinks)) if start < sinks else {}
    arrays |= _store("packed", side, max(start - sinks, 0), end - sinks)
    return arrays | _fitted_arrays(side) if start == 0 else arrays


def _side_rest(side: Side, start: int) -> Arrays:
    if side.spec.kind == "raw" and not side.encoded:
        return _store("recent", side, start, side.length)
    arrays = _fitted_arrays(side) if start == 0 else {}
    if side.encoded:
        arrays |= _side_range(side, start, side.sinks.length + side.packed.length)
    arrays |= _store("fine", side, 0, side.fine.length)
    return arrays | _store("recent", side, 0, side.recent.length)


def _store(name: str, side: Side, start: int, end: int) -> Arrays:
    if end <= start:
        return {}
    return {f"{name}_{i}": array for i, array in enumerate(side.stores[name].view(start, end))}


def _fitted_arrays(side: Side) -> Arrays:
    return _prefixed("fitted_", side.format.fitted)


def _add_shared(arrays: Arrays, prefix: str, side: Side, role: str) -> None:
    """Add the shared arrays of a side's format, once for all layers with equal ones."""
    for name, array in side.format.shared.items():
        other = arrays.setdefault(f"shared.{role}.{side.head_dim}.{name}", array)
        if other is not array and not mx.array_equal(other, array):
            arrays[f"{prefix}shared_{name}"] = array


def _prefixed(prefix: str, arrays: Mapping[str, mx.array]) -> Arrays:
    return {prefix + name: array for name, array in arrays.items()}


def _describe(layer: Any, numbers: Iterator[int], arrays: Arrays) -> dict[str, Any]:
    if isinstance(layer, mlx_cache.CacheList):
        return {"class": "CacheList", "parts": [_describe(part, numbers, arrays) for part in layer.caches]}
    index = next(numbers)
    if not is_ranged(layer):
        return {"class": "whole", "layer": describe_layer(layer, f"{index}.whole", arrays)}
    if isinstance(layer, SchemeCache):
        return {"class": "SchemeCache", "text": layer.state[0]}
    return {"class": type(layer).__name__}


def _rebuild(
    description: dict[str, Any],
    numbers: Iterator[int],
    parts: Sequence[dict[str, Any]],
    tokens: int,
    whole: Mapping[int, Any],
) -> Any:
    if description["class"] == "CacheList":
        return cache_list([_rebuild(part, numbers, parts, tokens, whole) for part in description["parts"]])
    index = next(numbers)
    if index in whole:
        return whole[index]
    prefix = f"{index}."
    if description["class"] == "whole":
        layer = rebuild_layer(description["layer"], f"{index}.whole", parts[-1])
        if not layer.empty():
            mx.eval(layer.state)
        return layer
    named: dict[str, list[Any]] = {}
    for arrays in parts:
        for name in [name for name in arrays if name.startswith(prefix)]:
            # Removed from its part, so that at most one layer is held twice.
            named.setdefault(name.removeprefix(prefix), []).append(arrays.pop(name))
    joined = {name: _concatenate(name, pieces) for name, pieces in named.items()}
    if description["class"] in _PLAIN:
        plain: Any = _PLAIN[description["class"]]()
        plain.keys, plain.values, plain.offset = joined["raw.0"], joined["raw.1"], tokens
        if not joined["raw.0"].shape[2] == joined["raw.1"].shape[2] == tokens:
            raise ValueError("keys and values do not hold the tokens")
        mx.eval(plain.keys, plain.values)
        return plain
    if description["class"] != "SchemeCache":
        raise ValueError(f"{description['class']!r} is not a layer stored as ranges")
    state = untrusted.parse_json(description["text"])
    for role, (head_dim, _) in zip(("key", "value"), state["sides"], strict=True):
        names = f"{role}.packed_0", f"{role}.fine_0", f"{role}.fitted_"
        if any(name.startswith(names) for name in joined):
            common = f"shared.{role}.{head_dim}."
            for name in [name for name in parts[0] if name.startswith(common)]:
                joined.setdefault(f"{role}.shared_{name.removeprefix(common)}", parts[0][name])
    text = json.dumps(state | {"offset": tokens})
    layer = SchemeCache.from_state((text, {name.replace(".", "_", 1): a for name, a in joined.items()}))
    mx.eval(layer.state)
    return layer


def _concatenate(name: str, pieces: list[Any]) -> Any:
    _, _, store = name.rpartition(".")
    if store.startswith(("shared_", "fitted_")):
        return pieces[0]
    return pieces[0] if len(pieces) == 1 else mx.concatenate(pieces, axis=2)

"""A model's caches by token ranges: what no later token changes, and what is still on the move.

Once a token is packed, or raw in a layer that packs nothing, only a trim touches it. Such tokens are
*settled* and can be kept as ranges ``[start, end)`` that are written once; all else is the *rest*."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models import cache as mlx_cache

from tqchat.kv.attention import routing
from tqchat.kv.cache import SchemeCache
from tqchat.kv.prompt_cache import LatentCache, cache_list, flat_layers
from tqchat.kv.snapshot import CacheFileError, describe_layer, rebuild_layer
from tqchat.kv.storage.side import Side

MOST_SINKS = 8
"""Layers that keep more first tokens raw than this are not cut into ranges."""

_PLAIN: dict[str, Callable[[], Any]] = {"KVCache": mlx_cache.KVCache, "LatentCache": LatentCache}

Arrays = dict[str, mx.array]


def is_ranged(layer: Any) -> bool:
    """Whether a layer's tokens can be kept as ranges. Windows and recurrent state cannot: they go back to
    nothing."""
    if type(layer) is SchemeCache:
        return not layer.empty() and layer.query_energy is None and layer.scheme.sinks <= MOST_SINKS
    if type(layer) in _PLAIN.values():
        return not layer.empty() and all(x.shape[2] >= layer.offset for x in (layer.keys, layer.values))
    return False


def settled(cache: list[Any]) -> int:
    """How many leading tokens will not change any more in any layer that can be cut; 0 if there is none."""
    ends = []
    for layer in flat_layers(cache):
        if type(layer) is SchemeCache and not layer.empty():
            ends += [_settled_side(side) if is_ranged(layer) else 0 for side in layer.sides]
        elif is_ranged(layer):
            ends.append(int(layer.offset))
    return min(ends, default=0)


def can_be_cut(cache: list[Any]) -> bool:
    """Whether the settled tokens alone are a cache to continue from."""
    return all(is_ranged(layer) for layer in flat_layers(cache))


def settled_arrays(cache: list[Any], start: int, end: int) -> Arrays:
    """The arrays of the settled tokens ``[start, end)``, as slices that are not evaluated, by name.

    The range that begins with the first token carries what the formats were fitted to.
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
    """What is not settled before ``start``, and the layers' description that ``rebuild`` wants.

    Args:
        start: At most ``settled(cache)``.
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


def shortened(arrays: Arrays, start: int, end: int) -> Arrays:
    """A settled range ``[start, ...)`` without its tokens from ``end`` on."""
    short: Arrays = {}
    for name, array in arrays.items():
        side, _, store = name.rpartition(".")
        if store.startswith("packed_"):
            sinks = arrays.get(f"{side}.sinks_0")
            array = array[:, :, : end - start - (0 if sinks is None else sinks.shape[2])]
        elif store.startswith("recent_") or side.endswith(".raw"):
            array = array[:, :, : end - start]
        short[name] = array
    return short


def rebuild(
    structure: list[Any], parts: Sequence[Arrays], tokens: int, whole: Mapping[int, Any] | None = None
) -> list[Any]:
    """The caches again, from all their ranges in order, evaluated.

    Args:
        structure: What ``rest`` returned.
        parts: The arrays of each range; those of the rest last, unless it is to be done without.
        tokens: How many tokens that makes.
        whole: The layers that are not cut into ranges, by their index, if not those of the rest.

    Raises:
        CacheFileError: if the parts do not make such a cache.
    """
    try:
        numbers = iter(range(1 << 20))
        cache = [_rebuild(told, numbers, parts, tokens, whole or {}) for told in structure]
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise CacheFileError(f"These parts do not make a cache: {error}.") from error
    routing.install()
    return cache


def _settled_side(side: Side) -> int:
    if side.packed.length:
        return side.sinks.length + side.packed.length
    return side.length if side.spec.kind == "raw" else 0


def _side_range(side: Side, start: int, end: int) -> Arrays:
    if not side.packed.length:
        return _store("recent", side, start, end)
    sinks = side.sinks.length
    arrays = _store("sinks", side, start, min(end, sinks)) if start < sinks else {}
    arrays |= _store("packed", side, max(start - sinks, 0), end - sinks)
    return arrays | _extras(side) if start == 0 else arrays


def _side_rest(side: Side, start: int) -> Arrays:
    if side.spec.kind == "raw" and not side.packed.length:
        return _store("recent", side, start, side.length)
    arrays = _extras(side) if start == 0 else {}
    if side.packed.length:
        arrays |= _side_range(side, start, side.sinks.length + side.packed.length)
    return arrays | _store("recent", side, 0, side.recent.length)


def _store(name: str, side: Side, start: int, end: int) -> Arrays:
    if end <= start:
        return {}
    return {f"{name}_{i}": array for i, array in enumerate(side.stores[name].view(start, end))}


def _extras(side: Side) -> Arrays:
    return _prefixed("fitted_", side.format.fitted)


def _add_shared(arrays: Arrays, prefix: str, side: Side, role: str) -> None:
    """Add what a side's format shares with other layers: once for all of them, unless it is not the same."""
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
    told: dict[str, Any],
    numbers: Iterator[int],
    parts: Sequence[Arrays],
    tokens: int,
    given: Mapping[int, Any],
) -> Any:
    if told["class"] == "CacheList":
        return cache_list([_rebuild(part, numbers, parts, tokens, given) for part in told["parts"]])
    index = next(numbers)
    if index in given:
        return given[index]
    prefix = f"{index}."
    if told["class"] == "whole":
        layer = rebuild_layer(told["layer"], f"{index}.whole", parts[-1])
        if not layer.empty():
            mx.eval(layer.state)
        return layer
    named: dict[str, list[mx.array]] = {}
    for arrays in parts:
        for name in [name for name in arrays if name.startswith(prefix)]:
            # Taken out, so that no more than one layer is held twice at a time.
            named.setdefault(name.removeprefix(prefix), []).append(arrays.pop(name))
    joined = {name: _joined(name, pieces) for name, pieces in named.items()}
    if told["class"] in _PLAIN:
        plain: Any = _PLAIN[told["class"]]()
        plain.keys, plain.values, plain.offset = joined["raw.0"], joined["raw.1"], tokens
        if not joined["raw.0"].shape[2] == joined["raw.1"].shape[2] == tokens:
            raise ValueError("keys and values do not hold the tokens")
        mx.eval(plain.keys, plain.values)
        return plain
    if told["class"] != "SchemeCache":
        raise ValueError(f"{told['class']!r} is no layer that is cut into ranges")
    description = json.loads(told["text"])
    for role, (head_dim, _) in zip(("key", "value"), description["sides"], strict=True):
        if f"{role}.packed_0" in joined or any(name.startswith(f"{role}.fitted_") for name in joined):
            common = f"shared.{role}.{head_dim}."
            for name in [name for name in parts[0] if name.startswith(common)]:
                joined.setdefault(f"{role}.shared_{name.removeprefix(common)}", parts[0][name])
    text = json.dumps(description | {"offset": tokens})
    layer = SchemeCache.from_state((text, {name.replace(".", "_", 1): a for name, a in joined.items()}))
    mx.eval(layer.state)
    return layer


def _joined(name: str, pieces: list[mx.array]) -> mx.array:
    _, _, store = name.rpartition(".")
    if store.startswith(("shared_", "fitted_")):
        return pieces[0]
    return pieces[0] if len(pieces) == 1 else mx.concatenate(pieces, axis=2)

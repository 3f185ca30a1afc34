"""Checks of what a saved cache says of itself, before memory is taken for it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import mlx.core as mx
from mlx.utils import tree_unflatten
from mlx_lm.models import cache as mlx_cache

from tqchat.kv.scheme import FINE, FormatSpec, Scheme, parse_scheme

MAX_NUMBER = 2**31 - 1
"""Largest count of tokens or other number."""
MAX_PACKED_HEAD_DIM = 1024
"""Its dense rotation takes a fraction of a second to draw."""
MAX_LAYERS = 4096
MAX_ITEMS = 64
"""Arrays and numbers of one level of a layer's state."""
FLOATS = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}
"""Dtypes of raw tokens, by name."""
_FLOATS = tuple(FLOATS.values())


def parse_json(text: str | bytes) -> Any:
    """Parse JSON without NaN and infinity.

    Raises:
        ValueError: if the text is not such JSON.
    """

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is not a number of a cache")

    return json.loads(text, parse_constant=refuse)


def whole(value: Any, lowest: int = 0, highest: int = MAX_NUMBER) -> int:
    """``value`` if it is an integer in this range.

    Raises:
        ValueError: if it is not.
    """
    if type(value) is not int or not lowest <= value <= highest:
        raise ValueError(f"{str(value)[:40]!r} is not an integer from {lowest} to {highest}")
    return value


def layers(value: Any) -> list[Any]:
    """``value`` if it is a list of not too many layers."""
    if not isinstance(value, list) or len(value) > MAX_LAYERS:
        raise ValueError(f"its layers are not a list of at most {MAX_LAYERS}")
    return value


def scheme(description: Mapping[str, Any]) -> Scheme:
    """The scheme that a description names, with its formats, tail, sinks and fine part.

    Raises:
        ValueError: if there can be none.
    """
    named = parse_scheme(str(description["scheme"]))
    key, value = (FormatSpec.from_json(one) for one in description["formats"])
    fine = whole(description.get("fine", 0))  # caches of older versions have none
    if fine and not (key.is_rotated and value.is_rotated):
        raise ValueError("only rotated keys and values have a fine part")
    return Scheme(named.name, key, value, whole(description["tail"]), whole(description["sinks"]), fine)


def unflatten(leaves: Sequence[tuple[str, Any]]) -> Any:
    """``tree_unflatten``, which makes a list as long as the largest number in a name.

    Raises:
        ValueError: if a name is not one of a layer's state.
    """
    for name, _ in leaves:
        first, _, rest = name.partition(".")
        numbers = [first, rest] if rest.isdigit() else [first]
        if rest.count(".") or not all(n.isdigit() and len(n) < 4 and int(n) < MAX_ITEMS for n in numbers):
            raise ValueError(f"{name[:40]!r} is not part of a cache")
    return tree_unflatten(sorted(leaves, key=lambda leaf: leaf[0]))


def check_side(
    spec: FormatSpec, head_dim: int, role: Literal["key", "value"], arrays: Mapping[str, Any]
) -> None:
    """Check that the arrays of a side are what vectors of ``head_dim`` under ``spec`` take.

    Raises:
        ValueError: if they are not.
    """
    whole(head_dim, 0, MAX_PACKED_HEAD_DIM if spec.kind != "raw" else MAX_NUMBER)
    shapes: dict[str, tuple[int, tuple[mx.Dtype, ...]]] = {
        f"{store}_0": (head_dim, _FLOATS) for store in ("sinks", "recent")
    }
    if spec.saves_memory(head_dim):
        if spec.kind == "affine":
            dim = spec.padded_dim(head_dim)
            shapes["packed_0"] = (dim * spec.bits // 32, (mx.uint32,))
            for number in (1, 2):
                shapes[f"packed_{number}"] = (dim // spec.group_size(head_dim), _FLOATS)
        else:
            shapes["packed_0"] = (spec.words_per_vector(head_dim), (mx.uint32,))
            shapes["packed_1"] = (1, (mx.float16,))
            shapes["fine_0"] = (FINE.words_per_vector(head_dim), (mx.uint32,))
            shapes["fine_1"] = (1, (mx.float16,))
    heads: set[tuple[int, int]] = set()
    tokens: dict[str, int] = {}
    for name, array in arrays.items():
        store = name.partition("_")[0]
        if store in ("sinks", "recent", "packed", "fine"):
            width, dtypes = shapes.get(name, (-1, ()))
            if array.ndim != 4 or array.shape[3] != width or array.dtype not in dtypes:
                raise ValueError(f"the {role} array {name[:40]} does not fit a head dimension of {head_dim}")
            heads.add(array.shape[:2])
            if tokens.setdefault(store, array.shape[2]) != array.shape[2]:
                raise ValueError(f"the {store} {role} arrays differ in length")
        elif name == "shared_rotation":
            if array.shape not in ((head_dim,), (head_dim, head_dim)):
                raise ValueError(f"the {role} rotation does not fit a head dimension of {head_dim}")
        elif store != "fitted":
            raise ValueError(f"{name[:40]!r} is not an array of a side")
    if len(heads) > 1:
        raise ValueError(f"the {role} arrays differ in batch or heads")
    for store in ("packed", "fine"):
        names = [name for name in shapes if name.startswith(store)]
        if any(name in arrays for name in names) and not all(name in arrays for name in names):
            raise ValueError(f"some {role} arrays are missing")


def check_plain(cache_class: type[Any], state: Any) -> None:
    """Check the state of one of mlx-lm's caches: numbers that its arrays bear out.

    Raises:
        ValueError: if they do not; TypeError and IndexError where there are too few.
    """
    if issubclass(cache_class, mlx_cache.ArraysCache):
        entries, *padding = state
        if not isinstance(entries, list) or not _are_arrays([*entries, *padding]):
            raise ValueError("a recurrent state does not consist of arrays")
        return
    keys, values, *numbers = state
    for number in numbers:
        whole(number)
    arrays = [*keys, *values] if issubclass(cache_class, mlx_cache.QuantizedKVCache) else [keys, values]
    if not _are_arrays(arrays) or len({array is None for array in arrays}) > 1:
        raise ValueError("keys and values are not arrays")
    if any(array is not None and array.ndim != 4 for array in arrays):
        raise ValueError("keys and values do not have four dimensions")
    if len({array.shape[:3] for array in arrays if array is not None}) > 1:
        raise ValueError("keys and values hold different numbers of tokens")
    capacity = 0 if arrays[0] is None else arrays[0].shape[2]
    if issubclass(cache_class, mlx_cache.RotatingKVCache):
        offset, keep, max_size, index = numbers
        held = min(offset, whole(max_size, 1) - 1)
        agrees = keep < max_size and index <= capacity and held <= capacity
    elif issubclass(cache_class, mlx_cache.ChunkedKVCache):
        offset, _, start = numbers
        agrees = 0 <= offset - start <= capacity
    elif issubclass(cache_class, mlx_cache.QuantizedKVCache):
        offset, group, bits = numbers
        agrees = offset <= capacity and group in (32, 64, 128) and bits in (2, 3, 4, 5, 6, 8)
    elif issubclass(cache_class, mlx_cache.KVCache):
        agrees = numbers[0] <= capacity
    else:
        agrees = not numbers
    if not agrees:
        raise ValueError("the arrays do not hold as many tokens as the cache says")


def _are_arrays(leaves: Sequence[Any]) -> bool:
    return all(leaf is None or isinstance(leaf, mx.array) for leaf in leaves)

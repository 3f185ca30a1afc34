"""Earlier sides in a saved cache: which files of arrays there are, and what their arrays are.

Descriptions are untrusted: what does not fit the layers is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tqchat.kv import untrusted
from tqchat.kv.scheme import FormatSpec
from tqchat.kv.storage.array_file import ArrayFile, StoredArray
from tqchat.kv.storage.earlier import EarlierSide
from tqchat.kv.storage.rounding_history import Rounding
from tqchat.kv.storage.side import Side, check_fitted


@dataclass
class EarlierFile:
    """The sides whose arrays one file holds.

    Attributes:
        arrays: All arrays, by ``<number>.<name>``; sides that are equal share theirs.
        sides: For each side the name of its layer, the number of its arrays, and its description.
    """

    file: ArrayFile
    arrays: dict[str, StoredArray] = field(default_factory=dict)
    sides: list[tuple[str, int, list[Any]]] = field(default_factory=list)


def earlier_files(layers: Mapping[str, Any]) -> list[EarlierFile]:
    """The files of what layers keep of earlier schemes.

    Args:
        layers: By a name that ``attach`` will know them by.
    """
    found: dict[int, EarlierFile] = {}
    for name, layer in layers.items():
        for role, spec, side in getattr(layer, "earlier", ()):
            one = found.setdefault(id(side.file), EarlierFile(side.file))
            one.arrays |= {f"{side.number}.{key}": array for key, array in side.arrays.items()}
            one.sides.append((name, side.number, _describe(role, spec, side)))
    return list(found.values())


def attach(
    layers: Mapping[str, Any], sides: list[tuple[str, int, list[Any]]], arrays: Mapping[str, StoredArray]
) -> None:
    """The inverse of ``earlier_files`` for one file.

    Args:
        layers: Those that were restored. Tokens that they do not hold are left out.
        arrays: From the file, read when a scheme change needs them.
    """
    groups: dict[str, dict[str, StoredArray]] = {}
    for name, array in arrays.items():
        group, _, key = name.partition(".")
        groups.setdefault(group, {})[key] = array
    for name, number, description in sides:
        with suppress(ValueError, TypeError, KeyError, AttributeError):
            layer = layers[name]
            role, spec, side = _rebuild(description, number, groups[str(number)])
            live = layer.key_side if role == "key" else layer.value_side
            if spec != live.spec and _fits(side, live, layer.offset):
                layer.earlier = layer.earlier.with_side(role, spec, side).before(layer.offset)


def _describe(role: str, spec: FormatSpec, side: EarlierSide) -> list[Any]:
    dtype = str(side.dtype).removeprefix("mlx.core.")
    runs = [list(run) for run in side.rounding.runs]
    return [role, spec.to_json(), side.head_dim, dtype, side.first, side.end, runs]


def _rebuild(
    description: list[Any], number: int, arrays: dict[str, StoredArray]
) -> tuple[str, FormatSpec, EarlierSide]:
    role, spec, head_dim, dtype, first, end, runs = description
    spec = FormatSpec.from_json(spec)
    if role not in ("key", "value"):
        raise ValueError(f"{role!r} is not a side")
    untrusted.check_side(spec, head_dim, role, arrays)
    check_fitted(spec, role, head_dim, arrays)
    untrusted.whole(first)
    untrusted.whole(end, first, first + _tokens(arrays))
    return (
        role,
        spec,
        EarlierSide(
            arrays,
            head_dim,
            untrusted.FLOATS[dtype],
            first,
            end,
            Rounding.from_json(runs),
            untrusted.whole(number, 0, 1 << 62),
        ),
    )


def _tokens(arrays: Mapping[str, StoredArray]) -> int:
    """Tokens of a side's arrays.

    Raises:
        ValueError: if the arrays of one store differ.
    """
    lengths: dict[str, int] = {}
    for name, array in arrays.items():
        store = name.partition("_")[0]
        if (
            store in ("sinks", "packed", "fine", "recent")
            and lengths.setdefault(store, array.shape[2]) != array.shape[2]
        ):
            raise ValueError("the arrays of a side differ in length")
    return sum(lengths.values())


def _fits(side: EarlierSide, live: Side, offset: int) -> bool:
    """Whether a layer's side holds the tokens that the earlier one begins with."""
    stores = "packed", "fine", "recent"
    shapes = {array.shape[:2] for name, array in side.arrays.items() if name.startswith(stores)}
    return side.head_dim == live.head_dim and shapes == {live.shape} and side.first <= offset - live.length

"""Fits the formats of several sides at once, as a fit is a hundred small operations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import mlx.core as mx

from tqchat.kv.codec.fitting import QueryStatistics
from tqchat.kv.codec.formats import make_format
from tqchat.kv.kernels.device import kernels
from tqchat.kv.storage.side import Side

MAX_BYTES = 16 << 20
"""Bytes of raw vectors that are fitted at once. A fit takes several times their memory, and with more of
them the number of operations does not matter."""

GPU_MAX_BYTES = 64 << 20
"""The same on a GPU, where it matters longer."""

Unfitted = tuple[Side, QueryStatistics]
"""A side whose format is to be fitted, and what is known of its layer's queries."""


def fit_together(unfitted: Iterable[Unfitted]) -> None:
    """Fit the formats of sides that ``Side.pack_due`` would fit, each as that would."""
    groups: dict[object, list[tuple[Side, mx.array, QueryStatistics]]] = {}
    for side, statistics in unfitted:
        found = side.vectors_to_fit(statistics)
        if found is not None:
            groups.setdefault(_kind_of_fit(side, *found), []).append((side, *found))
    most = MAX_BYTES if kernels() is None else GPU_MAX_BYTES
    for group in groups.values():
        size = max(1, most // group[0][1].nbytes)
        for start in range(0, len(group), size):
            _fit_batch(group[start : start + size])


def _kind_of_fit(side: Side, x: mx.array, statistics: QueryStatistics) -> object:
    """Equal for sides that can be fitted in one batch. Widths of codes do not matter to a fit."""
    known = statistics.query_energy is None, statistics.balance is None
    numbers = statistics.query_rows, statistics.first_position, id(statistics.rope)
    return side.role, side.spec.is_rotated, x.shape, x.dtype, *known, *numbers


def _fit_batch(batch: list[tuple[Side, mx.array, QueryStatistics]]) -> None:
    sides, vectors, statistics = zip(*batch, strict=True)
    if len(sides) == 1:
        sides[0].set_format(sides[0].format.fit(vectors[0], statistics[0]))
        return
    first = statistics[0]
    together = replace(
        first,
        query_energy=stacked([one.query_energy for one in statistics]),
        balance=stacked([one.balance for one in statistics]),
    )
    fitted = sides[0].format.fit(mx.concatenate(list(vectors), axis=0), together).fitted
    rows = vectors[0].shape[0]
    for number, side in enumerate(sides):
        own = {name: array[number * rows : (number + 1) * rows] for name, array in fitted.items()}
        side.set_format(make_format(side.spec, side.head_dim, side.role, side.format.shared, own))


def stacked(arrays: Sequence[mx.array | None]) -> mx.array | None:
    """Fitted arrays of several sides along the batch axis; ``None`` if they have none."""
    present = [array for array in arrays if array is not None]
    return mx.concatenate(present, axis=0) if present else None

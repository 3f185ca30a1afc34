"""Which kernels serve a step of attention: all that is compiled into them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, log2

import mlx.core as mx

from tqchat.kv.codec.formats import AffineFormat, RawFormat, TurboFormat
from tqchat.kv.kernels import source
from tqchat.kv.kernels.device import LARGEST_DIM, SIMD, Kernels
from tqchat.kv.storage.side import Side

TENSOR_DIMS = (64, 128, 256)
MOST_SPLITS = 128
MOST_RAW_SPLITS = 16
MOST_BLOCKS = 1024
MERGE_SIMDS = 8
"""Simd groups that merge a row's splits, where that is a launch of its own."""
MERGE_FLOATS = 8192
"""Sums that they have room for beside each other."""


@dataclass(frozen=True)
class SidePlan:
    """How one side of a layer is stored: all that a kernel must know of it when it is compiled.

    ``kind`` is 0 for raw, 1 for a codebook, 2 for affine groups; ``rotation`` 0 for none, 1 for signs and
    Hadamard, 2 for a dense matrix; ``grows`` if the last token is not in the tail yet, and the kernel writes
    a tail that it is in.
    """

    dim: int
    kind: source.Kind
    bits: int
    words: int
    group: int
    scale: mx.Dtype
    mean: bool
    rotation: int
    grows: bool = False


@dataclass(frozen=True)
class Plan:
    """The kernels for one kind of step.

    Attributes:
        lanes: Lanes that share a token.
        key_per_lane: Dimensions of a key that a lane holds; ``value_per_lane`` of a value.
        rows: Query rows that a threadgroup serves at once, a block of them.
        unroll: Tokens that a lane group has in flight.
        simds: Simd groups in a threadgroup.
        group: Query heads to a KV head.
        sink: Whether the model has learned sinks.
        tensor: Whether tokens go through tensor cores.
        merged: Whether one launch does it all: its last threadgroup of a block merges the splits. That takes
            memory that threadgroups agree upon while they run, which Metal lacks on most devices.
    """

    key: SidePlan
    value: SidePlan
    group: int
    rows: int
    lanes: int
    unroll: int
    simds: int
    queries: mx.Dtype
    storage: mx.Dtype
    sink: bool
    tensor: bool
    merged: bool

    @property
    def key_per_lane(self) -> int:
        return _per_lane(self.key.dim, self.lanes)

    @property
    def value_per_lane(self) -> int:
        return _per_lane(self.value.dim, self.lanes)

    @property
    def step(self) -> int:
        """Packed tokens that a threadgroup takes at a time."""
        return self.simds * self.least

    @property
    def least(self) -> int:
        """Packed tokens that a simd group looks at at once."""
        return self.tile if self.tensor else SIMD // self.lanes * self.unroll

    def has_enough(self, packed: int, tail: int, rows: int) -> bool:
        """Whether so many packed tokens and raw ones behind them are enough for so many query tokens."""
        return packed >= self.least and tail >= rows

    @property
    def tile(self) -> int:
        """Packed tokens that a simd group takes to tensor cores at a time, as registers allow."""
        return 16 if not self.key.kind or max(self.key.dim, self.value.dim) > 128 else 32

    @property
    def raw_step(self) -> int:
        """Raw tokens that a threadgroup takes at a time."""
        if self.tensor:
            return self.simds * 16
        return self.simds * (SIMD // self.lanes) * self.together

    @property
    def together(self) -> int:
        """Raw tokens that a lane group looks at at once, as registers allow."""
        size = self.key_per_lane + self.value_per_lane
        if self.rows > 7 or size > 16:
            return 1
        return 4 if size <= 8 and self.rows <= 4 else 2

    def attend_text(self) -> source.Text:
        """The kernel that attends, and merges as well if it is the only one."""
        kernel: source.Kernel = (
            "attend_tensor" if self.tensor else "attend_merged" if self.merged else "attend"
        )
        inputs = ("sizes", "fixed", *self._key.stored, *self._value.stored)
        grown = (*self._key.grown, *self._value.grown)
        return source.Text(
            kernel,
            ("queries", "before", *inputs) if self.merged else ("queries", *inputs),
            ("output" if self.merged else "partial", *grown),
            self._constants(self.rows, self.simds) if self.merged else self._constants(0, 1),
            (self._key, self._value),
            self.simds * SIMD if self.tensor else 0,
        )

    def merge_text(self) -> source.Text:
        """The kernel that merges what ``attend_text`` found, a row to a threadgroup."""
        return source.Text(
            "merge", ("partial", "sizes", "fixed"), ("output",), self._constants(1, MERGE_SIMDS)
        )

    @property
    def _key(self) -> source.Side:
        return source.Side("key", self.key.kind, self.key.grows)

    @property
    def _value(self) -> source.Side:
        return source.Side("value", self.value.kind, self.value.grows)

    def _constants(self, merge_rows: int, merge_simds: int) -> source.Constants:
        sides = [
            pair
            for name, side in (("KEY", self.key), ("VALUE", self.value))
            for pair in (
                (f"{name}_DIM", side.dim),
                (f"{name}_KIND", side.kind),
                (f"{name}_BITS", side.bits),
                (f"{name}_GROUP", side.group),
                (f"{name}_STRIDE", side.words),
                (f"{name}_SCALE", side.scale),
                (f"{name}_MEAN", int(side.mean)),
                (f"{name}_ROTATION", side.rotation),
            )
        ]
        sums = merge_rows * self.value.dim
        parts = next(
            n for n in range(merge_simds, 0, -1) if merge_simds % n == 0 and n * sums <= MERGE_FLOATS
        )
        return (
            *sides,
            ("KEY_PER_LANE", self.key_per_lane),
            ("VALUE_PER_LANE", self.value_per_lane),
            ("LANES", self.lanes),
            ("GROUP", self.group),
            ("ROWS", self.rows),
            ("UNROLL", self.unroll),
            ("TOGETHER", self.together),
            ("TILE", self.tile),
            ("SIMDS", self.simds),
            ("HAS_SINK", int(self.sink)),
            ("MOST_SPLITS", MOST_SPLITS),
            ("MOST_BLOCKS", MOST_BLOCKS),
            ("MERGE_ROWS", merge_rows),
            ("MERGE_SIMDS", merge_simds),
            ("MERGE_PARTS", parts),
            ("MERGE_ROOM", parts * sums + merge_rows * (MOST_SPLITS + 2)),
            ("S", self.storage),
            ("T", self.queries),
        )


def plan_for(queries: mx.array, keys: Side, values: Side, sink: bool, on: Kernels) -> Plan | None:
    """The kernels for such queries over such a layer; ``None`` where there are none."""
    if not (keys.recent.length and values.recent.length) or keys.dtype != values.dtype:
        return None
    key, value = _side_plan(keys), _side_plan(values)
    if key is None or value is None or not (key.kind or value.kind):
        return None
    group = queries.shape[1] // keys.shape[1]
    tensor = on.tensor_cores and _suits_tensor_cores(key, value, keys.dtype)
    merged = on.language == "cuda"
    heads, all_rows = queries.shape[0] * keys.shape[1], group * queries.shape[2]
    plan = _plan(key, value, heads, group, all_rows, queries.dtype, keys.dtype, sink, tensor, merged)
    fullest = values if value.kind else keys
    if not plan.has_enough(fullest.packed.length, fullest.recent.length, queries.shape[2]):
        return None
    return plan if heads * ceil(all_rows / plan.rows) <= MOST_BLOCKS else None


def _suits_tensor_cores(key: SidePlan, value: SidePlan, storage: mx.Dtype) -> bool:
    suits = key.dim in TENSOR_DIMS and value.dim in TENSOR_DIMS and value.kind == 1
    return (suits and storage != mx.float32) and (
        key.kind == 1 or (key.kind == 2 and key.group == 64) or (key.kind == 0 and storage == mx.float16)
    )


@lru_cache(maxsize=256)
def _plan(
    key: SidePlan,
    value: SidePlan,
    heads: int,
    group: int,
    all_rows: int,
    queries: mx.Dtype,
    storage: mx.Dtype,
    sink: bool,
    tensor: bool,
    merged: bool,
) -> Plan:
    # A lane's registers hold its share of every row's query and sum: more lanes to a token where there are
    # many rows.
    per_lane = 16 if all_rows <= 4 else 8
    lanes = min(SIMD, 1 << ceil(log2(ceil(max(key.dim, value.dim) / per_lane))))
    # Two large tables and eight long queries are more than the memory that a threadgroup shares.
    tables = {side.bits for side in (key, value) if side.kind == 1}
    blocks = ceil(all_rows / (4 if len(tables) == 2 and max(key.dim, value.dim) > 128 else 8))
    rows = ceil(all_rows / blocks)
    unroll = 4 if lanes <= 16 else 2
    # The registers of a CUDA core hold 12 simd groups of tensor cores' work: two threadgroups, or one where
    # heads are so few that there would be too many to merge. Where they take more, 8.
    few = heads * blocks <= 4
    wide = not key.kind or max(key.dim, value.dim) > 128
    simds = 4 if not tensor else 8 if wide else 12 if few else 6
    return Plan(key, value, group, rows, lanes, unroll, simds, queries, storage, sink, tensor, merged)


def _per_lane(dim: int, lanes: int) -> int:
    """Dimensions to a lane: a width that loads in one go, and of codes whole bytes."""
    return next(width for width in (8, 16, 32) if dim / lanes <= width)


def _side_plan(side: Side) -> SidePlan | None:
    dim, form, grows = side.head_dim, side.format, side.recent.waits
    if dim % 8 or not 32 <= dim <= LARGEST_DIM:
        return None
    if isinstance(form, RawFormat) or not side.packed.length:
        return SidePlan(dim, 0, 0, 1, 1, mx.float16, False, 0, grows)
    words = int(side.packed.arrays[0].shape[3])
    if isinstance(form, TurboFormat):
        rotation = 1 if form.rotation.array.ndim == 1 else 2
        mean = form.mean is not None
        return SidePlan(dim, 1, form.bits, words, 1, mx.float16, mean, rotation, grows)
    if isinstance(form, AffineFormat) and form.spec.bits in (4, 8):
        group = form.spec.group_size(dim)
        mean = form.mean is not None
        return SidePlan(dim, 2, form.spec.bits, words, group, side.packed.arrays[1].dtype, mean, 0, grows)
    return None

"""What the kernels are launched with: sizes, splits and arrays for one step of attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, e, log2
from typing import Any

import mlx.core as mx

from tqchat.kv.formats import AffineFormat, RawFormat, TurboFormat
from tqchat.kv.kernels.device import LARGEST_DIM, SIMD, Kernels, Launch, blank, run
from tqchat.kv.kernels.source import Constants, Kernel
from tqchat.kv.storage import Side, TokenStore

TENSOR_DIMS = (64, 128, 256)
TENSOR_TILE = 16
MOST_SPLITS = 112
MOST_RAW_SPLITS = 16
GROUPS_WANTED = 396
"""Threadgroups that keep a large device busy; a context is split into so many pieces, never smaller than a
step."""


@dataclass(frozen=True)
class SidePlan:
    """How one side of a layer is stored: all that a kernel must know of it when it is compiled.

    ``kind`` is 0 for raw, 1 for a codebook, 2 for affine groups; ``rotation`` 0 for none, 1 for signs and
    Hadamard, 2 for a dense matrix.
    """

    dim: int
    kind: int
    bits: int
    words: int
    group: int
    scale: mx.Dtype
    mean: bool
    balance: bool
    rotation: int


@dataclass(frozen=True)
class Plan:
    """One compiled pair of kernels.

    Attributes:
        lanes: Lanes that share a token.
        key_per_lane: Dimensions of a key that a lane holds; ``value_per_lane`` of a value.
        rows: Query rows that a threadgroup serves at once.
        unroll: Tokens that a lane group has in flight.
        tensor: Whether packed tokens go through tensor cores.
        simds: Simd groups in a threadgroup.
        group: Query heads to a KV head.
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
    tensor: bool = False

    @property
    def kernel(self) -> Kernel:
        """The text that attends."""
        return "attend_tensor" if self.tensor else "attend"

    @property
    def key_per_lane(self) -> int:
        return _per_lane(self.key.dim, self.lanes, self.tensor)

    @property
    def value_per_lane(self) -> int:
        return _per_lane(self.value.dim, self.lanes, self.tensor)

    @property
    def step(self) -> int:
        """Packed tokens that a threadgroup takes at a time."""
        return self.simds * self.least

    @property
    def least(self) -> int:
        """Packed tokens that a simd group looks at at once."""
        return TENSOR_TILE if self.tensor else SIMD // self.lanes * self.unroll

    @property
    def slices(self) -> int:
        """Threads that share a dimension when splits are merged."""
        return max(1, 512 // self.value.dim)

    def attend_constants(self) -> Constants:
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
            )
        ]
        return (
            *sides,
            ("KEY_MEAN", int(self.key.mean)),
            ("KEY_BALANCE", int(self.key.balance)),
            ("KEY_ROTATION", self.key.rotation),
            ("KEY_PER_LANE", self.key_per_lane),
            ("VALUE_PER_LANE", self.value_per_lane),
            ("LANES", self.lanes),
            ("GROUP", self.group),
            ("ROWS", self.rows),
            ("UNROLL", self.unroll),
            ("SIMDS", self.simds),
            ("S", self.storage),
            ("T", self.queries),
        )

    def merge_constants(self) -> Constants:
        return (
            ("VALUE_DIM", self.value.dim),
            ("VALUE_MEAN", int(self.value.mean)),
            ("VALUE_ROTATION", self.value.rotation),
            ("GROUP", self.group),
            ("SLICES", self.slices),
            ("MOST_SPLITS", MOST_SPLITS + MOST_RAW_SPLITS),
            ("HAS_SINK", int(self.sink)),
            ("T", self.queries),
        )


def plan_for(
    queries: mx.array, keys: Side, values: Side, sink: bool, tensor_cores: bool = False
) -> Plan | None:
    """The kernels for such queries over such a layer; ``None`` where there are none.

    Args:
        tensor_cores: Whether the device has those of CUDA.
    """
    if not (keys.recent.length and values.recent.length) or keys.dtype != values.dtype:
        return None
    key, value = _side_plan(keys), _side_plan(values)
    if key is None or value is None or not (key.kind or value.kind):
        return None
    group = queries.shape[1] // keys.shape[1]
    tensor = tensor_cores and _suits_tensor_cores(key, value, keys.dtype)
    return _plan(key, value, group, group * queries.shape[2], queries.dtype, keys.dtype, sink, tensor)


def _suits_tensor_cores(key: SidePlan, value: SidePlan, storage: mx.Dtype) -> bool:
    sizes = key.dim in TENSOR_DIMS and value.dim in TENSOR_DIMS and value.kind == 1
    return sizes and (
        key.kind == 1 or (key.kind == 2 and key.group == 64) or (key.kind == 0 and storage == mx.float16)
    )


@lru_cache(maxsize=256)
def _plan(
    key: SidePlan,
    value: SidePlan,
    group: int,
    all_rows: int,
    queries: mx.Dtype,
    storage: mx.Dtype,
    sink: bool,
    tensor: bool,
) -> Plan:
    # A lane's registers hold its share of every row's query and sum: more lanes to a token where there are
    # many rows.
    per_lane = 4 if tensor else 16 if all_rows <= 4 else 8
    lanes = min(SIMD, 1 << ceil(log2(ceil(max(key.dim, value.dim) / per_lane))))
    blocks = ceil(all_rows / 8)
    rows = ceil(all_rows / blocks)
    unroll = 4 if lanes <= 16 else 2
    return Plan(key, value, group, rows, lanes, unroll, 4, queries, storage, sink, tensor)


class Steps:
    """The launches for one layer's steps of decoding. What does not change from one to the next is made
    once: a step is a few microseconds of Python.

    Args:
        plan: What ``plan_for`` said for these queries and sides.
        scale: The softmax's.
        sink: One logit for each query head, where the model has them.
    """

    def __init__(
        self, plan: Plan, queries: mx.array, keys: Side, values: Side, scale: float, sink: mx.array | None
    ) -> None:
        self.plan = plan
        self.scale = scale
        self.sink = sink
        self.formats = keys.format, values.format
        self.shape = tuple(queries.shape)
        self.dtype = queries.dtype
        batch, query_heads, rows, _ = self.shape
        self._step = plan.step
        self._least = plan.least
        self._threads = plan.simds * SIMD
        self._rows = rows
        self._query_heads = query_heads
        self._heads = batch * keys.shape[1]
        self._groups_y = self._heads * ceil(plan.group * rows / plan.rows)
        self._wanted = max(1, min(MOST_SPLITS, GROUPS_WANTED // self._groups_y))
        self._out_rows = self._heads * plan.group * rows
        key_mean, key_balance = _fitted(keys, plan.key)
        value_mean, _ = _fitted(values, plan.value)
        self._attend: Any = None
        self._merge: Any = None
        self._scale = _scale(scale)
        self._of_keys = [key_mean, key_balance, _rotation(keys, plan.key)]
        self._of_values = [
            value_mean,
            _rotation(values, plan.value),
            blank(plan.queries) if sink is None else sink,
        ]
        threads = plan.value.dim * plan.slices
        self._merge_grid = (batch * query_heads * rows * threads, 1, 1)
        self._merge_threads = (threads, 1, 1)
        self._output_shape = (batch, query_heads, rows, plan.value.dim)

    def serves(
        self, queries: mx.array, keys: Side, values: Side, scale: float, sink: mx.array | None
    ) -> bool:
        """Whether these launches are for such a step."""
        return (
            self.formats[0] is keys.format
            and self.formats[1] is values.format
            and self.sink is sink
            and self.scale == scale
            and self.dtype == queries.dtype
            and self.shape == tuple(queries.shape)
        )

    def ready(self, keys: Side, values: Side) -> bool:
        """Whether enough is stored: a simd group looks at so many packed tokens at once, and the rows' own
        tokens must be raw."""
        fullest = values if self.plan.value.kind else keys
        return fullest.packed.length >= self._least and fullest.recent.length >= self._rows

    def run(self, kernels: Kernels, queries: mx.array, keys: Side, values: Side) -> mx.array:
        """Attention, ``[batch, query_heads, rows, value_dim]`` in the queries' dtype."""
        if self._attend is None:
            self._attend = kernels.compiled(self.plan.kernel, self.plan.attend_constants())
            self._merge = kernels.compiled("merge", self.plan.merge_constants())
        found = run(self._attend, self.attend(queries, keys, values))
        return run(self._merge, self.merge(found))[0]

    def attend(self, queries: mx.array, keys: Side, values: Side) -> Launch:
        """The run over packed and raw tokens."""
        plan, step = self.plan, self._step
        fullest = values if plan.value.kind else keys
        sinks, packed, tail = fullest.sinks.length, fullest.packed.length, fullest.recent.length
        steps = -(-packed // step)
        packed_splits = -(-steps // -(-steps // self._wanted))
        raw_splits = min(MOST_RAW_SPLITS, -(-(sinks + tail) // step))
        splits = packed_splits + raw_splits
        self._sizes = _sizes((8, sinks + 1, packed + 1, tail + 1, raw_splits, self._rows, self._query_heads))
        return Launch(
            [
                queries,
                self._scale,
                self._sizes,
                *_stored(keys, plan.key),
                *self._of_keys,
                *_stored(values, plan.value),
            ],
            (splits * self._threads, self._groups_y, 1),
            (self._threads, 1, 1),
            [(splits, self._out_rows, plan.value.dim), (splits, self._out_rows, 2)],
            _FLOATS,
        )

    def merge(self, found: Sequence[mx.array]) -> Launch:
        """The run that makes one answer of the splits'; ``found`` is what ``attend`` gave."""
        return Launch(
            [*found, self._sizes, *self._of_values],
            self._merge_grid,
            self._merge_threads,
            [self._output_shape],
            [self.dtype],
        )


def _per_lane(dim: int, lanes: int, only_raw: bool) -> int:
    """Dimensions to a lane: a width that loads in one go, and of codes whole bytes."""
    least = dim / lanes
    return next(width for width in (4, 8, 16, 32) if least <= width and (width > 4 or only_raw))


def _side_plan(side: Side) -> SidePlan | None:
    dim, form = side.head_dim, side.format
    if dim % 8 or not 32 <= dim <= LARGEST_DIM:
        return None
    if isinstance(form, RawFormat) or not side.packed.length:
        return SidePlan(dim, 0, 0, 1, 1, mx.float16, False, False, 0)
    words = int(side.packed.arrays[0].shape[3])
    if isinstance(form, TurboFormat):
        rotation = 1 if form.rotation.array.ndim == 1 else 2
        mean, balance = form.mean is not None, form.balance is not None
        return SidePlan(dim, 1, form.bits, words, 1, mx.float16, mean, balance, rotation)
    if isinstance(form, AffineFormat) and form.spec.bits in (4, 8):
        group = form.spec.group_size(dim)
        mean, balance = form.mean is not None, form.balance is not None
        return SidePlan(dim, 2, form.spec.bits, words, group, side.packed.arrays[1].dtype, mean, balance, 0)
    return None


def _from_start(store: TokenStore) -> tuple[mx.array, ...]:
    """A store's arrays from its first token on, growth slack included: no slice where none is needed."""
    return tuple(array[:, :, store.start :] for array in store.arrays) if store.start else store.arrays


def _stored(side: Side, plan: SidePlan) -> list[mx.array]:
    """Codes, scales, biases, sinks and tail."""
    tail = _from_start(side.recent)[0]
    if not plan.kind:
        return [blank(mx.uint32), blank(plan.scale), blank(plan.scale), blank(side.dtype, 4), tail]
    codes, scales, *biases = _from_start(side.packed)
    sinks = _from_start(side.sinks)
    return [
        codes,
        scales,
        biases[0] if biases else blank(plan.scale),
        sinks[0] if sinks else blank(side.dtype, 4),
        tail,
    ]


def _fitted(side: Side, plan: SidePlan) -> tuple[mx.array, mx.array]:
    fitted = side.format.fitted if plan.kind else {}
    absent = blank(mx.float16)
    return fitted.get("mean", absent), fitted.get("balance", absent)


def _rotation(side: Side, plan: SidePlan) -> mx.array:
    return side.format.shared["rotation"] if plan.rotation else blank(mx.float32)


@lru_cache(maxsize=8)
def _sizes(shape: tuple[int, ...]) -> mx.array:
    """An array of that shape, and of one element. Sizes travel so: a shape is passed by value, and serves all
    layers of a step, where an array with sizes in it would have to be made and waited for.
    """
    return mx.broadcast_to(blank(mx.uint8, len(shape)), shape)


_FLOATS = [mx.float32, mx.float32]


@lru_cache(maxsize=64)
def _scale(scale: float) -> mx.array:
    """The softmax's scale, for powers of two. Arrays of fewer than 8 elements would change address space on
    Metal."""
    array = mx.full(8, scale * log2(e), dtype=mx.float32)
    mx.eval(array)
    return array

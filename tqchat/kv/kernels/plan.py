"""Choice of kernel and compile-time parameters for one step of attention."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, log2

import mlx.core as mx

from tqchat.kv.codec.affine import AffineFormat
from tqchat.kv.codec.base import RawFormat
from tqchat.kv.codec.codebook import MAGNITUDES
from tqchat.kv.codec.turbo import TurboFormat
from tqchat.kv.kernels import source
from tqchat.kv.kernels.device import MAX_HEAD_DIM, SIMD_WIDTH, Kernels
from tqchat.kv.scheme import CENTRES, FINE_BITS, words_per_vector
from tqchat.kv.storage.side import Side

TENSOR_DIMS = (64, 128, 256)
"""Head dimensions that the tensor-core kernel supports."""
MAX_TENSOR_BITS = 4
"""Largest codes that the tensor-core kernel supports."""
LEVELS = 1 << max(MAGNITUDES)
"""Centroids of the largest codebook."""
MAX_SPLITS = 128
"""Most splits of a context (split-K)."""
MAX_RAW_SPLITS = 16
"""Most of these splits that hold raw tokens."""
MAX_FINE_SPLITS = 8
"""Most of these splits that hold fine tokens."""
MAX_BLOCKS = 1024
"""Most blocks of query rows in a launch; each has a counter in the workspace."""
MERGE_SIMDS = 8
"""Simd groups per row of the separate merge kernel."""
WIDE_TABLE_COLUMNS = 32
"""Columns of a trellis table that has one for every lane, so that look-ups have no bank conflicts."""
DECLARED_BYTES = 14336
"""More than the threadgroup memory that the source of an attention kernel declares beside its tables."""
NO_TABLE_BYTES = 16
"""Threadgroup memory of the table of a side that has none."""
NARROW_TABLE_BYTES = 32768 + 2 * NO_TABLE_BYTES
"""Threadgroup memory that suffices for tables with a column for every lane, or is shared by fewer columns."""
MAX_ROWS = 8
"""Most query rows of a block."""
MERGE_BUFFER_FLOATS = 8192
"""Floats of threadgroup memory for merging: those of the largest codebook table."""


@dataclass(frozen=True)
class SidePlan:
    """Compile-time description of one side of a layer.

    Attributes:
        kind: 0 raw, 1 codebook, 2 affine groups, 3 trellis.
        words: 32-bit words per packed vector.
        group: Values per affine scale.
        scale: Dtype of the affine scales.
        mean: Whether a mean was subtracted (affine).
        centres: Number of centres (codebook); 0 if the format is not fitted.
        rotation: 0 none, 1 Hadamard with signs, 2 dense matrix.
        writes_tail: Whether the newest token is pending, so that the kernel writes it into the tail.
    """

    dim: int
    kind: source.Kind
    bits: int
    words: int
    group: int
    scale: mx.Dtype
    mean: bool
    centres: int
    rotation: int
    writes_tail: bool = False


@dataclass(frozen=True)
class Plan:
    """The kernels for one kind of attention step.

    Attributes:
        group: Query heads per KV head.
        rows: Query rows per threadgroup (a block).
        lanes: Lanes that share a token.
        unroll: Packed tokens that a lane group loads at a time.
        simds: Simd groups (CUDA: warps) per threadgroup.
        queries, storage: Dtypes of queries and output, and of raw tokens.
        has_sink: Whether the model has learned attention sinks.
        has_fine: Whether there are fine tokens; there may be no packed ones then.
        tensor_cores: Whether packed tokens go through tensor cores.
        wide_tables: Bytes that the launch reserves for trellis tables with a column for every lane, or 0.
        single_launch: Whether the last threadgroup of each block merges the splits in the same launch. It
            needs device-wide memory ordering inside a launch, which most Metal devices lack.
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
    has_sink: bool
    has_fine: bool
    tensor_cores: bool
    wide_tables: int
    single_launch: bool

    @property
    def key_per_lane(self) -> int:
        """Dimensions of a key per lane."""
        return _per_lane(self.key.dim, self.lanes)

    @property
    def value_per_lane(self) -> int:
        """Dimensions of a value per lane."""
        return _per_lane(self.value.dim, self.lanes)

    @property
    def tokens_per_step(self) -> int:
        """Packed tokens that a threadgroup processes at a time."""
        return self.simds * self.min_packed_tokens

    @property
    def min_packed_tokens(self) -> int:
        """Packed tokens that a simd group processes at a time; the kernels need at least as many."""
        return self.tile if self.tensor_cores else SIMD_WIDTH // self.lanes * self.unroll

    def has_enough_tokens(self, packed: int, tail: int, rows: int) -> bool:
        """Whether there are enough packed and tail tokens for this plan and ``rows`` query tokens."""
        may_lack_packed = self.has_fine and not packed
        return (may_lack_packed or packed >= self.min_packed_tokens) and tail >= rows

    @property
    def tile(self) -> int:
        """Packed tokens of a simd group per tensor-core step, limited by registers."""
        return 16 if not self.key.kind or max(self.key.dim, self.value.dim) > 128 else 32

    @property
    def raw_tokens_per_step(self) -> int:
        """Raw or fine tokens that a threadgroup processes at a time."""
        if self.tensor_cores:
            return self.simds * 16
        return self.simds * (SIMD_WIDTH // self.lanes) * self.raw_unroll

    @property
    def raw_unroll(self) -> int:
        """Raw or fine tokens that a lane group loads at a time, limited by registers."""
        size = self.key_per_lane + self.value_per_lane
        if self.rows > 7 or size > 16:
            return 1
        return 4 if size <= 8 and self.rows <= 4 else 2

    def attend_spec(self) -> source.KernelSpec:
        """The attention kernel; it also merges if ``single_launch``."""
        kernel: source.Kernel = (
            "attend_tensor" if self.tensor_cores else "attend_merged" if self.single_launch else "attend"
        )
        sides = self._key, self._value
        tails = [name for side in sides for name in side.tail_names]
        stored = [name for side in sides for name in side.encoded_names]
        return source.KernelSpec(
            kernel,
            ("queries", "before", "sizes", *tails, "fixed", *stored),
            ("output" if self.single_launch else "partial",),
            self._constants(self.rows, self.simds) if self.single_launch else self._constants(0, 1),
            sides,
            self.simds * SIMD_WIDTH if self.tensor_cores else 0,
            shared_memory=self.wide_tables,
        )

    def merge_spec(self) -> source.KernelSpec:
        """The kernel that merges the partial results of ``attend_spec``, one row per threadgroup."""
        return source.KernelSpec(
            "merge", ("partial", "sizes", "fixed"), ("output",), self._constants(1, MERGE_SIMDS)
        )

    @property
    def _key(self) -> source.SideArrays:
        return source.SideArrays("key", self.key.kind, self.key.writes_tail, self.has_fine)

    @property
    def _value(self) -> source.SideArrays:
        return source.SideArrays("value", self.value.kind, self.value.writes_tail, self.has_fine)

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
                (f"{name}_CENTRES", side.centres),
                (f"{name}_ROTATION", side.rotation),
            )
        ]
        fine = [
            (f"{name}_FINE_STRIDE", words_per_vector(side.dim, FINE_BITS))
            for name, side in (("KEY", self.key), ("VALUE", self.value))
        ]
        sums, states = merge_rows * self.value.dim, merge_rows * (MAX_SPLITS + 2)
        parts = next(
            n
            for n in range(merge_simds, 0, -1)
            if merge_simds % n == 0 and (n * sums + states <= MERGE_BUFFER_FLOATS or n == 1)
        )
        return (
            *sides,
            ("FINE_BITS", FINE_BITS if self.has_fine else 0),
            *(fine if self.has_fine else ()),
            ("KEY_PER_LANE", self.key_per_lane),
            ("VALUE_PER_LANE", self.value_per_lane),
            ("LANES", self.lanes),
            ("GROUP", self.group),
            ("ROWS", self.rows),
            ("UNROLL", self.unroll),
            ("RAW_UNROLL", self.raw_unroll),
            ("TILE", self.tile),
            ("WIDE_TABLES", self.wide_tables),
            ("SIMDS", self.simds),
            ("HAS_SINK", int(self.has_sink)),
            ("LEVELS", LEVELS),
            ("MAX_SPLITS", MAX_SPLITS),
            ("MAX_BLOCKS", MAX_BLOCKS),
            ("MERGE_ROWS", merge_rows),
            ("MERGE_SIMDS", merge_simds),
            ("MERGE_PARTS", parts),
            ("MERGE_FLOATS", parts * sums + states),
            ("S", self.storage),
            ("T", self.queries),
        )


def plan_for(queries: mx.array, keys: Side, values: Side, sink: bool, kernels: Kernels) -> Plan | None:
    """The plan for these queries over a layer; ``None`` where no kernel applies."""
    if not (keys.recent.length and values.recent.length) or keys.dtype != values.dtype:
        return None
    has_fine = bool(keys.fine.length)
    key, value = _side_plan(keys), _side_plan(values)
    if key is None or value is None or not (key.kind or value.kind) or not have_equal_fine(keys, values):
        return None
    if has_fine and not (key.rotation and value.rotation):
        return None
    group = queries.shape[1] // keys.shape[1]
    tensor = kernels.tensor_cores and _suits_tensor_cores(key, value, keys.dtype)
    wide = _wide_tables(key, value, kernels.shared_memory) if tensor else 0
    merged = kernels.language == "cuda"
    heads, all_rows = queries.shape[0] * keys.shape[1], group * queries.shape[2]
    plan = _plan(
        key, value, heads, group, all_rows, queries.dtype, keys.dtype, sink, has_fine, tensor, wide, merged
    )
    packed_side = values if value.kind else keys
    if not plan.has_enough_tokens(packed_side.packed.length, packed_side.recent.length, queries.shape[2]):
        return None
    return plan if heads * ceil(all_rows / plan.rows) <= MAX_BLOCKS else None


def have_equal_fine(keys: Side, values: Side) -> bool:
    """Whether the fine tokens of both sides are at equal places of equally long arrays, as kernels need."""
    one, other = keys.fine, values.fine
    equal = (one.length, one.capacity, one.start) == (other.length, other.capacity, other.start)
    return equal and (not one.length or keys.packed.length == values.packed.length)


def _suits_tensor_cores(key: SidePlan, value: SidePlan, storage: mx.Dtype) -> bool:
    suits = key.dim in TENSOR_DIMS and value.dim in TENSOR_DIMS and value.kind in (1, 3)
    return (suits and storage != mx.float32 and value.bits <= MAX_TENSOR_BITS) and (
        (key.kind in (1, 3) and key.bits <= MAX_TENSOR_BITS)
        or (key.kind == 2 and key.group == 64)
        or (key.kind == 0 and storage == mx.float16)
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
    has_fine: bool,
    tensor: bool,
    wide: int,
    merged: bool,
) -> Plan:
    # A lane holds its share of every row's query and sum in registers, so many rows need more lanes per
    # token.
    per_lane = 16 if all_rows <= 4 else 8
    lanes = min(SIMD_WIDTH, 1 << ceil(log2(ceil(max(key.dim, value.dim) / per_lane))))
    # Two large tables and eight long queries exceed threadgroup memory.
    tables = _tables(key, value)
    most = 4 if len(tables) == 2 and max(key.dim, value.dim) > 128 else MAX_ROWS
    blocks = ceil(all_rows / most)
    # Blocks of steps with drafted tokens all have the same size: on CUDA each size is a kernel to compile.
    rows = all_rows if blocks == 1 else most
    unroll = 4 if lanes <= 16 else 2
    # 12 simd groups of tensor-core work fit the registers of a CUDA multiprocessor: as two threadgroups, or
    # as one where there are so few heads that merging more splits would dominate. Register-heavy shapes fit
    # 8.
    few_blocks = heads * blocks <= 4
    wide_registers = not key.kind or max(key.dim, value.dim) > 128
    at_once = (few_blocks and len(tables) < 2) or wide
    simds = 4 if not tensor else 8 if wide_registers else 12 if at_once else 6
    return Plan(
        key, value, group, rows, lanes, unroll, simds, queries, storage, sink, has_fine, tensor, wide, merged
    )


def _wide_tables(key: SidePlan, value: SidePlan, available: int) -> int:
    """Bytes of both sides' tables, if those of trellises should have a column for every lane; else 0."""
    tables = _tables(key, value)
    if not any(kind == 3 for kind, _ in tables):
        return 0
    size = 4 * WIDE_TABLE_COLUMNS * sum(_table_entries(kind, bits) for kind, bits in tables)
    size += 2 * NO_TABLE_BYTES
    if size <= NARROW_TABLE_BYTES:
        return 0
    # The merge uses the same memory.
    size = max(size, 4 * MERGE_BUFFER_FLOATS)
    return size if size <= available - DECLARED_BYTES else 0


def _tables(key: SidePlan, value: SidePlan) -> set[tuple[source.Kind, int]]:
    """Kind and bits of the tables of both sides; one if they are the same."""
    return {(side.kind, side.bits) for side in (key, value) if side.kind in (1, 3)}


def _table_entries(kind: int, bits: int) -> int:
    """Entries of a table of pairs, as in ``tq_entries``."""
    return (1024 if bits == 4 else 256) if kind == 3 else 1 << 2 * bits


def _per_lane(dim: int, lanes: int) -> int:
    """Dimensions per lane: a width that one load covers, and whole bytes of codes."""
    return next(width for width in (8, 16, 32) if dim / lanes <= width)


def _side_plan(side: Side) -> SidePlan | None:
    dim, format_, writes_tail = side.head_dim, side.format, side.recent.pending is not None
    if dim % 8 or not 32 <= dim <= MAX_HEAD_DIM:
        return None
    if isinstance(format_, RawFormat) or not (side.packed.length or side.fine.length):
        return SidePlan(dim, 0, 0, 1, 1, mx.float16, False, 0, 0, writes_tail)
    words = side.packed.memory[0].shape[3] if side.packed.length else side.spec.words_per_vector(dim)
    if isinstance(format_, TurboFormat) and type(format_.quantiser) in source.QUANTISER_KINDS:
        rotation = 1 if format_.rotation.array.ndim == 1 else 2
        return SidePlan(
            dim,
            source.QUANTISER_KINDS[type(format_.quantiser)],
            format_.quantiser.bits,
            words,
            1,
            mx.float16,
            False,
            0 if format_.centres is None else CENTRES,
            rotation,
            writes_tail,
        )
    if isinstance(format_, AffineFormat) and format_.spec.bits in (4, 8):
        group = format_.spec.group_size(dim)
        mean = format_.mean is not None
        return SidePlan(
            dim, 2, format_.spec.bits, words, group, side.packed.memory[1].dtype, mean, 0, 0, writes_tail
        )
    return None

"""What the kernels are launched with: sizes, splits and arrays for one step of attention."""

from __future__ import annotations

from functools import lru_cache
from math import ceil, e, log2
from threading import get_ident
from typing import Any, NamedTuple

import mlx.core as mx

from tqchat.kv.codebook import centroids
from tqchat.kv.kernels.device import SIMD, Kernels, Launch, blank, run
from tqchat.kv.kernels.plan import MERGE_SIMDS, MOST_BLOCKS, MOST_RAW_SPLITS, MOST_SPLITS, Plan
from tqchat.kv.storage import Side

Rooms = tuple[int, int, int, int, int, int, int, int]
"""Rooms and starts: of packed keys, packed values, raw keys, raw values."""

LAST = 8
"""Layouts of one kind that are kept: windows and full layers of a model take turns."""

SIMDS_WANTED = 1584
"""Simd groups that keep a large device busy; a context is split among so many, none with less than a step."""


class Layout(NamedTuple):
    """How a step is split, the same for all layers of a model that are alike."""

    sizes: mx.array
    grid: tuple[int, int, int]
    splits: int


class Exchange:
    """Where a launch's threadgroups leave what they find, for the last of them to merge. Launches that share
    it wait for each other: it is for one layer, or for those of one model's cache, which do so anyway. It is
    working memory, and not counted as a cache's.

    Attributes:
        arrays: One with counters, zero between launches, and what is found; and the answer of the launch
            before. Empty until room is reserved.
    """

    def __init__(self) -> None:
        self.arrays: tuple[mx.array, ...] = ()

    def reserve(self, floats: int) -> None:
        """Have room for so much, if there is less."""
        before = self.arrays[1] if self.arrays else blank(mx.float32)
        if not self.arrays or self.arrays[0].size < MOST_BLOCKS + floats:
            self.arrays = mx.zeros(MOST_BLOCKS + floats), before

    def renew(self) -> None:
        """Forget a launch that went wrong, and what it may have left."""
        if self.arrays:
            self.arrays = mx.zeros(self.arrays[0].size), blank(mx.float32)

    def launched(self, answer: mx.array) -> None:
        """Note what the next launch is to wait for."""
        self.arrays = self.arrays[0], answer


class Steps:
    """The launches for one layer's steps of decoding. What does not change from one to the next is made
    once: a step is a few microseconds of Python.

    Attributes:
        is_trusted: Whether their answer was held against the plain operations'.

    Args:
        plan: What ``plan_for`` said for these queries and sides.
        scale: The softmax's.
        sink: One logit for each query head, where the model has them.
        exchange: For launches that merge what their threadgroups find.
    """

    def __init__(
        self,
        plan: Plan,
        queries: mx.array,
        keys: Side,
        values: Side,
        scale: float,
        sink: mx.array | None,
        exchange: Exchange,
    ) -> None:
        self.plan = plan
        self._exchange = exchange
        self.is_trusted = False
        self.dtype = queries.dtype
        self._shape = queries.shape
        self._scale = scale
        self._sink = sink
        self._formats = keys.format, values.format
        self._sinks = keys.sinks.origin, values.sinks.origin
        self._packs_values = bool(plan.value.kind)
        batch, query_heads, rows, _ = queries.shape
        heads = batch * query_heads // plan.group
        blocks = heads * ceil(plan.group * rows / plan.rows)
        # Of one thread: another one's arrays cannot be waited for.
        self._layouts = _layouts(
            get_ident(), plan.least, plan.step, plan.raw_step, plan.simds, blocks, rows, query_heads
        )
        self._threads = plan.simds * SIMD, 1, 1
        self._fixed = _fixed(plan, keys, values, heads, scale, sink)
        self._found = blocks * plan.rows * (plan.value.dim + 2)
        if plan.merged:
            exchange.reserve(self._layouts.most * self._found)
        self._output_shape = batch, query_heads, rows, plan.value.dim
        grown = [keys.dtype] * (plan.key.grows + plan.value.grows)
        self._dtypes = [queries.dtype if plan.merged else mx.float32, *grown]
        self._merge_threads = MERGE_SIMDS * SIMD, 1, 1
        self._merge_grid = blocks * plan.rows * MERGE_SIMDS * SIMD, 1, 1
        self._attend: Any = None
        self._merge: Any = None

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept from one step to the next."""
        return self._fixed.nbytes

    def knows(self, keys: Side, values: Side) -> bool:
        """Whether what does not change from step to step is that of these sides."""
        formats, sinks = self._formats, self._sinks
        return (
            formats[0] is keys.format
            and formats[1] is values.format
            and sinks[0] is keys.sinks.origin
            and sinks[1] is values.sinks.origin
        )

    def serves(
        self, queries: mx.array, keys: Side, values: Side, scale: float, sink: mx.array | None
    ) -> bool:
        """Whether these launches are for such a step, if the same sides' last tokens wait."""
        return (
            self.knows(keys, values)
            and self._sink is sink
            and self._scale == scale
            and self._shape == queries.shape
            and self.dtype == queries.dtype
        )

    def layout(self, keys: Side, values: Side) -> Layout | None:
        """How the step is split; ``None`` if too little is stored."""
        fullest = values if self._packs_values else keys
        a, b, c, d = keys.packed, values.packed, keys.recent, values.recent
        return self._layouts.of(
            fullest.sinks.length,
            fullest.packed.length,
            fullest.recent.length,
            (a.room, a.start, b.room, b.start, c.room, c.start, d.room, d.start),
        )

    def run(
        self, kernels: Kernels, layout: Layout, queries: mx.array, keys: Side, values: Side
    ) -> tuple[mx.array, list[mx.array]]:
        """Attention, ``[batch, query_heads, rows, value_dim]`` in the queries' dtype; and the tails that the
        tokens which wait are in now, the keys' before the values'.
        """
        if self._attend is None:
            self._attend = kernels.compiled(self.plan.attend_text())
            if not self.plan.merged:
                self._merge = kernels.compiled(self.plan.merge_text())
        output, *grown = run(self._attend, self.attend(layout, queries, keys, values))
        if self._merge is None:
            self._exchange.launched(output)
        else:
            output = run(self._merge, self.merge(layout, output))[0]
        return output, grown

    def attend(self, layout: Layout, queries: mx.array, keys: Side, values: Side) -> Launch:
        """The run over packed and raw tokens."""
        sizes, grid, splits = layout
        if not self.plan.merged:
            shape: tuple[int, ...] = (splits * self._found,)
        else:
            shape = self._output_shape
        inputs = [queries, sizes, self._fixed]
        shapes = [shape]
        for side in (keys, values):
            packed, recent = side.packed, side.recent
            inputs += packed.arrays
            growing = recent.growing
            if growing is None:
                inputs += recent.arrays
            else:
                inputs += growing
                shapes.append(growing[0].shape)
        if self.plan.merged:
            inputs += self._exchange.arrays
        return {
            "inputs": inputs,
            "grid": grid,
            "threadgroup": self._threads,
            "output_shapes": shapes,
            "output_dtypes": self._dtypes,
        }

    def merge(self, layout: Layout, partial: mx.array) -> Launch:
        """The run that makes one answer of the splits'; ``partial`` is what ``attend`` gave."""
        return {
            "inputs": [partial, layout.sizes, self._fixed],
            "grid": self._merge_grid,
            "threadgroup": self._merge_threads,
            "output_shapes": [self._output_shape],
            "output_dtypes": [self.dtype],
        }


class _Layouts:
    """How steps of one kind are split: layers that are alike share it, and ask for the same many times.

    Attributes:
        most: Splits of a long context: as many as a large device runs at once.

    Args:
        thread: Which one they are for.
        least: Packed tokens without which there is none; of raw ones there must be as many as query rows.
        step: Packed tokens to a threadgroup's step; ``raw_step`` raw ones.
        simds: Simd groups in a threadgroup.
        blocks: Of query rows.
        rows: Query tokens.
        heads: Query heads.
    """

    def __init__(
        self,
        thread: int,
        least: int,
        step: int,
        raw_step: int,
        simds: int,
        blocks: int,
        rows: int,
        heads: int,
    ) -> None:
        self._least, self._step, self._raw_step = least, step, raw_step
        self._simds, self._blocks, self._rows, self._heads = simds, blocks, rows, heads
        self.most = max(2, min(MOST_SPLITS, SIMDS_WANTED // (simds * blocks)))
        self.of = lru_cache(maxsize=LAST)(self._make)

    def _make(self, sinks: int, packed: int, tail: int, rooms: Rooms) -> Layout | None:
        """The splits of so many sinks, packed tokens and raw ones behind them; ``None`` if they are few.

        Sizes travel as the strides of an array of one element: they are passed by value, where an array
        with sizes in it would have to be made and waited for.
        """
        if packed < self._least or tail < self._rows:
            return None
        wanted = self.most
        steps, raw_steps = -(-packed // self._step), -(-(sinks + tail) // self._raw_step)
        # Raw tokens take as many threadgroups as finish with the packed ones', out of those that run at once.
        raw_splits = min(MOST_RAW_SPLITS, max(1, wanted // 2), -(-raw_steps // max(1, steps // wanted)))
        packed_splits = min(steps, wanted - raw_splits)
        splits = packed_splits + raw_splits
        pairs = ((splits, raw_splits), (self._rows, self._heads), *zip(rooms[::2], rooms[1::2], strict=True))
        strides = (sinks, packed, tail, *(low | high << 32 for low, high in pairs))
        # Nobody looks at the element.
        sizes = mx.as_strided(blank(mx.uint8), [1] * len(strides), strides)
        return Layout(sizes, (splits * self._simds * SIMD, self._blocks, 1), splits)


_layouts = lru_cache(maxsize=64)(_Layouts)


def _fixed(plan: Plan, keys: Side, values: Side, heads: int, scale: float, sink: mx.array | None) -> mx.array:
    """What the kernels read beside tokens and queries, as ``fixed.inc`` says; the scale and the learned sinks
    for powers of two.
    """
    scale = scale * log2(e)
    whole = [mx.array([scale] + [0.0] * 7)]
    for side in (plan.key, plan.value):
        levels = list(centroids(side.bits)) if side.kind == 1 else []
        whole.append(mx.array(levels + [0.0] * (16 - len(levels))))
    each = []
    if plan.key.kind:
        fitted = keys.format.fitted
        fold = mx.full((heads, plan.key.dim), scale)
        if "balance" in fitted:
            fold = fold / fitted["balance"].reshape(heads, -1)
        if plan.key.rotation == 1:
            fold = fold * keys.format.shared["rotation"]
        elif plan.key.rotation == 2:
            whole.append(keys.format.shared["rotation"].flatten())
        if plan.key.mean:
            each.append(fitted["mean"].astype(mx.float32) * scale)
        each.append(fold)
    if plan.value.rotation:
        whole.append(values.format.shared["rotation"].T.flatten())
    if plan.value.mean:
        each.append(values.format.fitted["mean"])
    if sink is not None:
        logits = mx.pad(
            sink.astype(mx.float32).reshape(-1, plan.group) * log2(e), [(0, 0), (0, -plan.group % 4)]
        )
        each.append(mx.tile(logits, (heads // logits.shape[0], 1)))
    for part, stored in ((plan.key, keys), (plan.value, values)):
        if part.kind and stored.sinks.length:
            # As they are stored, in the bits of floats.
            each.append(stored.sinks.view()[0].reshape(heads, -1).view(mx.float32))
    whole += (
        [mx.concatenate([x.astype(mx.float32).reshape(heads, -1) for x in each], axis=1).flatten()]
        if each
        else []
    )
    return mx.concatenate([x.astype(mx.float32) for x in whole])

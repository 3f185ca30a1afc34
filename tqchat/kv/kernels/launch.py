"""Launch parameters of one attention step: sizes, context splits, input arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import ceil
from typing import NamedTuple

import mlx.core as mx

from tqchat.kv.kernels.device import MIN_INPUT_SIZE, SIMD_WIDTH, Launch, kernels, run
from tqchat.kv.kernels.fixed import fixed_inputs
from tqchat.kv.kernels.plan import (
    MAX_BLOCKS,
    MAX_FINE_SPLITS,
    MAX_RAW_SPLITS,
    MAX_SPLITS,
    MERGE_SIMDS,
    Plan,
    have_equal_fine,
)
from tqchat.kv.kernels.workspace import LAYOUT_CACHE_SIZE, LayerLaunches, Workspace
from tqchat.kv.storage.side import Side
from tqchat.kv.storage.threads import thread_key


class PerStore(NamedTuple):
    """One number per token store that a kernel reads; the fine ones of both sides have the same."""

    packed_keys: int
    packed_values: int
    raw_keys: int
    raw_values: int
    fine: int = 0


MULTIPROCESSORS = 132
"""Multiprocessors of a large device (H100)."""

TARGET_SIMD_GROUPS = 12 * MULTIPROCESSORS
"""Simd groups that occupy a large device; limits the splits of a context."""


GRID_STEP = 8
"""Threadgroups per block of query rows are rounded up to a multiple of this: a step of a model is compiled
for a number of them, and those beyond the splits end at once.
"""


class Launches(NamedTuple):
    """Launches for up to so many splits of a context.

    Attributes:
        attend: Launch over packed, raw and fine tokens.
        merge: Launch that merges the splits, unless ``attend`` does.
        run: Both launches as a function of their arrays, in the order of the inputs of
            ``Plan.attend_spec``; pending tokens are written into the tails among them.
    """

    attend: Launch
    merge: Launch | None
    run: Callable[..., mx.array]


class Layout(NamedTuple):
    """Launches of a step, shared by all layers with equal shapes and lengths.

    Attributes:
        sizes: View of the workspace whose strides are the sizes (see ``_LayoutFactory.make``). Kernels get
            strides by value, whereas an array of sizes would have to be computed first.
        splits: Splits of the context.
        launches: Their launches, which are the same objects for layouts that launch the same.
        compiled: ``launches.run`` as a compiled function.
    """

    sizes: mx.array
    splits: int
    launches: Launches
    compiled: Callable[..., mx.array]


class StepLauncher:
    """Launches attention for the decode steps of one layer.

    All that does not change between steps is computed once, since a step is a few microseconds of Python.

    Args:
        plan: From ``plan_for``, for these queries and sides.
        scale: Softmax scale.
        mask: ``"causal"``, or ``None`` for a single row.
        sink_logits: Learned attention sinks, one logit per query head, or ``None``.
        workspace: Shared with other layers.
    """

    def __init__(
        self,
        plan: Plan,
        queries: mx.array,
        keys: Side,
        values: Side,
        scale: float,
        mask: str | None,
        sink_logits: mx.array | None,
        workspace: Workspace,
    ) -> None:
        self.plan = plan
        self.workspace = workspace.of_thread
        self._scale, self._mask, self._sink_logits = scale, mask, sink_logits
        self._formats = keys.format, values.format
        self._sink_revisions = keys.sinks.front_revision, values.sinks.front_revision
        self._packs_values = bool(plan.value.kind)
        # One factory per thread: lazy arrays of one thread cannot be evaluated by another.
        self._layout_factory = _layout_factory(thread_key(), plan, queries.shape)
        self.workspace.reserve(self._layout_factory.floats, _LayoutsByTail)
        self._launches = LayerLaunches(self.workspace)
        heads = queries.shape[0] * queries.shape[1] // plan.group
        self._fixed = fixed_inputs(plan, keys, values, heads, scale, sink_logits)
        self._refresh(keys, values)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays kept between steps."""
        return self._fixed.nbytes + self._launches.output.nbytes

    def matches(self, keys: Side, values: Side) -> bool:
        """Whether formats and sinks of the sides are those of this launcher, and fine tokens as it needs."""
        formats, sinks = self._formats, self._sink_revisions
        return (
            formats[0] is keys.format
            and formats[1] is values.format
            and sinks[0] is keys.sinks.front_revision
            and sinks[1] is values.sinks.front_revision
            and bool(keys.fine.length) == self.plan.has_fine
            and have_equal_fine(keys, values)
        )

    def _is_for(self, keys: Side, values: Side) -> bool:
        """Whether this serves the sides as they are; what depends on their revision is up to date then."""
        if self._key_revision is not keys.revision or self._value_revision is not values.revision:
            if not self.matches(keys, values):
                return False
            self._refresh(keys, values)
        return True

    def _refresh(self, keys: Side, values: Side) -> None:
        """Update what depends on the revision of the sides."""
        self._key_revision, self._value_revision = keys.revision, values.revision
        packed_side = values if self._packs_values else keys
        stores = keys.packed, values.packed, keys.recent, values.recent, packed_side.fine
        self._layouts: _LayoutsByTail = self.workspace.layouts(
            self._layout_factory,
            packed_side.sinks.length,
            packed_side.packed.length,
            packed_side.fine.length,
            PerStore(*(store.capacity for store in stores)),
            PerStore(*(store.start for store in stores)),
        )

    def run(
        self,
        queries: mx.array,
        keys: Side,
        values: Side,
        scale: float,
        mask: mx.array | str | None,
        sink_logits: mx.array | None,
    ) -> mx.array | None:
        """Attention, ``[batch, query_heads, rows, value_dim]`` in the queries' dtype.

        Pending tokens are written to the tails. Returns ``None`` if the arguments do not match this launcher,
        or too few tokens are stored.
        """
        if self._mask is not mask or self._sink_logits is not sink_logits or self._scale != scale:
            return None
        if not self._is_for(keys, values):
            return None
        key_tail, value_tail = keys.recent, values.recent
        layout = self._layouts[(value_tail if self._packs_values else key_tail).length]
        if layout is None:
            return None
        workspace = self.workspace
        try:
            output = layout.compiled(
                queries,
                workspace.before,
                layout.sizes,
                *key_tail.launch_arrays(workspace),
                *value_tail.launch_arrays(workspace),
                *self._encoded(keys, values),
            )
        except UnexpectedArrays:
            return None
        workspace.before = self._launches.output = output
        if key_tail.pending is not None:
            key_tail.mark_written(self._launches)
        if value_tail.pending is not None:
            value_tail.mark_written(self._launches)
        return output

    def _encoded(self, keys: Side, values: Side) -> tuple[mx.array, ...]:
        """The inputs that hold what does not change while tokens are appended to the tails.

        If nothing is packed, arrays of fine tokens take the place of packed ones, which no threadgroup reads
        then. Arrays are those of these sides: snapshots have the revision of the side itself.
        """
        workspace = self.workspace
        key_fine, value_fine = keys.fine.launch_arrays(workspace), values.fine.launch_arrays(workspace)
        return (
            self._fixed,
            *(keys.packed.launch_arrays(workspace) or key_fine),
            *key_fine,
            *(values.packed.launch_arrays(workspace) or value_fine),
            *value_fine,
        )

    def next_token(self, keys: Side, values: Side) -> NextToken | None:
        """The launch of attention that appends a token to both sides, which have a slot for it.

        ``None`` if there is none.
        """
        if not self._is_for(keys, values):
            return None
        tails = keys.recent, values.recent
        layout = self._layouts[tails[self._packs_values].length + 1]
        if layout is None:
            return None
        arrays = [array for tail in tails for array in tail.launch_arrays(self.workspace)]
        attention = Attention(layout.launches.run, self._scale, self._mask, self._sink_logits)
        return NextToken(self, attention, layout.sizes, [*arrays, *self._encoded(keys, values)])

    def mark_appended(self, keys: Side, values: Side, output: mx.array) -> None:
        """Record that the launch of ``next_token`` has run.

        Args:
            output: Of it, or of a later launch of the workspace.
        """
        self.workspace.before = self._launches.output = output
        for side in (keys, values):
            side.recent.add_one_written(self._launches)


class Attention(NamedTuple):
    """The launch that appends a token to the tails and attends to all, without its arrays.

    Attributes:
        run: See ``Launches``.
        scale, mask, sink_logits: What it attends with (see ``StepLauncher``).
    """

    run: Callable[..., mx.array]
    scale: float
    mask: str | None
    sink_logits: mx.array | None

    def __call__(
        self,
        queries: mx.array,
        key: mx.array,
        value: mx.array,
        before: mx.array,
        sizes: mx.array,
        arrays: Sequence[mx.array],
    ) -> mx.array:
        """Attention of the token, ``[batch, query_heads, 1, value_dim]``.

        Args:
            queries: ``[batch, query_heads, 1, key_dim]``.
            key: ``[batch, heads, 1, key_dim]``; ``value`` likewise.
            before: What it runs after.
            sizes, arrays: Those of ``NextToken``, or others of their shapes and dtypes.

        Raises:
            UnexpectedArrays: if an array does not fit.
        """
        key_tail, value_tail, *encoded = arrays
        return self.run(queries, before, sizes, key_tail, key, value_tail, value, *encoded)


class NextToken(NamedTuple):
    """A layer's launch for the next token.

    Attributes:
        sizes: See ``Layout``.
        arrays: The tails, then all that does not change while tokens are appended.
    """

    launcher: StepLauncher
    attention: Attention
    sizes: mx.array
    arrays: list[mx.array]


class _LayoutFactory:
    """Makes the layouts of one kind of step; shared by all layers with equal shapes.

    Attributes:
        max_splits: Splits of a long context.
        floats: Workspace size.

    Args:
        thread: ``thread_key`` of the calling thread.
        shape: Of the queries, ``[batch, query_heads, rows, key_dim]``.
    """

    def __init__(self, thread: object, plan: Plan, shape: tuple[int, ...]) -> None:
        self.plan = plan
        self._shape = shape
        self._batch, self._query_heads, self._rows, _ = shape
        self._heads = self._query_heads // plan.group
        self._blocks = self._batch * self._heads * ceil(plan.group * self._rows / plan.rows)
        self._partial_floats = self._blocks * plan.rows * (plan.value.dim + 2)
        self.max_splits = max(
            3 if plan.has_fine else 2, min(MAX_SPLITS, TARGET_SIMD_GROUPS // (plan.simds * self._blocks))
        )
        self.floats = MAX_BLOCKS + self.max_splits * self._partial_floats if plan.single_launch else 0
        self._launches = lru_cache(maxsize=LAYOUT_CACHE_SIZE)(self._make_launches)
        self._compiled = lru_cache(maxsize=LAYOUT_CACHE_SIZE)(self._compile)

    def make(
        self,
        workspace_array: mx.array,
        sinks: int,
        packed: int,
        fine: int,
        tail: int,
        capacities: PerStore,
        starts: PerStore,
    ) -> Layout | None:
        """The layout for these numbers of tokens; ``None`` if they are too few.

        Args:
            tail: Raw tokens behind the packed and fine ones.
            capacities: Of the stores; ``starts`` their first tokens.
        """
        plan = self.plan
        if not plan.has_enough_tokens(packed, tail, self._rows):
            return None
        max_splits = self.max_splits
        steps = -(-packed // plan.tokens_per_step)
        # Raw and fine tokens get as many threadgroups as they need to finish together with the packed ones.
        tokens_per_split = plan.raw_tokens_per_step * max(1, steps // max_splits)
        share = max(1, max_splits // (3 if plan.has_fine else 2))
        raw_splits = min(MAX_RAW_SPLITS, share, -(-(sinks + tail) // tokens_per_split))
        fine_splits = min(MAX_FINE_SPLITS, share, -(-fine // tokens_per_split))
        other_splits = raw_splits + fine_splits
        packed_splits = min(steps, max_splits - other_splits)
        # Two steps of a threadgroup on a multiprocessor of its own take less time than two threadgroups.
        alone = MULTIPROCESSORS // self._blocks - other_splits
        if plan.tensor_cores and alone < packed_splits and steps <= 2 * alone:
            packed_splits = alone
        splits = packed_splits + other_splits
        threadgroups = min(-(-splits // GRID_STEP) * GRID_STEP, max_splits)
        rooms = list(zip(capacities, starts, strict=True))
        pairs = (
            (sinks, fine),
            (packed, fine_splits),
            (tail, 0),
            (splits, raw_splits),
            (self._rows, self._query_heads),
            *(rooms if plan.has_fine else rooms[:-1]),
        )
        strides = [low | high << 32 for low, high in pairs]
        return Layout(
            mx.as_strided(workspace_array, [1] * len(strides), strides),
            splits,
            self._launches(threadgroups),
            self._compiled(threadgroups, capacities),
        )

    def _compile(self, threadgroups: int, capacities: PerStore) -> Callable[..., mx.array]:
        """The launches as a compiled function of their arrays.

        MLX traces it once, and again only for arrays of other shapes or dtypes, which is when these are
        checked.

        Args:
            capacities: Of the stores; MLX would trace one function for each of them, and search all of these
                traces at every call.
        """
        run = self._launches(threadgroups).run
        compiled: Callable[..., mx.array] = mx.compile(lambda *arrays: run(*arrays))
        return compiled

    def _make_launches(self, threadgroups: int) -> Launches:
        """The launches for up to so many splits."""
        plan = self.plan
        output = self._batch, self._query_heads, self._rows, plan.value.dim
        attend: Launch = {
            "grid": (threadgroups * plan.simds * SIMD_WIDTH, self._blocks, 1),
            "threadgroup": (plan.simds * SIMD_WIDTH, 1, 1),
            "output_shapes": [output if plan.single_launch else (threadgroups * self._partial_floats,)],
            "output_dtypes": [plan.queries if plan.single_launch else mx.float32],
        }
        merge: Launch | None = None
        if not plan.single_launch:
            merge = {
                "grid": (self._blocks * plan.rows * MERGE_SIMDS * SIMD_WIDTH, 1, 1),
                "threadgroup": (MERGE_SIMDS * SIMD_WIDTH, 1, 1),
                "output_shapes": [output],
                "output_dtypes": [plan.queries],
            }
        return Launches(attend, merge, _function(plan, self._shape, attend, merge))


_layout_factory = lru_cache(maxsize=64)(_LayoutFactory)


class _LayoutsByTail(dict[int, Layout | None]):
    """Layouts by length of the tail, the only number that changes at every step.

    Args:
        workspace_array: ``ThreadWorkspace.array``.
        layouts: Factory; the other arguments are those of its ``make``.
    """

    def __init__(
        self,
        workspace_array: mx.array,
        layouts: _LayoutFactory,
        sinks: int,
        packed: int,
        fine: int,
        capacities: PerStore,
        starts: PerStore,
    ) -> None:
        super().__init__()
        self._workspace_array, self._layout_factory = workspace_array, layouts
        self._tokens = sinks, packed, fine
        self._rooms = capacities, starts

    def __missing__(self, tail: int) -> Layout | None:
        layout = self[tail] = self._layout_factory.make(
            self._workspace_array, *self._tokens, tail, *self._rooms
        )
        return layout


class UnexpectedArrays(Exception):
    """Queries or tokens do not have the shape and dtype of the launches."""


def _function(
    plan: Plan, shape: tuple[int, ...], attend: Launch, merge: Launch | None
) -> Callable[..., mx.array]:
    """The launches as a function of their arrays."""
    heads = shape[1] // plan.group
    tails = [
        (is_token, side.dim)
        for side in (plan.key, plan.value)
        for is_token in ((False, True) if side.writes_tail else (False,))
    ]

    def launch(queries: mx.array, before: mx.array, sizes: mx.array, *stored: mx.array) -> mx.array:
        if queries.shape != shape or queries.dtype != plan.queries:
            raise UnexpectedArrays
        for array, (is_token, dim) in zip(stored, tails, strict=False):
            # A view of a tail's memory (see ``flat``) has no shape to check.
            batch, found_heads, tokens, found_dim = (
                array.shape if array.ndim > 1 else (shape[0], heads, 0, dim)
            )
            found = batch, found_heads, found_dim, array.dtype
            if found != (shape[0], heads, dim, plan.storage) or (is_token and tokens != 1):
                raise UnexpectedArrays
        device_kernels = kernels()
        assert device_kernels is not None
        inputs = queries, before, sizes, *stored
        (output,) = run(device_kernels.compiled(plan.attend_spec()), inputs, attend)
        if merge is not None:
            fixed = stored[len(tails)]
            (output,) = run(device_kernels.compiled(plan.merge_spec()), (output, sizes, fixed), merge)
        return output

    return launch


def flat(array: mx.array) -> mx.array:
    """A view of an array's memory whose shape does not depend on the array's capacity."""
    return mx.as_strided(array, (MIN_INPUT_SIZE,), (1,))

"""What the kernels are launched with: sizes, splits and arrays for one step of attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from math import ceil, e, log2
from threading import get_ident
from typing import NamedTuple

import mlx.core as mx

from tqchat.kv.codec.codebook import centroids
from tqchat.kv.kernels.device import SIMD, Launch, blank, kernels, run
from tqchat.kv.kernels.plan import MERGE_SIMDS, MOST_BLOCKS, MOST_RAW_SPLITS, MOST_SPLITS, Plan
from tqchat.kv.storage.side import Side

Four = tuple[int, int, int, int]
"""Of packed keys, packed values, raw keys, raw values."""

LAST = 16
"""Layouts and launches of one kind that are kept: windows and full layers of a model take turns."""

SIMDS_WANTED = 1584
"""Simd groups that keep a large device busy; a context is split among so many, none with less than a step."""


class Layout(NamedTuple):
    """How a step is split, the same for all layers of a model that are alike.

    Attributes:
        sizes: An array of one element, whose strides say them: they are passed by value, where an array with
            sizes in it would have to be made and waited for. Its memory is the exchange's.
        splits: Of the context.
        attend: The run over packed and raw tokens.
        merge: The run that makes one answer of the splits' where ``attend`` does not.
        run: Both, as a function of their arrays: the answer, and behind it the tails that the tokens are in
            which waited, the keys' before the values'.
    """

    sizes: mx.array
    splits: int
    attend: Launch
    merge: Launch | None
    run: Callable[..., list[mx.array]]


class Exchange:
    """What the launches of one model's layers share: where their threadgroups leave what they find, for the
    last of them to merge. Launches that share it wait for each other, as a model's layers do anyway. It is
    working memory, and not counted as a cache's.

    Attributes:
        array: Counters, zero between launches, and what is found; nothing of it where another launch merges.
            Like ``tails`` it is there once something was reserved.
        before: The answer of the last launch that left something there, for which the next one waits.
        tails: Layouts over so many sinks and packed tokens, ``_Tails``; they go with the array.
    """

    array: mx.array | None = None
    before: mx.array | None = None
    tails: Callable[..., _Tails]

    def reserve(self, floats: int) -> None:
        """Have room for so much, if there is less. Launches that know the smaller array go on with it."""
        if self.before is None:
            self.before = blank(mx.float32)
        if self.array is None or self.array.size < floats:
            self.array = mx.zeros(floats) if floats else blank(mx.float32)
            self.tails = lru_cache(maxsize=LAST)(partial(_Tails, self.array))


class Steps:
    """The launches for one layer's steps of decoding. What does not change from one to the next is made
    once: a step is a few microseconds of Python.

    Args:
        plan: What ``plan_for`` said for these queries and sides.
        scale: The softmax's.
        mask: ``"causal"``, or ``None`` for a single row.
        sink: One logit for each query head, where the model has them.
        exchange: What they share with other layers'.
    """

    def __init__(
        self,
        plan: Plan,
        queries: mx.array,
        keys: Side,
        values: Side,
        scale: float,
        mask: str | None,
        sink: mx.array | None,
        exchange: Exchange,
    ) -> None:
        self.plan = plan
        self.exchange = exchange
        self._scale, self._mask, self._sink = scale, mask, sink
        self._formats = keys.format, values.format
        self._sinks = keys.sinks.origin, values.sinks.origin
        self._packs_values = bool(plan.value.kind)
        # Of one thread: another one's arrays cannot be waited for.
        self._layouts = _layouts(get_ident(), plan, queries.shape)
        exchange.reserve(self._layouts.floats)
        heads = queries.shape[0] * queries.shape[1] // plan.group
        self._fixed = _fixed(plan, keys, values, heads, scale, sink)
        self._note(keys, values)

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

    def _note(self, keys: Side, values: Side) -> None:
        """Take note of what the sides hold, but for tokens that come and find room."""
        self._key_revision, self._value_revision = keys.revision, values.revision
        fullest = values if self._packs_values else keys
        a, b, c, d = keys.packed, values.packed, keys.recent, values.recent
        self._tails = self.exchange.tails(
            self._layouts,
            fullest.sinks.length,
            fullest.packed.length,
            (a.room, b.room, c.room, d.room),
            (a.start, b.start, c.start, d.start),
        )

    def run(
        self,
        queries: mx.array,
        keys: Side,
        values: Side,
        scale: float,
        mask: mx.array | str | None,
        sink: mx.array | None,
    ) -> mx.array | None:
        """Attention, ``[batch, query_heads, rows, value_dim]`` in the queries' dtype; tokens that wait are
        written. ``None`` if these launches are not for it, or too little is stored.
        """
        if self._mask is not mask or self._sink is not sink or self._scale != scale:
            return None
        if self._key_revision is not keys.revision or self._value_revision is not values.revision:
            if not self.knows(keys, values):
                return None
            self._note(keys, values)
        key_tail, value_tail = keys.recent, values.recent
        layout = self._tails[(value_tail if self._packs_values else key_tail).length]
        if layout is None:
            return None
        exchange = self.exchange
        try:
            # In the order that `Plan.attend_text` names them in.
            output, *tails = layout.run(
                queries,
                exchange.before,
                layout.sizes,
                self._fixed,
                *keys.packed.arrays,
                *key_tail.parts,
                *values.packed.arrays,
                *value_tail.parts,
            )
        except UnlikeError:
            return None
        if layout.merge is None:
            exchange.before = output
        if tails:
            if value_tail.waits:
                value_tail.written(tails.pop())
            if key_tail.waits:
                key_tail.written(tails.pop())
        return output


class _Layouts:
    """How steps of one kind are split: layers that are alike share it, and ask for the same many times.

    Attributes:
        most: Splits of a long context: as many as a large device runs at once.
        floats: What an exchange has room for.

    Args:
        thread: Which one they are for.
        shape: The queries', ``[batch, query_heads, rows, key_dim]``.
    """

    def __init__(self, thread: int, plan: Plan, shape: tuple[int, ...]) -> None:
        self.plan = plan
        self._shape = shape
        self._batch, self._query_heads, self._rows, _ = shape
        self._heads = self._query_heads // plan.group
        self._blocks = self._batch * self._heads * ceil(plan.group * self._rows / plan.rows)
        self._found = self._blocks * plan.rows * (plan.value.dim + 2)
        self.most = max(2, min(MOST_SPLITS, SIMDS_WANTED // (plan.simds * self._blocks)))
        self.floats = MOST_BLOCKS + self.most * self._found if plan.merged else 0
        self._launches = lru_cache(maxsize=LAST)(self._make_launches)

    def make(
        self, exchanged: mx.array, sinks: int, packed: int, tail: int, rooms: Four, starts: Four
    ) -> Layout | None:
        """The splits of so many sinks, packed tokens and raw ones behind them; ``None`` if they are few."""
        plan = self.plan
        if not plan.has_enough(packed, tail, self._rows):
            return None
        wanted = self.most
        steps, raw_steps = -(-packed // plan.step), -(-(sinks + tail) // plan.raw_step)
        # Raw tokens take as many threadgroups as finish with the packed ones', out of those that run at once.
        raw_splits = min(MOST_RAW_SPLITS, max(1, wanted // 2), -(-raw_steps // max(1, steps // wanted)))
        packed_splits = min(steps, wanted - raw_splits)
        splits = packed_splits + raw_splits
        pairs = ((splits, raw_splits), (self._rows, self._query_heads), *zip(rooms, starts, strict=True))
        strides = (sinks, packed, tail, *(low | high << 32 for low, high in pairs))
        return Layout(
            mx.as_strided(exchanged, [1] * len(strides), strides), splits, *self._launches(splits, rooms)
        )

    def _make_launches(
        self, splits: int, rooms: Four
    ) -> tuple[Launch, Launch | None, Callable[..., list[mx.array]]]:
        plan = self.plan
        output = self._batch, self._query_heads, self._rows, plan.value.dim
        sides = zip((plan.key, plan.value), rooms[2:], strict=True)
        tails = [(self._batch, self._heads, room, side.dim) for side, room in sides if side.grows]
        attend: Launch = {
            "grid": (splits * plan.simds * SIMD, self._blocks, 1),
            "threadgroup": (plan.simds * SIMD, 1, 1),
            "output_shapes": [output if plan.merged else (splits * self._found,), *tails],
            "output_dtypes": [plan.queries if plan.merged else mx.float32, *[plan.storage] * len(tails)],
        }
        merge: Launch | None = None
        if not plan.merged:
            merge = {
                "grid": (self._blocks * plan.rows * MERGE_SIMDS * SIMD, 1, 1),
                "threadgroup": (MERGE_SIMDS * SIMD, 1, 1),
                "output_shapes": [output],
                "output_dtypes": [plan.queries],
            }
        return attend, merge, _compiled(plan, self._shape, attend, merge)


_layouts = lru_cache(maxsize=64)(_Layouts)


class _Tails(dict[int, Layout | None]):
    """Layouts by the tail's length: it is all that changes from one step to the next.

    Args:
        exchanged: An exchange's array.
        layouts: What they are made by, for so many sinks and packed tokens, with such rooms and starts.
    """

    def __init__(
        self, exchanged: mx.array, layouts: _Layouts, sinks: int, packed: int, rooms: Four, starts: Four
    ) -> None:
        super().__init__()
        self._exchanged, self._layouts = exchanged, layouts
        self._sinks, self._packed, self._rooms, self._starts = sinks, packed, rooms, starts

    def __missing__(self, tail: int) -> Layout | None:
        layout = self[tail] = self._layouts.make(
            self._exchanged, self._sinks, self._packed, tail, self._rooms, self._starts
        )
        return layout


class UnlikeError(Exception):
    """Queries or tokens are not what launches were put together for."""


def _compiled(
    plan: Plan, shape: tuple[int, ...], attend: Launch, merge: Launch | None
) -> Callable[..., list[mx.array]]:
    """The runs as a function of their arrays, queries of such a shape first. MLX puts them together once, not
    at each step, where it would take as long as all else; it comes back here for arrays of other shapes and
    dtypes only, so that nobody else need look at those.
    """

    def launch(
        queries: mx.array, before: mx.array, sizes: mx.array, fixed: mx.array, *stored: mx.array
    ) -> list[mx.array]:
        alike = queries.shape == shape and queries.dtype == plan.queries
        # The last is a part of the values' tail.
        if not alike or stored[-1].dtype != plan.storage:
            raise UnlikeError
        made = kernels()
        assert made is not None
        first = (queries, before) if merge is None else (queries,)
        output, *grown = run(made.compiled(plan.attend_text()), (*first, sizes, fixed, *stored), attend)
        if merge is not None:
            output = run(made.compiled(plan.merge_text()), (output, sizes, fixed), merge)[0]
        return [output, *grown]

    return mx.compile(launch)


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

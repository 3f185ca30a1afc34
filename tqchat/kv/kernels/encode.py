"""Encoding in one kernel: what ``TurboFormat.encode`` does in some hundred operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import mlx.core as mx

from tqchat.kv.codec.formats import Block, Format, TurboFormat
from tqchat.kv.codec.rounding import LEAF
from tqchat.kv.kernels.device import LARGEST_DIM, SIMD, Launch, blank, kernels, run
from tqchat.kv.kernels.source import Text
from tqchat.kv.scheme import words_per_vector


@dataclass(frozen=True)
class EncodePlan:
    """One compiled kernel: a format's shape, and the dtype of what it encodes."""

    dim: int
    bits: int
    is_key: bool
    rotation: int
    mean: bool
    balance: bool
    metric: bool
    dtype: mx.Dtype

    @property
    def levels(self) -> int:
        """How often coordinates are halved until they are rounded together."""
        return (
            (self.dim // LEAF).bit_length() - 1
            if self.metric and self.rotation == 1 and self.dim > LEAF
            else 0
        )

    @property
    def simds(self) -> int:
        """Vectors to a threadgroup: as its memory allows."""
        return 4 if self.dim <= 128 else 2

    @property
    def text(self) -> Text:
        constants = (
            ("DIM", self.dim),
            ("BITS", self.bits),
            ("KEY", int(self.is_key)),
            ("ROTATION", self.rotation),
            ("MEAN", int(self.mean)),
            ("BALANCE", int(self.balance)),
            ("METRIC", int(self.metric)),
            ("LEVELS", self.levels),
            ("WORDS", words_per_vector(self.dim, self.bits)),
            ("SIMDS", self.simds),
            ("S", self.dtype),
            ("G", mx.float16),
        )
        inputs = "x", "mean", "balance", "metric", "rotation"
        return Text("encode", inputs, ("words", "gains"), constants)


def encode_plan(form: TurboFormat, x: mx.array) -> EncodePlan | None:
    """The kernel for such vectors; ``None`` where there is none."""
    if form.rotation.head_dim > LARGEST_DIM:
        return None
    return EncodePlan(
        form.rotation.head_dim,
        form.bits,
        form.role == "key",
        1 if form.rotation.is_hadamard else 2,
        form.mean is not None,
        form.balance is not None,
        form.metric is not None,
        x.dtype,
    )


def encode_inputs(form: TurboFormat, x: mx.array) -> tuple[mx.array, ...]:
    """The arrays that ``EncodePlan.text`` names, to encode ``x`` with, as ``encode_launch`` has it."""
    parts = form.mean, form.balance, form.metric
    return x, *(blank(mx.float16) if part is None else part for part in parts), form.rotation.array


def encode_launch(plan: EncodePlan, shape: tuple[int, ...]) -> Launch:
    """The run over vectors ``[batch, heads, tokens, head_dim]``, a slice of storage for example."""
    batch, heads, tokens, _ = shape
    vectors = batch * heads * tokens
    threads = plan.simds * SIMD
    return {
        "grid": (-(-vectors // plan.simds) * threads, 1, 1),
        "threadgroup": (threads, 1, 1),
        "output_shapes": [
            (batch, heads, tokens, words_per_vector(plan.dim, plan.bits)),
            (batch, heads, tokens, 1),
        ],
        "output_dtypes": [mx.uint32, mx.float16],
    }


@lru_cache(maxsize=16)
def _compiled(plan: EncodePlan, shape: tuple[int, ...]) -> Callable[..., list[mx.array]]:
    """That run as a function of its arrays, which MLX puts together once for all layers that are alike."""

    def launch(*inputs: mx.array) -> list[mx.array]:
        made = kernels()
        assert made is not None
        return run(made.compiled(plan.text), inputs, encode_launch(plan, shape))

    return mx.compile(launch)


def encode(form: Format, x: mx.array) -> Block:
    """``form.encode(x)``, in one kernel where there is one."""
    made = kernels()
    if made is None or not isinstance(form, TurboFormat):
        return form.encode(x)
    plan = encode_plan(form, x)
    if plan is None or plan in made.refused:
        return form.encode(x)

    def found() -> Block:
        return tuple(_compiled(plan, x.shape)(*encode_inputs(form, x)))

    if plan in made.trusted:
        return found()
    return made.first_use(plan, lambda: form.encode(x), found, lambda a, b: _error(form, x, a, b))


def _error(form: TurboFormat, x: mx.array, reference: Block, found: Block) -> str | None:
    """Ties may be rounded otherwise, and change what follows them: the vectors must be as close as before."""
    missed: list[Any] = []
    for block in (reference, found):
        gap = (form.decode(block) - x).square().sum(axis=-1)
        missed.append(mx.where(mx.isfinite(gap), gap, 0).sum().item())
    same = mx.array_equal(mx.isnan(reference[1]), mx.isnan(found[1])).item()
    if not same or missed[1] > 1.01 * missed[0] + 1e-6:
        return f"its vectors are off by {missed[1]:.3g}, not {missed[0]:.3g}"
    return None

"""Encoding in one kernel: equivalent to ``TurboFormat.encode``, which takes about a hundred operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import mlx.core as mx

from tqchat.kv.codec.base import Block, Format
from tqchat.kv.codec.quantiser import ScalarQuantiser
from tqchat.kv.codec.rounding import LEAF_SIZE
from tqchat.kv.codec.trellis import TrellisQuantiser, kernel_table
from tqchat.kv.codec.turbo import TurboFormat
from tqchat.kv.kernels.device import (
    MAX_HEAD_DIM,
    SIMD_WIDTH,
    VERIFIED_TOKENS,
    Launch,
    kernels,
    run,
    unused_input,
)
from tqchat.kv.kernels.source import KernelSpec
from tqchat.kv.scheme import CENTRES, FormatSpec
from tqchat.kv.storage.threads import thread_key

WARM_UP_PAIRS = 8
"""Pairs before and after the ends of a vector from which the kernel estimates the first state of its path."""

MAX_ERROR_RATIO = 1.03
"""Squared errors of the kernel relative to those of plain operations, which search paths another way."""


@dataclass(frozen=True)
class EncodePlan:
    """Compile-time parameters of the encoding kernel.

    Attributes:
        trellis: Whether the codes are those of a trellis.
        dtype: Of the vectors to encode.
        rotation: 1 Hadamard with signs, 2 dense matrix.
        centres: Number of centres, 0 if the format is not fitted.
        balance: Whether vectors are balanced; likewise ``metric``.
    """

    dim: int
    bits: int
    trellis: bool
    is_key: bool
    rotation: int
    centres: int
    balance: bool
    metric: bool
    dtype: mx.Dtype

    @property
    def shaped(self) -> bool:
        """Whether coordinates are rounded by the metric (see ``quantise_shaped``), in halves down to
        ``LEAF_SIZE``.
        """
        return self.metric and not self.trellis and self.rotation == 1 and self.dim > LEAF_SIZE

    @property
    def words(self) -> int:
        """32-bit words of codes per vector."""
        return FormatSpec("trellis" if self.trellis else "turbo", self.bits).words_per_vector(self.dim)

    @property
    def simds(self) -> int:
        """Vectors per threadgroup, limited by threadgroup memory."""
        return 4 if self.dim <= 128 else 2

    @property
    def spec(self) -> KernelSpec:
        """The kernel's source specification."""
        constants = (
            ("DIM", self.dim),
            ("BITS", self.bits),
            ("KEY", int(self.is_key)),
            ("ROTATION", self.rotation),
            ("CENTRES", self.centres),
            ("BALANCE", int(self.balance)),
            ("METRIC", int(self.metric)),
            ("SHAPED", int(self.shaped)),
            ("WORDS", self.words),
            ("WARM_UP", WARM_UP_PAIRS),
            ("SIMDS", self.simds),
            ("S", self.dtype),
            ("G", mx.float16),
        )
        inputs = "x", "centres", "centre_scales", "balance", "metric", "rotation"
        if self.trellis:
            return KernelSpec("encode_trellis", (*inputs, "table"), ("words", "gains"), constants)
        return KernelSpec("encode_scalar", inputs, ("words", "gains"), constants)


def encode_plan(format_: TurboFormat, x: mx.array) -> EncodePlan | None:
    """The kernel for vectors like ``x``; ``None`` where none applies."""
    trellis = isinstance(format_.quantiser, TrellisQuantiser)
    if format_.rotation.head_dim > MAX_HEAD_DIM or not (
        trellis or isinstance(format_.quantiser, ScalarQuantiser)
    ):
        return None
    return EncodePlan(
        format_.rotation.head_dim,
        format_.quantiser.bits,
        trellis,
        format_.role == "key",
        1 if format_.rotation.is_hadamard else 2,
        0 if format_.centres is None else CENTRES,
        format_.balance is not None,
        format_.metric is not None,
        x.dtype,
    )


def encode_inputs(format_: TurboFormat, x: mx.array) -> tuple[mx.array, ...]:
    """Input arrays of the encoding kernel for vectors ``x`` ``[batch, heads, tokens, head_dim]``."""
    fitted = format_.fitted
    names = {
        "centres": mx.int8,
        "centre_scales": mx.float16,
        "balance": mx.float16,
        "metric": mx.float16,
    }
    quantiser = format_.quantiser
    return (
        x,
        *(fitted[name] if name in fitted else unused_input(dtype) for name, dtype in names.items()),
        format_.rotation.array,
        *([kernel_table(quantiser.bits).view(mx.uint32)] if isinstance(quantiser, TrellisQuantiser) else []),
    )


def encode_launch(plan: EncodePlan, shape: tuple[int, ...]) -> Launch:
    """Launch parameters for vectors of this shape, ``[batch, heads, tokens, head_dim]``, with any strides."""
    batch, heads, tokens, _ = shape
    vectors = batch * heads * tokens
    threads = plan.simds * SIMD_WIDTH
    return {
        "grid": (-(-vectors // plan.simds) * threads, 1, 1),
        "threadgroup": (threads, 1, 1),
        "output_shapes": [
            (batch, heads, tokens, plan.words),
            (batch, heads, tokens, 1),
        ],
        "output_dtypes": [mx.uint32, mx.float16],
    }


@lru_cache(maxsize=32)
def _compiled(thread: object, plan: EncodePlan, shape: tuple[int, ...]) -> Callable[..., list[mx.array]]:
    """The launch as a compiled function of its arrays; MLX traces it once per thread, plan and shape."""

    def launch(*inputs: mx.array) -> list[mx.array]:
        device_kernels = kernels()
        assert device_kernels is not None
        return run(device_kernels.compiled(plan.spec), inputs, encode_launch(plan, shape))

    return mx.compile(launch)


def encode(format_: Format, x: mx.array) -> Block:
    """``format_.encode(x)``, in one kernel where available."""
    device_kernels = kernels()
    if device_kernels is None or not isinstance(format_, TurboFormat):
        return format_.encode(x)
    plan = encode_plan(format_, x)
    if plan is None or plan in device_kernels.refused:
        return format_.encode(x)

    def candidate(x: mx.array) -> Block:
        return tuple(_compiled(thread_key(), plan, x.shape)(*encode_inputs(format_, x)))

    if plan not in device_kernels.trusted:
        first = x[:, :, :VERIFIED_TOKENS]
        device_kernels.verify_first_use(
            plan,
            lambda: format_.encode(first),
            lambda: candidate(first),
            lambda a, b: _error(format_, first, a, b),
        )
    return candidate(x) if plan in device_kernels.trusted else format_.encode(x)


def _error(format_: TurboFormat, x: mx.array, reference: Block, candidate: Block) -> str | None:
    """Compare reconstruction errors: codes may differ at ties and in later coordinates."""
    squared_errors: list[Any] = []
    for block in (reference, candidate):
        error = (format_.decode(block) - x).square().sum(axis=-1)
        squared_errors.append(mx.where(mx.isfinite(error), error, 0).sum().item())
    same = mx.array_equal(mx.isnan(reference[1]), mx.isnan(candidate[1])).item()
    if not same or squared_errors[1] > MAX_ERROR_RATIO * squared_errors[0] + 1e-6:
        return f"its vectors are off by {squared_errors[1]:.3g}, not {squared_errors[0]:.3g}"
    return None

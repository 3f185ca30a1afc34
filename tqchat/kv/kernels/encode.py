"""Encoding in one kernel: equivalent to ``TurboFormat.encode``, which takes about a hundred operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
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
    Kernels,
    Launch,
    kernels,
    run,
    unused_input,
)
from tqchat.kv.kernels.source import Constants, EncodeKernel, KernelSpec
from tqchat.kv.kernels.trellis_search import GROUP, STEPS, branch_fragments, limit
from tqchat.kv.scheme import CENTRES, FormatSpec
from tqchat.kv.storage.threads import thread_key

WARM_UP_PAIRS = 8
"""Pairs before and after the ends of a vector from which the kernel estimates the first state of its path."""

MIN_GROUPS = 16
"""Groups of vectors from which the tensor-core kernel is used: each is one simd group's work. Below about
this number, launching takes as long as either kernel.
"""

RESIDENT_SIMDS = 16
"""Simd groups of the tensor-core kernel that the threadgroup memory of a CUDA multiprocessor holds, at 128
dimensions.
"""

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
        tensor_cores: Whether a simd group searches the paths of ``GROUP`` vectors at a time, on tensor cores.
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
    tensor_cores: bool = False

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
        """Simd groups per threadgroup, limited by threadgroup memory."""
        if self.tensor_cores:
            return 2 if self.dim <= 128 else 1
        return 4 if self.dim <= 128 else 2

    @property
    def kernel(self) -> EncodeKernel:
        """The kernel's name."""
        if self.tensor_cores:
            return "encode_tensor"
        return "encode_trellis" if self.trellis else "encode_scalar"

    def constants(self, simds: int) -> Constants:
        """Compile-time constants of the kernel with so many simd groups per threadgroup."""
        constants: Constants = (
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
            ("SIMDS", simds),
            ("S", self.dtype),
            ("G", mx.float16),
        )
        if self.tensor_cores:
            constants += ("SEARCH_STEPS", STEPS[self.bits]), ("SEARCH_LIMIT", limit(self.bits))
        return constants

    @property
    def fixed_names(self) -> tuple[str, ...]:
        """Names of the inputs that are the same for all vectors of a format."""
        names: tuple[str, ...] = *_FITTED, "rotation"
        if self.trellis:
            names += ("table",)
        return (*names, "fragments") if self.tensor_cores else names

    @property
    def spec(self) -> KernelSpec:
        """The kernel's source specification."""
        threads = self.simds * SIMD_WIDTH if self.tensor_cores else 0
        constants = self.constants(self.simds)
        resident = RESIDENT_SIMDS * SIMD_WIDTH
        inputs = "x", *self.fixed_names
        return KernelSpec(self.kernel, inputs, ("words", "gains"), constants, (), threads, resident)

    def simds_for(self, heads: int, tokens: int) -> int:
        """Simd groups that encode so many tokens of so many heads."""
        return heads * (-(-tokens // GROUP) if self.tensor_cores else tokens)


def encode_plan(format_: TurboFormat, x: mx.array, tensor_cores: bool = False) -> EncodePlan | None:
    """The kernel for vectors like ``x``; ``None`` where none applies.

    Args:
        tensor_cores: Whether the device has tensor cores. They are used for trellis codes of enough vectors.
    """
    return plan_for(format_, x.shape, x.dtype, tensor_cores)


def plan_for(
    format_: TurboFormat, shape: tuple[int, ...], dtype: mx.Dtype, tensor_cores: bool
) -> EncodePlan | None:
    """``encode_plan`` of vectors of this shape and dtype."""
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
        dtype,
        tensor_cores and trellis and shape[0] * shape[1] * (shape[2] // GROUP) >= MIN_GROUPS,
    )


def encode_inputs(plan: EncodePlan, format_: TurboFormat, x: mx.array) -> tuple[mx.array, ...]:
    """Input arrays of the encoding kernel for vectors ``x`` ``[batch, heads, tokens, head_dim]``."""
    fixed = fixed_inputs(plan, format_)
    return (x, *(fixed[name] if name in fixed else unused_input(_FITTED[name]) for name in plan.fixed_names))


def fixed_inputs(plan: EncodePlan, format_: TurboFormat) -> dict[str, mx.array]:
    """Those of ``EncodePlan.fixed_names`` that the format has, by name."""
    inputs = {name: format_.fitted[name] for name in _FITTED if name in format_.fitted}
    inputs["rotation"] = format_.rotation.array
    if plan.trellis:
        inputs["table"] = _table(plan.bits)
    if plan.tensor_cores:
        inputs["fragments"] = branch_fragments(plan.bits)
    return inputs


_FITTED = {
    "centres": mx.int8,
    "centre_scales": mx.float16,
    "balance": mx.float16,
    "metric": mx.float16,
}
"""Arrays that a format may be fitted with, and their dtypes."""


@lru_cache(maxsize=3)
def _table(bits: int) -> mx.array:
    table = kernel_table(bits).view(mx.uint32)
    mx.eval(table)
    return table


def encode_launch(plan: EncodePlan, shape: tuple[int, ...]) -> Launch:
    """Launch parameters for vectors of this shape, ``[batch, heads, tokens, head_dim]``, with any strides."""
    batch, heads, tokens, _ = shape
    simds = plan.simds_for(batch * heads, tokens)
    threads = plan.simds * SIMD_WIDTH
    return {
        "grid": (-(-simds // plan.simds) * threads, 1, 1),
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
    launch = _launch(format_, x)
    return format_.encode(x) if launch is None else tuple(launch(x))


def _launch(format_: Format, x: mx.array) -> Callable[..., list[mx.array]] | None:
    """The launch for vectors like ``x``, kept with the format; ``None`` where no kernel may be used.

    The first use of each kernel is verified now.
    """
    device_kernels = kernels()
    if device_kernels is None or not isinstance(format_, TurboFormat):
        return None
    key = thread_key(), x.shape, x.dtype
    launch: Callable[..., list[mx.array]] | None = format_.launches.get(key)
    if launch is None:
        plan = encode_plan(format_, x, device_kernels.tensor_cores)
        if plan is not None and plan.tensor_cores and not _is_trusted(device_kernels, plan, format_, x):
            plan = replace(plan, tensor_cores=False)
        if plan is not None and _is_trusted(device_kernels, plan, format_, x):
            launch = _launch_of(plan, format_, x)
            format_.keep_launch(key, launch)
    return launch


def _launch_of(plan: EncodePlan, format_: TurboFormat, x: mx.array) -> Callable[..., list[mx.array]]:
    """The launch of a plan as a function of vectors like ``x``."""
    compiled = _compiled(thread_key(), plan, x.shape)
    _, *fixed = encode_inputs(plan, format_, x)
    return lambda x: compiled(x, *fixed)


def _is_trusted(device_kernels: Kernels, plan: EncodePlan, format_: TurboFormat, x: mx.array) -> bool:
    """Whether the kernel may be used; on first use it is compared with plain operations."""
    if plan not in device_kernels.trusted and plan not in device_kernels.refused:
        first = x[:, :, :VERIFIED_TOKENS]
        device_kernels.verify_first_use(
            plan,
            lambda: [first, *format_.shared.values(), *format_.fitted.values()],
            lambda: format_.encode(first),
            lambda: tuple(_launch_of(plan, format_, first)(first)),
            lambda a, b: encoding_error(format_, first, a, b),
        )
    return plan in device_kernels.trusted


def encoding_error(format_: TurboFormat, x: mx.array, reference: Block, candidate: Block) -> str | None:
    """Compare reconstruction errors: codes may differ at ties and in later coordinates."""
    squared_errors: list[Any] = []
    for block in (reference, candidate):
        error = (format_.decode(block) - x).square().sum(axis=-1)
        squared_errors.append(mx.where(mx.isfinite(error), error, 0).sum().item())
    same = mx.array_equal(mx.isnan(reference[1]), mx.isnan(candidate[1])).item()
    if not same or squared_errors[1] > MAX_ERROR_RATIO * squared_errors[0] + 1e-6:
        return f"its vectors are off by {squared_errors[1]:.3g}, not {squared_errors[0]:.3g}"
    return None

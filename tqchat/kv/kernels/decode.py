"""Decoding a whole side in one kernel: equivalent to ``Side.fetch``, which takes some dozens of operations.

For prefill on a GPU, which attends to the decoded history with MLX's fused attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import mlx.core as mx

from tqchat.kv.codec.affine import AffineFormat
from tqchat.kv.codec.base import Block, Format
from tqchat.kv.codec.codebook import centroids
from tqchat.kv.codec.trellis import kernel_table
from tqchat.kv.codec.turbo import TurboFormat
from tqchat.kv.kernels.device import (
    MAX_HEAD_DIM,
    MIN_INPUT_SIZE,
    SIMD_WIDTH,
    TOLERANCE,
    VERIFIED_TOKENS,
    Kernels,
    Launch,
    kernels,
    relative_error,
    run,
    unused_input,
)
from tqchat.kv.kernels.source import QUANTISER_KINDS, Kernel, KernelSpec, Kind
from tqchat.kv.scheme import CENTRES, FINE_BITS
from tqchat.kv.storage.threads import thread_key

SIMDS = 8
"""Simd groups of a threadgroup, which share a copy of the codebook."""

VECTORS_PER_SIMD = 8
"""Tokens that a simd group decodes, one after another."""


@dataclass(frozen=True)
class DecodePlan:
    """Compile-time parameters of the decoding kernel.

    Attributes:
        kind: 1 codebook, 2 affine groups, 3 trellis.
        group: Values per affine scale; 0 without.
        scale: Dtype of the affine scales.
        rotation: 0 none, 1 Hadamard with signs, 2 dense matrix.
        fitted: Names of the fitted arrays that decoding needs.
        sinks: Whether there are sinks; likewise ``tail``.
        storage: Dtype of sinks and tail.
        dtype: Of the decoded vectors.
    """

    dim: int
    bits: int
    kind: Kind
    group: int
    scale: mx.Dtype
    rotation: int
    fitted: tuple[str, ...]
    sinks: bool
    tail: bool
    storage: mx.Dtype
    dtype: mx.Dtype

    @property
    def spec(self) -> KernelSpec:
        """The kernel's source specification."""
        constants = (
            ("DIM", self.dim),
            ("BITS", self.bits),
            ("KIND", self.kind),
            ("GROUP", self.group),
            ("ROTATION", self.rotation),
            ("CENTRES", CENTRES if "centres" in self.fitted else 0),
            ("BALANCE", int("balance" in self.fitted)),
            ("MEAN", int("mean" in self.fitted)),
            ("SINKS", int(self.sinks)),
            ("TAIL", int(self.tail)),
            ("SIMDS", SIMDS),
            ("VECTORS", VECTORS_PER_SIMD),
            ("S", self.storage),
            ("O", self.dtype),
            ("A", self.scale),
        )
        packed = ("codes", "scales", "biases") if self.kind == 2 else ("codes", "gains")
        more = () if self.kind == 2 else ("rotation", "levels")
        inputs = "sinks_of", *packed, "tail_of", *_FITTED[self.kind], *more
        return KernelSpec(self._kernel, inputs, ("decoded",), constants)

    @property
    def _kernel(self) -> Kernel:
        if self.kind == 2:
            return "decode_affine"
        # Lanes hold equal shares of a vector where its transform takes whole simd groups.
        shares = self.rotation == 1 and self.dim % SIMD_WIDTH == 0
        return "decode_shares" if shares else "decode_values"


_FITTED: dict[Kind, dict[str, mx.Dtype]] = {
    1: {"centres": mx.int8, "centre_scales": mx.float16, "balance": mx.float16},
    2: {"mean": mx.float16, "balance": mx.float16},
}
_FITTED[3] = _FITTED[1]


def decode_plan(
    format_: Format, sinks: Block, packed: Block, tail: Block, dtype: mx.Dtype
) -> DecodePlan | None:
    """The kernel for a side; ``None`` where none applies.

    Args:
        sinks: Raw vectors before the packed ones, ``[batch, heads, tokens, head_dim]`` or none.
        tail: Raw vectors behind them.
        dtype: To decode to.
    """
    raw = (*sinks, *tail)
    storage = raw[0].dtype if raw else dtype
    fitted = format_.fitted
    if any(array.dtype != storage for array in raw):
        return None
    if any(
        array.size < MIN_INPUT_SIZE for array in (*raw, *packed)
    ):  # a trim has left a few tokens of one head
        return None
    kind: Kind
    if isinstance(format_, AffineFormat):
        dim, bits, kind, rotation = format_.head_dim, format_.spec.bits, 2, 0
        group, scale = format_.spec.group_size(dim), packed[1].dtype
    elif isinstance(format_, TurboFormat) and type(format_.quantiser) in QUANTISER_KINDS:
        dim, bits, kind = (
            format_.rotation.head_dim,
            format_.quantiser.bits,
            QUANTISER_KINDS[type(format_.quantiser)],
        )
        rotation = 1 if format_.rotation.is_hadamard else 2
        group, scale = 0, mx.float16
    else:
        return None
    if dim > MAX_HEAD_DIM:
        return None
    names = tuple(name for name in _FITTED[kind] if name in fitted)
    return DecodePlan(dim, bits, kind, group, scale, rotation, names, bool(sinks), bool(tail), storage, dtype)


def decode_inputs(
    plan: DecodePlan, format_: Format, sinks: Block, packed: Block, tail: Block
) -> tuple[mx.array, ...]:
    """Input arrays of the decoding kernel: slices of storage, whose last axis is contiguous."""
    fitted = format_.fitted
    none = (unused_input(plan.storage),)
    inputs = [*(sinks or none), *packed, *(tail or none)]
    inputs += [
        fitted[name] if name in plan.fitted else unused_input(dtype)
        for name, dtype in _FITTED[plan.kind].items()
    ]
    if isinstance(format_, TurboFormat):
        levels = kernel_table(plan.bits) if plan.kind == 3 else _levels(plan.bits)
        inputs += [format_.rotation.array, levels.view(mx.uint32)]
    return tuple(inputs)


@lru_cache(maxsize=1)
def fine_levels() -> mx.array:
    """Bits of the centroids of fine tokens, uint32."""
    levels = _levels(FINE_BITS).view(mx.uint32)
    mx.eval(levels)
    return levels


@lru_cache(maxsize=8)
def _levels(bits: int) -> mx.array:
    """Centroids, float32, at least ``MIN_INPUT_SIZE`` of them."""
    levels = mx.array(centroids(bits), dtype=mx.float32)
    levels = mx.pad(levels, (0, max(0, MIN_INPUT_SIZE - levels.size)))
    mx.eval(levels)
    return levels


def decode_launch(plan: DecodePlan, shape: tuple[int, int, int]) -> Launch:
    """Launch parameters for so many decoded vectors, ``[batch, heads, tokens]``."""
    batch, heads, tokens = shape
    groups = -(-tokens // (SIMDS * VECTORS_PER_SIMD))
    threads = SIMDS * SIMD_WIDTH
    return {
        "grid": (groups * threads, batch * heads, 1),
        "threadgroup": (threads, 1, 1),
        "output_shapes": [(batch, heads, tokens, plan.dim)],
        "output_dtypes": [plan.dtype],
    }


@lru_cache(maxsize=32)
def _compiled(
    thread: object, plan: DecodePlan, packed: tuple[int, int, int], raw: tuple[int, ...]
) -> Callable[..., mx.array]:
    """The launch as a compiled function of its arrays; MLX traces it once per thread, plan and lengths.

    Args:
        packed: Batch size, heads and packed tokens.
        raw: Numbers of sinks and of tokens in the tail.
    """
    batch, heads, tokens = packed

    def launch(*inputs: mx.array) -> mx.array:
        device_kernels = kernels()
        assert device_kernels is not None
        shape = batch, heads, tokens + sum(raw)
        return run(device_kernels.compiled(plan.spec), inputs, decode_launch(plan, shape))[0]

    return mx.compile(launch)


def decode(format_: Format, sinks: Block, packed: Block, tail: Block, dtype: mx.Dtype) -> mx.array | None:
    """Sinks, packed vectors and tail in one array ``[batch, heads, tokens, head_dim]``, not evaluated.

    Returns:
        ``None`` where no kernel applies.
    """
    device_kernels = kernels()
    if device_kernels is None:
        return None
    shapes = tuple((array.shape, array.dtype) for array in (*sinks, *packed, *tail))
    key = thread_key(), shapes, len(sinks), dtype
    launch: Callable[..., mx.array] | None = None
    if isinstance(format_, TurboFormat):
        launch = format_.launches.get(key)
    if launch is None:
        plan = decode_plan(format_, sinks, packed, tail, dtype)
        if plan is None or not _is_trusted(device_kernels, plan, format_, sinks, packed, tail, dtype):
            return None
        launch = _launch_of(plan, format_, sinks, packed, tail)
        if isinstance(format_, TurboFormat):
            format_.keep_launch(key, launch)
    return launch(sinks, packed, tail)


def _launch_of(
    plan: DecodePlan, format_: Format, sinks: Block, packed: Block, tail: Block
) -> Callable[..., mx.array]:
    """The launch of a plan as a function of arrays like these."""
    batch, heads, count, _ = packed[0].shape
    raw = tuple(block[0].shape[2] if block else 0 for block in (sinks, tail))
    compiled = _compiled(thread_key(), plan, (batch, heads, count), raw)
    none = (unused_input(plan.storage),)
    fixed = decode_inputs(plan, format_, sinks, packed, tail)[2 + len(packed) :]
    return lambda sinks, packed, tail: compiled(*(sinks or none), *packed, *(tail or none), *fixed)


def _is_trusted(
    device_kernels: Kernels,
    plan: DecodePlan,
    format_: Format,
    sinks: Block,
    packed: Block,
    tail: Block,
    dtype: mx.Dtype,
) -> bool:
    """Whether the kernel may be used; on first use it is compared with plain operations."""
    if plan not in device_kernels.trusted and plan not in device_kernels.refused:
        first = tuple(array[:, :, :VERIFIED_TOKENS] for array in packed)

        def reference() -> mx.array:
            parts = [*sinks, format_.decode(first), *tail]
            return mx.concatenate([part.astype(dtype) for part in parts], axis=2)

        def inputs() -> list[mx.array]:
            return [*sinks, *first, *tail, *format_.shared.values(), *format_.fitted.values()]

        def candidate() -> mx.array:
            return _launch_of(plan, format_, sinks, first, tail)(sinks, first, tail)

        device_kernels.verify_first_use(plan, inputs, reference, candidate, _error)
    return plan in device_kernels.trusted


def _error(reference: mx.array, candidate: mx.array) -> str | None:
    error = relative_error(reference, candidate)
    return None if error <= TOLERANCE else f"its vectors are off by {error:.2g}"

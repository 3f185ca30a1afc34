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
    MIN_INPUT_SIZE,
    SIMD_WIDTH,
    VERIFIED_TOKENS,
    Kernels,
    Launch,
    kernels,
    run,
    unused_input,
)
from tqchat.kv.kernels.source import IN_PLACE_INPUTS, Constants, Kernel, KernelSpec
from tqchat.kv.kernels.trellis_search import GROUP, STEPS, branch_fragments, limit
from tqchat.kv.kernels.workspace import DONE, ThreadWorkspace
from tqchat.kv.scheme import CENTRES, FormatSpec
from tqchat.kv.storage.threads import thread_key
from tqchat.kv.storage.token_store import TokenStore

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
        in_place: Whether it writes into slices of a store, which are inputs.
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
    in_place: bool = False

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
    def spec(self) -> KernelSpec:
        """The kernel's source specification."""
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
            ("SIMDS", self.simds),
            ("S", self.dtype),
            ("G", mx.float16),
        )
        kernel: Kernel = "encode_trellis" if self.trellis else "encode_scalar"
        inputs: tuple[str, ...] = "x", "centres", "centre_scales", "balance", "metric", "rotation"
        if self.trellis:
            inputs += ("table",)
        threads = 0
        if self.tensor_cores:
            kernel = "encode_tensor"
            constants += ("SEARCH_STEPS", STEPS[self.bits]), ("SEARCH_LIMIT", limit(self.bits))
            inputs += ("fragments",)
            threads = self.simds * SIMD_WIDTH
        outputs: tuple[str, ...] = "words", "gains"
        if self.in_place:
            inputs += IN_PLACE_INPUTS
            outputs = ("done",)
        return KernelSpec(kernel, inputs, outputs, constants, (), threads, RESIDENT_SIMDS * SIMD_WIDTH)


def encode_plan(format_: TurboFormat, x: mx.array, tensor_cores: bool = False) -> EncodePlan | None:
    """The kernel for vectors like ``x``; ``None`` where none applies.

    Args:
        tensor_cores: Whether the device has tensor cores. They are used for trellis codes of enough vectors.
    """
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
        tensor_cores and trellis and x.shape[0] * x.shape[1] * (x.shape[2] // GROUP) >= MIN_GROUPS,
    )


def encode_inputs(plan: EncodePlan, format_: TurboFormat, x: mx.array) -> tuple[mx.array, ...]:
    """Input arrays of the encoding kernel for vectors ``x`` ``[batch, heads, tokens, head_dim]``."""
    fitted = format_.fitted
    names = {
        "centres": mx.int8,
        "centre_scales": mx.float16,
        "balance": mx.float16,
        "metric": mx.float16,
    }
    tables = [kernel_table(plan.bits).view(mx.uint32)] if plan.trellis else []
    if plan.tensor_cores:
        tables.append(branch_fragments(plan.bits))
    return (
        x,
        *(fitted[name] if name in fitted else unused_input(dtype) for name, dtype in names.items()),
        format_.rotation.array,
        *tables,
    )


def encode_launch(plan: EncodePlan, shape: tuple[int, ...]) -> Launch:
    """Launch parameters for vectors of this shape, ``[batch, heads, tokens, head_dim]``, with any strides."""
    batch, heads, tokens, _ = shape
    simds = batch * heads * (-(-tokens // GROUP) if plan.tensor_cores else tokens)
    threads = plan.simds * SIMD_WIDTH
    launch: Launch = {
        "grid": (-(-simds // plan.simds) * threads, 1, 1),
        "threadgroup": (threads, 1, 1),
        "output_shapes": [
            (batch, heads, tokens, plan.words),
            (batch, heads, tokens, 1),
        ],
        "output_dtypes": [mx.uint32, mx.float16],
    }
    if plan.in_place:
        launch |= {"output_shapes": DONE["output_shapes"], "output_dtypes": DONE["output_dtypes"]}
    return launch


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


def encode_in_place(
    format_: Format, x: mx.array, store: TokenStore, workspace: ThreadWorkspace, after: mx.array
) -> mx.array | None:
    """Append ``format_.encode(x)`` to a store, in its memory.

    Args:
        after: An output of the workspace's launches, after which this one runs.

    Returns:
        The launch's output; ``None`` if it cannot be done, and nothing was.
    """
    batch, heads, tokens, _ = x.shape
    if batch * heads * tokens < MIN_INPUT_SIZE:
        return None
    launch = _launch(format_, x, after)
    slots = None if launch is None else store.free_slots(tokens, workspace)
    if launch is None or slots is None:
        return None
    (done,) = launch(x, *slots, after)
    store.add_written(tokens, done, workspace)
    return done


def _launch(
    format_: Format, x: mx.array, after: mx.array | None = None
) -> Callable[..., list[mx.array]] | None:
    """The launch for vectors like ``x``, kept with the format; ``None`` where no kernel may be used.

    The first use of each kernel is verified now.

    Args:
        after: For a launch in place, what it runs after.
    """
    device_kernels = kernels()
    if device_kernels is None or not isinstance(format_, TurboFormat):
        return None
    in_place = after is not None
    key = thread_key(), x.shape, x.dtype, in_place
    launch: Callable[..., list[mx.array]] | None = format_.launches.get(key)
    if launch is None:
        if after is not None:
            mx.eval(after)  # it may write ``x``, which the verification reads
        plan = encode_plan(format_, x, device_kernels.tensor_cores)
        plan = None if plan is None else replace(plan, in_place=in_place)
        if plan is not None and plan.tensor_cores and not _is_trusted(device_kernels, plan, format_, x):
            plan = replace(plan, tensor_cores=False)
        if plan is not None and _is_trusted(device_kernels, plan, format_, x):
            launch = _launch_of(plan, format_, x)
            format_.keep_launch(key, launch)
    return launch


def _launch_of(plan: EncodePlan, format_: TurboFormat, x: mx.array) -> Callable[..., list[mx.array]]:
    """The launch of a plan as a function of vectors like ``x`` and of the arrays of ``IN_PLACE_INPUTS``."""
    compiled = _compiled(thread_key(), plan, x.shape)
    _, *fixed = encode_inputs(plan, format_, x)
    return lambda x, *more: compiled(x, *fixed, *more)


def _candidate(plan: EncodePlan, format_: TurboFormat, x: mx.array) -> Block:
    """The vectors as the kernel encodes them, in place in arrays of their own if that is the plan."""
    launch = _launch_of(plan, format_, x)
    if not plan.in_place:
        return tuple(launch(x))
    batch, heads, tokens, _ = x.shape
    # Three tokens of room around them.
    room = [
        mx.zeros((batch, heads, tokens + 6, width), dtype)
        for width, dtype in ((plan.words, mx.uint32), (1, mx.float16))
    ]
    mx.eval(room)
    slots = tuple(array[:, :, 3 : 3 + tokens] for array in room)
    mx.eval(launch(x, *slots, unused_input(mx.float32)))
    return slots


def _is_trusted(device_kernels: Kernels, plan: EncodePlan, format_: TurboFormat, x: mx.array) -> bool:
    """Whether the kernel may be used; on first use it is compared with plain operations."""
    if plan not in device_kernels.trusted and plan not in device_kernels.refused:
        first = x[:, :, :VERIFIED_TOKENS]
        device_kernels.verify_first_use(
            plan,
            lambda: [first, *format_.shared.values(), *format_.fitted.values()],
            lambda: format_.encode(first),
            lambda: _candidate(plan, format_, first),
            lambda a, b: _error(format_, first, a, b),
        )
    return plan in device_kernels.trusted


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

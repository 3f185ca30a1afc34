"""The kernels of this device: compiled on first use, verified against plain operations."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypedDict, TypeVar

import mlx.core as mx

from tqchat.kv.kernels import source
from tqchat.kv.kernels.cuda_cache import generated_text, keep_compiled

SIMD_WIDTH = 32
VERIFIED_TOKENS = 256
"""Tokens that the first use of an encoding or decoding kernel is checked with."""
MAX_HEAD_DIM = 256
"""Largest head dimension that kernels support."""
MIN_INPUT_SIZE = 8
"""Fewest elements of a kernel input: Metal passes smaller ones in another address space."""
TOLERANCE = 1e-2
"""Largest error relative to the largest value; products with codes are computed in float16."""

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


class Launch(TypedDict):
    """Launch parameters of a kernel, by MLX's names; the grid is in threads."""

    grid: tuple[int, int, int]
    threadgroup: tuple[int, int, int]
    output_shapes: list[tuple[int, ...]]
    output_dtypes: list[mx.Dtype]


@dataclass
class Kernels:
    """Compiled kernels, and which plans may use them.

    Attributes:
        tensor_cores: Whether the device has CUDA tensor cores (Ampere and later).
        shared_memory: Bytes of threadgroup memory that a launch can reserve.
        trusted: Plans whose first result agreed with plain operations.
        refused: Plans that fall back to plain operations, with the reason.
    """

    language: source.Language
    tensor_cores: bool = False
    shared_memory: int = 0
    trusted: set[Hashable] = field(default_factory=set)
    refused: dict[Hashable, str] = field(default_factory=dict)
    _compiled: dict[source.KernelSpec, Any] = field(default_factory=dict)

    def compiled(self, spec: source.KernelSpec) -> Any:
        """The compiled kernel; cached."""
        if spec not in self._compiled:
            self._compiled[spec] = self._compile(spec)
        return self._compiled[spec]

    def verify_first_use(
        self,
        plan: Hashable,
        inputs: Callable[[], Iterable[mx.array]],
        reference: Callable[[], Result],
        candidate: Callable[[], Result],
        error: Callable[[Result, Result], str | None],
    ) -> Result:
        """Run a plan for the first time and compare it with plain operations.

        If the results agree, the plan is trusted from now on; otherwise it is refused for good and the plain
        result is returned. Instead of CUDA the CPU computes it: there MLX would compile a kernel for each
        kind of operation first, which takes some ten seconds.

        Args:
            inputs: All arrays that the reference reads. They are evaluated before it: an operation on the CPU
                may read what the GPU has not written yet if both are evaluated together (MLX 0.32.4, CUDA).
            reference: The plain operations. Called after ``candidate``, so that it may modify its inputs.
            candidate: The kernel.
            error: Compares the reference with the candidate's result; ``None`` if they agree.
        """
        expected: Result | None = None
        try:
            result = candidate()
            mx.eval(result, list(inputs()))
            with mx.stream(mx.cpu) if self.language == "cuda" else nullcontext():
                expected = reference()
                mx.eval(expected)
                problem = error(expected, result)
        except (RuntimeError, ValueError) as raised:
            problem = f"it does not run: {str(raised).splitlines()[0]}"
        if problem is None:
            self.trusted.add(plan)
            return result
        self.refused[plan] = problem
        logger.warning("A fused kernel is not used: %s (%s)", problem, plan)
        return reference() if expected is None else expected

    def _compile(self, spec: source.KernelSpec) -> Any:
        make_kernel = mx.fast.metal_kernel if self.language == "metal" else mx.fast.cuda_kernel
        text = spec.source(self.language)
        content = repr((text, spec.inputs, _launch_bounds(spec)))
        digest = hashlib.sha256(content.encode()).hexdigest()
        # MLX caches kernels by name, so the name contains a digest of the source.
        name = f"tqchat_{spec.kernel}_{digest[:16]}"
        if self.language == "cuda" and spec.threads:
            text = _with_launch_bounds(name, spec, text)
        cuda_only: dict[str, Any] = {"shared_memory": spec.shared_memory} if self.language == "cuda" else {}
        kernel: Any = make_kernel(
            name=name,
            input_names=list(spec.inputs),
            output_names=list(spec.outputs),
            source=text.body,
            header=text.header,
            ensure_row_contiguous=False,
            **cuda_only,
        )
        return kernel if self.language == "metal" else _kept_on_disk(kernel, name, spec, text)


def _kept_on_disk(kernel: Callable[..., Any], name: str, spec: source.KernelSpec, text: source.Source) -> Any:
    """A kernel whose machine code is put where MLX finds it before it is first launched."""

    def launch(inputs: list[mx.array], **parameters: Any) -> Any:
        outputs = zip(spec.outputs, parameters["output_dtypes"], strict=True)
        named = zip(spec.inputs, inputs, strict=True)
        keep_compiled(name, generated_text(name, text.header, text.body, list(named), list(outputs)))
        return kernel(inputs=inputs, **parameters)

    return launch


def _with_launch_bounds(name: str, spec: source.KernelSpec, text: source.Source) -> source.Source:
    """Source of a kernel with ``__launch_bounds__`` added.

    Limits registers per thread so that ``spec.resident_threads`` threads fit on a multiprocessor. MLX
    generates the function's signature without bounds, so a macro of the function's name, defined between
    header and body, adds them.
    """
    function = f"custom_kernel_{name}"
    return source.Source(
        f"{text.header}#define {function} {_launch_bounds(spec)} {function}\n",
        f"#undef {function}\n{text.body}",
    )


def _launch_bounds(spec: source.KernelSpec) -> str:
    threads = spec.threads
    return f"__launch_bounds__({threads}, {max(1, spec.resident_threads // threads)})" if threads else ""


def run(compiled: Any, inputs: Sequence[mx.array], launch: Launch) -> list[mx.array]:
    """Add a launch to the graph."""
    arrays: list[mx.array] = compiled(inputs=list(inputs), **launch)
    return arrays


def relative_error(expected: mx.array, found: mx.array) -> float:
    """Largest difference relative to the largest value; infinite if other values are not finite."""
    a, b = found.astype(mx.float32), expected.astype(mx.float32)
    finite = mx.isfinite(b)
    if not mx.array_equal(finite, mx.isfinite(a)).item():
        return float("inf")
    difference = mx.where(finite, mx.abs(a - b), 0).max()
    error: Any = (difference / mx.maximum(mx.where(finite, mx.abs(b), 0).max(), 1e-6)).item()
    return float(error)


@lru_cache(maxsize=1)
def kernels() -> Kernels | None:
    """This device's kernels; ``None`` on a CPU."""
    if mx.default_device() == mx.cpu:
        return None
    if mx.metal.is_available():
        return Kernels("metal")
    info: dict[str, Any] = mx.device_info()
    major, minor = (int(info.get(f"compute_capability_{part}", 0)) for part in ("major", "minor"))
    return Kernels("cuda", tensor_cores=major >= 8, shared_memory=_shared_memory(major, minor))


def _shared_memory(major: int, minor: int) -> int:
    """Bytes of shared memory that a CUDA threadgroup can have, by compute capability.

    Source: CUDA C++ Programming Guide, technical specifications per compute capability.
    """
    kilobytes = 227 if major in (9, 10, 11) else 163 if (major, minor) in ((8, 0), (8, 7)) else 99
    return kilobytes * 1024 if major >= 8 else 0


@lru_cache(maxsize=64)
def unused_input(dtype: mx.Dtype) -> mx.array:
    """Placeholder for an input that a kernel does not read."""
    array = mx.zeros(MIN_INPUT_SIZE, dtype=dtype)
    mx.eval(array)
    return array

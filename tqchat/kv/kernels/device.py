"""The kernels of this device: compiled when first wanted, and which of them can be trusted."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypedDict, TypeVar

import mlx.core as mx

from tqchat.kv.kernels import source

SIMD = 32
LARGEST_DIM = 256
REGISTERS_FOR = 384
"""Threads of a kernel with many registers that a CUDA core holds at once."""

Answer = TypeVar("Answer")

logger = logging.getLogger(__name__)


class Launch(TypedDict):
    """How a kernel is run: its grid (in threads) and outputs, by the names that MLX has for them."""

    grid: tuple[int, int, int]
    threadgroup: tuple[int, int, int]
    output_shapes: list[tuple[int, ...]]
    output_dtypes: list[mx.Dtype]


@dataclass
class Kernels:
    """What is compiled, by its constants; and by plan, what may be used.

    Attributes:
        tensor_cores: Whether the device has those of CUDA, from Ampere on.
        trusted: Plans whose answers were held against the plain operations'.
        refused: Why other plans fall back to these.
    """

    language: source.Language
    tensor_cores: bool = False
    trusted: set[Hashable] = field(default_factory=set)
    refused: dict[Hashable, str] = field(default_factory=dict)
    _compiled: dict[source.Text, Any] = field(default_factory=dict)

    def compiled(self, text: source.Text) -> Any:
        """The kernel of this text: the same one each time."""
        if text not in self._compiled:
            self._compiled[text] = self._compile(text)
        return self._compiled[text]

    def first_use(
        self,
        plan: Hashable,
        reference: Callable[[], Answer],
        found: Callable[[], Answer],
        error: Callable[[Answer, Answer], str | None],
    ) -> Answer:
        """A plan's first answer, if it agrees with the plain operations': it is trusted from then
        on. Otherwise theirs; it is then refused for good.

        Args:
            reference: The plain operations; they come after ``found``, which sees nothing that they change.
            error: What is wrong with the second answer, given the first; ``None`` if nothing is.
        """
        expected: Answer | None = None
        try:
            answer = found()
            expected = reference()
            mx.eval(expected, answer)
            problem = error(expected, answer)
        except (RuntimeError, ValueError) as raised:
            problem = f"it does not run: {str(raised).splitlines()[0]}"
        if problem is None:
            self.trusted.add(plan)
            return answer
        self.refused[plan] = problem
        logger.warning("A fused kernel is not used: %s (%s)", problem, plan)
        return reference() if expected is None else expected

    def _compile(self, text: source.Text) -> Any:
        make = mx.fast.metal_kernel if self.language == "metal" else mx.fast.cuda_kernel
        whole = text.source(self.language)
        digest = hashlib.sha256(repr((whole, text.inputs, _bounds(text.threads))).encode()).hexdigest()[:16]
        # MLX knows a kernel by its name, on CUDA after a restart too.
        name = f"tqchat_{text.kernel}_{digest}"
        if self.language == "cuda" and text.threads:
            whole = _bounded(name, text.threads, whole)
        return make(
            name=name,
            input_names=list(text.inputs),
            output_names=list(text.outputs),
            source=whole.body,
            header=whole.header,
            ensure_row_contiguous=False,
        )


def _bounded(name: str, threads: int, text: source.Source) -> source.Source:
    """A kernel's text with the number of its threads beside its name, so that threads take no more registers
    than leaves room for ``REGISTERS_FOR`` of them on a core. MLX writes the function's head, and asks for no
    such thing; between header and body its name stands for both.
    """
    function = f"custom_kernel_{name}"
    return source.Source(
        f"{text.header}#define {function} {_bounds(threads)} {function}\n",
        f"#undef {function}\n{text.body}",
    )


def _bounds(threads: int) -> str:
    return f"__launch_bounds__({threads}, {max(1, REGISTERS_FOR // threads)})" if threads else ""


def run(compiled: Any, inputs: Sequence[mx.array], launch: Launch) -> list[mx.array]:
    """Put a run over these arrays into the graph."""
    arrays: list[mx.array] = compiled(inputs=list(inputs), **launch)
    return arrays


@lru_cache(maxsize=1)
def kernels() -> Kernels | None:
    """The kernels for this device; ``None`` on a CPU."""
    if mx.default_device() == mx.cpu:
        return None
    if mx.metal.is_available():
        return Kernels("metal")
    major: Any = mx.device_info().get("compute_capability_major", 0)
    return Kernels("cuda", tensor_cores=int(major) >= 8)


@lru_cache(maxsize=64)
def blank(dtype: mx.Dtype) -> mx.array:
    """What stands where a kernel is given no array: 8 elements, since Metal keeps smaller ones elsewhere."""
    array = mx.zeros(8, dtype=dtype)
    mx.eval(array)
    return array

"""The kernels' text: one body for every device, behind a thin header for each language."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

import mlx.core as mx

from tqchat.kv.codebook import MAGNITUDES, centroids

Language = Literal["metal", "cuda"]
Kernel = Literal["attend", "attend_tensor", "merge", "encode"]
Constants = tuple[tuple[str, int | mx.Dtype], ...]

ATTEND_INPUTS = (
    "queries",
    "scale",
    "sizes",
    "key_codes",
    "key_scales",
    "key_biases",
    "key_sinks",
    "key_tail",
    "key_mean",
    "key_balance",
    "key_rotation",
    "value_codes",
    "value_scales",
    "value_biases",
    "value_sinks",
    "value_tail",
)
ATTEND_OUTPUTS = ("partial", "stats")
MERGE_INPUTS = ("partial", "stats", "sizes", "value_mean", "value_rotation", "sink")
MERGE_OUTPUTS = ("output",)
NAMES: dict[Kernel, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "attend": (ATTEND_INPUTS, ATTEND_OUTPUTS),
    "attend_tensor": (ATTEND_INPUTS, ATTEND_OUTPUTS),
    "merge": (MERGE_INPUTS, MERGE_OUTPUTS),
    "encode": (("x", "mean", "balance", "metric", "rotation"), ("words", "gains")),
}


@lru_cache(maxsize=8)
def header(language: Language) -> str:
    """What comes before a kernel: the language's words, the codebooks, the shared functions."""
    return _bare(_text(language) + _levels() + _text("common"))


@lru_cache(maxsize=8)
def body(language: Language, kernel: Kernel) -> str:
    """The inside of a kernel's function, which expects its constants before it."""
    return _bare(
        _text(f"{language}_begin") + (_attend(kernel) if kernel.startswith("attend") else _text(kernel))
    )


def _attend(kernel: Kernel) -> str:
    """Attention's text: packed tokens by lane groups, on every device, or on CUDA's tensor cores; the rest is
    the same."""
    part = {
        name: _text(f"attend_{name}")
        for name in ("begin", "state", "lanes", "tensor", "raw", "groups", "end")
    }
    if kernel == "attend_tensor":
        middle = (
            f"if (is_raw) {{\n{part['state']}{part['raw']}{part['groups']}}} else {{\n{part['tensor']}}}\n"
        )
    else:
        middle = (
            f"{part['state']}if (!is_raw) {{\n{part['lanes']}}} else {{\n{part['raw']}}}\n{part['groups']}"
        )
    return part["begin"] + middle + part["end"]


def constants(language: Language, values: Constants) -> str:
    """Numbers and types that a kernel is compiled for, as its first lines.

    MLX would take them as a template too, but puts that together anew at every launch.
    """
    lines = []
    for name, value in values:
        if isinstance(value, int):
            lines.append(f"constexpr int {name} = {value};")
        else:
            lines.append(f"using {name} = {_TYPES[language][value]};")
    return "\n".join(lines) + "\n"


_TYPES: dict[Language, dict[mx.Dtype, str]] = {
    "metal": {mx.float16: "half", mx.bfloat16: "bfloat16_t", mx.float32: "float"},
    "cuda": {mx.float16: "__half", mx.bfloat16: "__nv_bfloat16", mx.float32: "float"},
}


def _text(name: str) -> str:
    return Path(__file__).with_name(f"{name}.inc").read_text(encoding="utf-8")


def _bare(text: str) -> str:
    """Without comments and indentation: MLX copies a kernel's text at every launch."""
    lines = (line.split("//")[0].strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line) + "\n"


def _levels() -> str:
    """``tq_level(bits, code)``, from the pinned codebooks."""
    lines = ["TQ_FN float tq_level(int bits, int code) {", "    switch (bits * 16 + code) {"]
    for bits in MAGNITUDES:
        lines += [f"        case {bits * 16 + i}: return {x!r}f;" for i, x in enumerate(centroids(bits))]
    return "\n".join([*lines, "    }", "    return 0.0f;", "}\n"])

"""The kernels' text: one body for every device, behind a thin header for each language."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import mlx.core as mx

from tqchat.kv.codebook import MAGNITUDES, centroids

Language = Literal["metal", "cuda"]
Kernel = Literal["attend", "attend_merged", "attend_tensor", "merge", "encode"]
Kind = Literal[0, 1, 2]
"""How a side is stored: raw, by a codebook, in affine groups."""

Constants = tuple[tuple[str, int | mx.Dtype], ...]


@dataclass(frozen=True)
class Text:
    """One kernel: what it is compiled from, but for the language.

    Attributes:
        kinds: Of keys and of values, for a kernel that attends.
        inputs: Names of the arrays that it is given, in order; ``outputs`` of those it makes.
        threads: In a threadgroup, where registers must be shared out among so many; 0 where they need not.
    """

    kernel: Kernel
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Constants
    kinds: tuple[Kind, Kind] = (0, 0)
    threads: int = 0

    def whole(self, language: Language) -> Source:
        """All of the text, as it is compiled."""
        return Source(
            _bare(_header(self.kernel, language, _text)),
            _bare(self._body(language, _text)),
        )

    def short(self, language: Language) -> Source:
        """The text as MLX is given it, which copies it at every launch: on CUDA the compiler reads most of it
        from this package's files. Which shapes and strides it uses, MLX looks up in what it is given.
        """
        folder = str(_FOLDER)
        if language == "metal" or any(sign in folder for sign in '"\\\n'):
            return self.whole(language)
        used = sorted(set(_USED.findall(self.whole(language).body)))
        return Source(
            _header(self.kernel, language, _included),
            f"// {' '.join(used)}\n{self._body(language, _included)}",
        )

    def _body(self, language: Language, read: Callable[[str], str]) -> str:
        begin = constants(language, self.constants) + read(f"{language}_begin")
        if self.kernel == "encode":
            return begin + read("encode")
        if self.kernel == "merge":
            return begin + read("fixed") + read("merge_begin") + read("merge")
        return begin + read("fixed") + _attend(self.kernel, self.kinds, read)


class Source(NamedTuple):
    """What comes before a kernel's function, and what is inside it."""

    header: str
    body: str


_FOLDER = Path(__file__).resolve().parent
_USED = re.compile(r"\b\w+_(?:shape|strides)\b")


def _header(kernel: Kernel, language: Language, read: Callable[[str], str]) -> str:
    """The language's words, the codebooks, the shared functions."""
    levels = _levels() if kernel == "encode" else ""
    tensor = read("tensor") if kernel == "attend_tensor" else ""
    return read(language) + levels + read("common") + tensor


def _attend(kernel: Kernel, kinds: tuple[Kind, Kind], read: Callable[[str], str]) -> str:
    """Attention's text: packed tokens by lane groups, on every device, or on CUDA's tensor cores; splits are
    merged by the launch's own last threadgroups, or by another launch. The rest is the same.
    """

    def part(name: str) -> str:
        return read(f"attend_{name}")

    text = part("begin") + _side("key", kinds[0]) + _side("value", kinds[1])
    if kernel == "attend_tensor":
        text += part("tiles") + part("queries") + part("tensor")
    else:
        text += part("queries") + part("state")
        text += f"if (!is_raw) {{\n{part('lanes')}}} else {{\n{part('raw')}}}\n{part('groups')}"
    text += part("end")
    return text if kernel == "attend" else f"{text}{part('last')}{read('merge')}}}\n"


def stored(side: str, kind: Kind) -> tuple[str, ...]:
    """Names of the arrays that a side's tokens are in, without those that are never packed."""
    packed = ("codes", "scales", "biases")[: (0, 2, 3)[kind]]
    return tuple(f"{side}_{name}" for name in (*packed, "tail"))


def _side(side: str, kind: Kind) -> str:
    """Where a head's arrays begin."""
    scale = f"const TQ_DEVICE {side.upper()}_SCALE*"

    def at(name: str) -> str:
        strides = f"{side}_{name}_strides"
        return f"{side}_{name} + batch * {strides}[0] + head * {strides}[1]"

    head = at("codes") if kind else f"{side}_tail_of + sinks * {side}_tail_strides[2]"
    return (
        f"const TQ_DEVICE uchar* {side}_head = (const TQ_DEVICE uchar*)({head});\n"
        f"{scale} {side}_scales_of = {at('scales') if kind else 0};\n"
        f"{scale} {side}_biases_of = {at('biases') if kind == 2 else 0};\n"
    )


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


@lru_cache(maxsize=32)
def _text(name: str) -> str:
    return (_FOLDER / f"{name}.inc").read_text(encoding="utf-8")


def _included(name: str) -> str:
    return f'#include "{_FOLDER}/{name}.inc"\n'


def _bare(text: str) -> str:
    """Without comments and indentation."""
    lines = (line.split("//")[0].strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line) + "\n"


def _levels() -> str:
    """``tq_level(bits, code)``, from the pinned codebooks."""
    lines = ["TQ_FN float tq_level(int bits, int code) {", "    switch (bits * 16 + code) {"]
    for bits in MAGNITUDES:
        lines += [f"        case {bits * 16 + i}: return {x!r}f;" for i, x in enumerate(centroids(bits))]
    return "\n".join([*lines, "    }", "    return 0.0f;", "}\n"])

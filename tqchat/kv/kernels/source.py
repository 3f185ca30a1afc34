"""The kernels' text: one body for every device, behind a thin header for each language."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import mlx.core as mx

from tqchat.kv.codec.codebook import MAGNITUDES, centroids

Language = Literal["metal", "cuda"]
Kernel = Literal["attend", "attend_merged", "attend_tensor", "merge", "encode"]
Kind = Literal[0, 1, 2]
"""How a side is stored: raw, by a codebook, in affine groups."""

Constants = tuple[tuple[str, int | mx.Dtype], ...]


@dataclass(frozen=True)
class Side:
    """The keys or the values that a kernel attends to, by the names of their arrays.

    Attributes:
        grows: Whether the last token is not in the tail; the tail with it is then one of the outputs.
    """

    name: Literal["key", "value"]
    kind: Kind
    grows: bool = False

    @property
    def stored(self) -> tuple[str, ...]:
        """The arrays that tokens are in, without those that are never packed."""
        packed = ("codes", "scales", "biases")[: (0, 2, 3)[self.kind]]
        names = (*packed, "tail", "token") if self.grows else (*packed, "tail")
        return tuple(f"{self.name}_{name}" for name in names)

    @property
    def grown(self) -> tuple[str, ...]:
        """The tail with the last token in it, where it is an output."""
        return (f"{self.name}_grown",) if self.grows else ()

    @property
    def begins(self) -> str:
        """Where a head's arrays begin, and where the last token is if it is not in the tail."""
        side, kind = self.name, self.kind
        scale = f"const TQ_DEVICE {side.upper()}_SCALE*"
        head = self._at("codes", "STRIDE") if kind else f"{side}_tail_of + sinks * {side.upper()}_DIM"
        grown = f"{side}_grown + ({side}_tail_of - {side}_tail)" if self.grows else "0"
        return (
            f"const TQ_DEVICE uchar* {side}_head = (const TQ_DEVICE uchar*)({head});\n"
            f"{scale} {side}_scales_of = {self._at('scales', 'GROUPS') if kind else 0};\n"
            f"{scale} {side}_biases_of = {self._at('biases', 'GROUPS') if kind == 2 else 0};\n"
            f"TQ_DEVICE S* {side}_grown_of = {grown};\n"
        )

    @property
    def grows_by_one(self) -> str:
        """The tail with its last token, written."""
        if not self.grows:
            return ""
        side = self.name
        strides = f"{side}_token_strides"
        token = f"{side}_token + batch * {strides}[0] + head * {strides}[1], {strides}[3]"
        return (
            f"if (first_row == 0) tq_copy<{side.upper()}_DIM>({side}_tail_of, {side}_grown_of, tail - 1, "
            "split * SIMDS * 32 + tq_thread, splits * SIMDS * 32);\n"
            f"if (is_raw) tq_copy_one<{side.upper()}_DIM>({token}, "
            f"{side}_grown_of + (tail - 1) * {side.upper()}_DIM, tq_thread, SIMDS * 32);\n"
        )

    def _at(self, name: str, each: str) -> str:
        """A head's part of an array; a token has so many elements of it."""
        side = self.name
        return f"{side}_{name} + tq_first_of({side}_room, kv_head) * {side.upper()}_{each}"


@dataclass(frozen=True)
class Text:
    """One kernel: what it is compiled from, but for the language.

    Attributes:
        sides: Keys and values, for a kernel that attends.
        inputs: Names of the arrays that it is given, in order; ``outputs`` of those it makes.
        threads: In a threadgroup, where registers must be shared out among so many; 0 where they need not.
    """

    kernel: Kernel
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Constants
    sides: tuple[Side, ...] = ()
    threads: int = 0

    def source(self, language: Language) -> Source:
        """The text as it is compiled."""
        return Source(_bare(_header(self.kernel, language)), _bare(self._body(language)))

    def _body(self, language: Language) -> str:
        begin = constants(language, self.constants) + _text(f"{language}_begin")
        if self.kernel == "encode":
            return begin + _text("encode")
        if self.kernel == "merge":
            return begin + _text("fixed") + _text("merge_begin") + _text("merge")
        return begin + _text("fixed") + _attend(self.kernel, self.sides)


class Source(NamedTuple):
    """What comes before a kernel's function, and what is inside it."""

    header: str
    body: str


_FOLDER = Path(__file__).resolve().parent / "shaders"


def _header(kernel: Kernel, language: Language) -> str:
    """The language's words, the codebooks, the shared functions."""
    levels = _levels() if kernel == "encode" else ""
    tensor = _text("tensor") if kernel == "attend_tensor" else ""
    return _text(language) + levels + _text("common") + tensor


def _attend(kernel: Kernel, sides: tuple[Side, ...]) -> str:
    """Attention's text: packed tokens by lane groups, on every device, or on CUDA's tensor cores; splits are
    merged by the launch's own last threadgroups, or by another launch. The rest is the same.
    """

    def part(name: str) -> str:
        return _text(f"attend_{name}")

    text = "" if kernel == "attend" else part("workspace")
    text += part("begin") + "".join(side.begins for side in sides)
    grows = "".join(side.grows_by_one for side in sides)
    if kernel == "attend_tensor":
        text += part("tiles") + grows + part("queries") + part("tensor")
    else:
        text += grows + part("queries") + part("state")
        text += f"if (!is_raw) {{\n{part('lanes')}}} else {{\n{part('raw')}}}\n{part('groups')}"
    text += part("end")
    return text if kernel == "attend" else f"{text}{part('last')}{_text('merge')}}}\n"


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

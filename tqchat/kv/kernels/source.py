"""Kernel source: one body for all devices, behind a short header per language."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import mlx.core as mx

from tqchat.kv.codec.codebook import MAGNITUDES, centroids
from tqchat.kv.codec.quantiser import ScalarQuantiser
from tqchat.kv.codec.trellis import TrellisQuantiser

Language = Literal["metal", "cuda"]
EncodeKernel = Literal["encode_scalar", "encode_trellis", "encode_tensor"]
Kernel = Literal[
    "attend",
    "attend_merged",
    "attend_tensor",
    "merge",
    "copy",
    "join",
    "encode_scalar",
    "encode_trellis",
    "encode_tensor",
    "encode_in_place",
    "decode_affine",
    "decode_shares",
    "decode_values",
]
Kind = Literal[0, 1, 2, 3]
"""Storage of a side: 0 raw, 1 codebook, 2 affine groups, 3 trellis."""

QUANTISER_KINDS: dict[type, Kind] = {ScalarQuantiser: 1, TrellisQuantiser: 3}
"""Kinds of rotated formats, by the class of their quantiser."""

Constants = tuple[tuple[str, int | mx.Dtype], ...]


@dataclass(frozen=True)
class SideArrays:
    """The arrays of one side as an attention kernel sees them.

    Attributes:
        writes_tail: Whether the newest token is passed separately; the kernel then writes it into the tail.
        has_fine: Whether there are fine tokens.
    """

    name: Literal["key", "value"]
    kind: Kind
    writes_tail: bool = False
    has_fine: bool = False

    @property
    def tail_names(self) -> tuple[str, ...]:
        """The input arrays of raw tokens."""
        names = ("tail", "token") if self.writes_tail else ("tail",)
        return tuple(f"{self.name}_{name}" for name in names)

    @property
    def encoded_names(self) -> tuple[str, ...]:
        """The input arrays of packed and fine tokens."""
        packed = ("codes", "scales", "biases")[: (0, 2, 3, 2)[self.kind]]
        fine = ("fine_codes", "fine_scales") if self.has_fine else ()
        return tuple(f"{self.name}_{name}" for name in (*packed, *fine))

    @property
    def pointer_declarations(self) -> str:
        """Pointers to a head's part of each array."""
        side, kind = self.name, self.kind
        scale = f"const TQ_DEVICE {side.upper()}_SCALE*"
        head = self._at("codes", "STRIDE") if kind else f"{side}_tail_of + sinks * {side.upper()}_DIM"
        return (
            f"const TQ_DEVICE uchar* {side}_head = (const TQ_DEVICE uchar*)({head});\n"
            f"{scale} {side}_scales_of = {self._at('scales', 'GROUPS') if kind else 0};\n"
            f"{scale} {side}_biases_of = {self._at('biases', 'GROUPS') if kind == 2 else 0};\n"
        )

    @property
    def fine_pointer_declarations(self) -> str:
        """Pointers to a head's part of the arrays of fine tokens."""
        side = self.name
        return (
            f"const TQ_DEVICE uchar* {side}_fine_head = "
            f"(const TQ_DEVICE uchar*)({self._at('fine_codes', 'FINE_STRIDE', 'fine')});\n"
            f"const TQ_DEVICE {side.upper()}_SCALE* {side}_fine_scales_of = "
            f"{side}_fine_scales + tq_first_of(fine_room, kv_head);\n"
        )

    @property
    def tail_update(self) -> str:
        """Statement that writes the newest token into the tail, an input (see ``Tail``)."""
        if not self.writes_tail:
            return ""
        side = self.name
        strides = f"{side}_token_strides"
        token = f"{side}_token + batch * {strides}[0] + head * {strides}[1], {strides}[3]"
        return (
            f"if (is_raw) tq_copy_one<{side.upper()}_DIM>({token}, "
            f"(TQ_DEVICE S*){side}_tail_of + (tail - 1) * {side.upper()}_DIM, tq_thread, SIMDS * 32);\n"
        )

    def _at(self, name: str, elements: str, room: str = "") -> str:
        """Pointer to a head's part of an array with ``elements`` elements per token."""
        side = self.name
        return f"{side}_{name} + tq_first_of({room or side}_room, kv_head) * {side.upper()}_{elements}"


@dataclass(frozen=True)
class EncodePart:
    """What a part of the threadgroups of a launch encodes in place.

    Attributes:
        kernel: Whose body they run.
        is_fine: Whether the vectors are fine tokens of a store, which are decoded first, or raw ones.
        inputs: Names of the input arrays, by the kernel's name for them. Those of others are not used.
    """

    kernel: EncodeKernel
    is_fine: bool
    constants: Constants
    inputs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class KernelSpec:
    """All that determines a kernel's source, except the language.

    Attributes:
        inputs: Names of the input arrays, in order.
        outputs: Names of the output arrays, in order.
        constants: Compile-time integers and types.
        sides: Keys and values, for an attention kernel.
        parts: What a launch encodes in place.
        threads: Threads per threadgroup if registers must be limited for them, else 0.
        resident_threads: Threads that should be resident on one CUDA multiprocessor then.
        shared_memory: Bytes of threadgroup memory that the launch reserves (CUDA), beside what the source
            declares.
    """

    kernel: Kernel
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Constants
    sides: tuple[SideArrays, ...] = ()
    threads: int = 0
    resident_threads: int = 384
    shared_memory: int = 0
    parts: tuple[EncodePart, ...] = ()

    def source(self, language: Language) -> Source:
        """The source in a language."""
        return Source(_strip_comments(self._header(language)), _strip_comments(self._body(language)))

    def _header(self, language: Language) -> str:
        """Language definitions, codebooks and shared functions."""
        bodies = dict.fromkeys((self.kernel, *(part.kernel for part in self.parts)))
        levels = _codebook_switch() if "encode_scalar" in bodies else ""
        names = dict.fromkeys(name for kernel in bodies for name in _FUNCTIONS.get(kernel, ()))
        if any(part.is_fine for part in self.parts):
            names |= dict.fromkeys(("values", "fine"))
        more = "".join(_read(name) for name in names)
        return _read(language) + levels + _read("trellis") + _read("common") + more

    def _body(self, language: Language) -> str:
        begin = constants(language, self.constants) + _read(f"{language}_begin")
        if self.kernel in _ENCODE_BODIES:
            return begin + _read("encode_new") + _encode_body(self.kernel, "slices")
        if self.kernel == "encode_in_place":
            return begin + _in_place_body(language, self.parts)
        if self.kernel == "decode_affine":
            return begin + _read("decode") + _read("decode_affine")
        if self.kernel in ("decode_shares", "decode_values"):
            return begin + _read("decode") + _read("decode_turbo") + _read(self.kernel)
        if self.kernel == "copy":
            return begin + _read("copy")
        if self.kernel == "join":
            return begin
        if self.kernel == "merge":
            return begin + _read("fixed") + _read("merge_begin") + _read("merge")
        reserved = language == "cuda" and bool(self.shared_memory)
        return begin + _read("fixed") + _attend_body(self.kernel, self.sides, reserved)


class Source(NamedTuple):
    """Text before a kernel's function, and the body of the function."""

    header: str
    body: str


_FOLDER = Path(__file__).resolve().parent / "shaders"


_FUNCTIONS: dict[Kernel, tuple[str, ...]] = {
    "attend_tensor": ("tensor",),
    "decode_shares": ("values",),
    "decode_values": ("values",),
    "encode_scalar": ("encode_functions", "rounding"),
    "encode_trellis": ("encode_functions",),
    "encode_tensor": ("encode_functions", "encode_tensor_functions"),
}
"""Further functions that a kernel needs."""

_ENCODE_BODIES: dict[Kernel, tuple[str, tuple[str, ...]]] = {
    "encode_scalar": ("one", ("prepare", "scalar", "gain", "pack_scalar")),
    "encode_trellis": ("one", ("prepare", "trellis", "details", "gain", "pack_trellis")),
    "encode_tensor": ("tensor", ("tensor_prepare", "tensor_search", "tensor_end")),
}
"""Parts of the bodies of encoding kernels: before and after the one that says where the vectors are."""

_ENCODE_INPUTS = {
    "x": "S",
    "fine_words": "uint",
    "fine_gains": "G",
    "levels": "uint",
    "centres": "int8_t",
    "centre_scales": "G",
    "balance": "G",
    "metric": "G",
    "rotation": "float",
    "table": "uint",
    "fragments": "uint",
}
"""Types of the arrays that encoding kernels read."""


def _encode_body(kernel: Kernel, vectors: str) -> str:
    """Body of an encoding kernel, behind declarations of ``tokens``, ``kv_heads`` and ``slots``.

    Args:
        vectors: The part that says where the vectors are.
    """
    before, after = _ENCODE_BODIES[kernel]
    return "".join(_read(f"encode_{part}") for part in (before, vectors, *after))


def _in_place_body(language: Language, parts: Sequence[EncodePart]) -> str:
    """Body of a kernel whose threadgroups encode the parts one after another.

    ``sizes_strides`` has two rooms for each part, where the vectors are and where their codes go, and then
    the numbers of tokens, two in one. The codes go into memory of the stores, an input (see ``TokenStore``).
    The parts share threadgroup memory.
    """
    text = "const int own_group = tq_group_x;\n"
    text += "const int kv_heads = stored_words_0_shape[0] * stored_words_0_shape[1];\n"
    end, branches = "0", []
    room = max(_in_place_room(part) for part in parts)
    for number, part in enumerate(parts):
        simds = dict(part.constants)["SIMDS"]
        half = "high" if number % 2 else "low"
        tokens = f"tokens_{number}"
        begin, end = end, f"end_{number}"
        work = (
            f"kv_heads * (({tokens} + 7) / 8)" if part.kernel == "encode_tensor" else f"kv_heads * {tokens}"
        )
        text += (
            f"const int {tokens} = tq_{half}_half(sizes_strides[{2 * len(parts) + number // 2}]);\n"
            f"const int {end} = {begin} + ({work} + {simds} - 1) / {simds};\n"
        )
        body = constants(language, part.constants) + (
            f"const int tq_group_x = own_group - {begin};\n"
            f"const int tokens = {tokens};\n"
            f"const TqRoom source_room = tq_room(sizes_strides[{2 * number}]);\n"
            f"const TqRoom target_room = tq_room(sizes_strides[{2 * number + 1}]);\n"
            f"TQ_DEVICE uint* words = (TQ_DEVICE uint*)stored_words_{number} + target_room.start * WORDS;\n"
            f"TQ_DEVICE ushort* gains = (TQ_DEVICE ushort*)stored_gains_{number} + target_room.start;\n"
            "const int slots = target_room.tokens;\n"
        )
        names = dict(part.inputs)
        for name, kind in _ENCODE_INPUTS.items():
            body += f"const TQ_DEVICE {kind}* {name} = {names.get(name, 0)};\n"
        body += _encode_body(part.kernel, "fine" if part.is_fine else "raw")
        branches.append(f"if (own_group < {end}) {{\n{_in_room(_strip_comments(body), room)}}}")
    # Metal declares threadgroup memory outside of blocks only.
    text += f"TQ_SHARED TqChunk<16> room_of_parts[{room}];\n"
    return text + " else ".join(branches) + "\n"


_SHARED = re.compile(r"^TQ_SHARED (\S+) (\w+)\[(.+)\];$", re.MULTILINE)
"""A declaration of threadgroup memory."""


def _in_room(body: str, room: int) -> str:
    """A body whose threadgroup memory is in ``room_of_parts``, of so many chunks."""
    end = "0"

    def place(declaration: re.Match[str]) -> str:
        nonlocal end
        kind, name, size = declaration.groups()
        begin, end = end, f"{name}_end"
        return (
            f"TQ_SHARED_AT {kind}* {name} = (TQ_SHARED_AT {kind}*)(room_of_parts + {begin});\n"
            f"constexpr int {end} = {begin} + (int(sizeof({kind})) * ({size}) + 15) / 16;"
        )

    placed = _SHARED.sub(place, body)
    return f'{placed}static_assert({end} <= {room}, "threadgroup memory");\n'


def _in_place_room(part: EncodePart) -> int:
    """Chunks of 16 bytes of threadgroup memory that a part needs, as its body declares them."""
    values = {name: value for name, value in part.constants if isinstance(value, int)}
    simds, dim = values["SIMDS"], values["DIM"]
    pairs = (dim + 1) // 2
    if part.kernel == "encode_tensor":
        pairs_of_lane = 1 if dim <= 64 else 2 if dim <= 128 else 4
        origins = max(4 * pairs, 2 * ((dim + 15) // 16 * 16 + 8))
        return simds * (80 + 4 * pairs + 80 * pairs_of_lane + origins + 6) + (simds + 1) // 2
    chunks = 2 * -(-simds * dim // 4)
    if part.kernel == "encode_trellis":
        chunks += simds * (8 + max(pairs, 2 * min(pairs, values["WARM_UP"])))
    return chunks


def _attend_body(kernel: Kernel, sides: tuple[SideArrays, ...], reserved: bool) -> str:
    """Body of an attention kernel.

    Tokens are processed by lane groups, or by CUDA tensor cores; a split holds raw, fine or packed ones.
    Splits are merged by the last threadgroup of the same launch, or by the ``merge`` kernel.

    Args:
        reserved: Whether the launch reserves the threadgroup memory of ``room``.
    """

    def part(name: str) -> str:
        return _read(f"attend_{name}")

    text = "" if kernel == "attend" else part("workspace")
    room = "extern __shared__ TqChunk<16> room[];\n" if reserved else "TQ_SHARED TqChunk<16> room[ROOM];\n"
    text += part("begin") + room + part("places") + "".join(side.pointer_declarations for side in sides)
    tail_updates = "".join(side.tail_update for side in sides)
    if kernel == "attend_tensor":
        text += part("tiles") + part("queries") + tail_updates + part("folded") + part("tensor_operands")
        text += part("key_centres") + part("tensor")
        raw, fine, packed, groups = "tensor_raw", "tensor_fine", "tensor_packed", "tensor_groups"
    else:
        text += part("queries") + tail_updates + part("folded") + part("key_centres") + part("state")
        raw, fine, packed, groups = "raw", "fine", "lanes", "groups"
    text += f"if (is_raw) {{\n{part(raw)}}} else "
    if any(side.has_fine for side in sides):
        pointers = "".join(side.fine_pointer_declarations for side in sides)
        room = "const TqRoom fine_room = tq_room(sizes_strides[9]);\n"
        text += f"if (is_fine) {{\n{room}{pointers}{part(fine)}}} else "
    text += f"{{\n{part(packed)}}}\n{part('centres')}{part(groups)}{part('end')}"
    return text if kernel == "attend" else f"{text}{part('last')}{_read('merge')}}}\n"


def constants(language: Language, values: Constants) -> str:
    """Declarations of compile-time integers and types.

    MLX also has template arguments, but would build the source again at every launch.
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
def _read(name: str) -> str:
    return (_FOLDER / f"{name}.inc").read_text(encoding="utf-8")


def _strip_comments(text: str) -> str:
    """Remove comments and indentation."""
    lines = (line.split("//")[0].strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line) + "\n"


def _codebook_switch() -> str:
    """``tq_level(bits, code)``, generated from the codebooks."""
    lines = ["TQ_FN float tq_level(int bits, int code) {", "    switch (bits * 64 + code) {"]
    for bits in MAGNITUDES:
        lines += [f"        case {bits * 64 + i}: return {x!r}f;" for i, x in enumerate(centroids(bits))]
    return "\n".join([*lines, "    }", "    return 0.0f;", "}\n"])

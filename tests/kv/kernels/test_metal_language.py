"""The kernels' Metal source, read by a compiler that knows address spaces and ``half`` as a keyword."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import pytest

from tests.kv.kernels.emulator import TYPES
from tests.kv.kernels.test_emulated import METAL, filled
from tests.kv.kernels.test_one_launch import layer
from tqchat.kv.codec.fitting import NO_STATISTICS
from tqchat.kv.codec.formats import make_format
from tqchat.kv.codec.turbo import TurboFormat
from tqchat.kv.kernels import in_place, workspace
from tqchat.kv.kernels.decode import decode_inputs, decode_plan
from tqchat.kv.kernels.device import MIN_INPUT_SIZE
from tqchat.kv.kernels.encode import encode_inputs, encode_plan
from tqchat.kv.kernels.plan import plan_for
from tqchat.kv.kernels.source import KernelSpec
from tqchat.kv.scheme import FormatSpec

CLANG = shutil.which("clang")
# Like Metal: variables outside of functions are in the constant address space only.
NO_GLOBALS = "-cl-ext=-__opencl_c_program_scope_global_variables,-__opencl_c_device_enqueue"
OPTIONS = (
    *("-x", "cl", "-cl-std=clc++2021", "-Xclang", "-finclude-default-header", "--target=spir64"),
    *("-Xclang", NO_GLOBALS, "-fsyntax-only", "-w", f"-I{Path(__file__).parent}", "-"),
)
POSITIONS = """uint3 thread_position_in_threadgroup, threadgroup_position_in_grid, threadgroups_per_grid;
uint thread_index_in_simdgroup, simdgroup_index_in_threadgroup;
"""
"""What MLX declares in a kernel."""
UNQUALIFIED = re.compile(
    r"(?<!device )(?<!threadgroup )(?<!thread )(?<!TQ_DEVICE )(?<!TQ_SHARED_AT )(?<!TQ_THREAD )"
    r"\b(float|half2?|u?int|ushort|uchar|int8_t|int64_t|[STOAG]|\w+_SCALE|Tq\w+<[^<>]*>)[*&](?!&)"
)
"""A pointer or reference without an address space, which Metal before 4.1 does not accept and clang does."""


def is_there() -> bool:
    return CLANG is not None and errors_of("__kernel void k(device float* a) { a[0] = 0; }") == ""


def errors_of(text: str) -> str:
    assert CLANG is not None
    source = f'#include "metal_language.h"\n{text}'
    return subprocess.run([CLANG, *OPTIONS], input=source, capture_output=True, text=True).stderr


pytestmark = pytest.mark.skipif(not is_there(), reason="no clang that reads C++ for OpenCL")


def check(spec: KernelSpec, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Assert that the source compiles as a function with MLX's arguments, of these types."""
    source = spec.source("metal")
    assert UNQUALIFIED.search("".join(source)) is None
    arguments = []
    for name, kind in zip(spec.inputs, inputs, strict=True):
        arguments.append(f"const device {kind}* {name}")
        arguments += [f"const __constant int* {name}_shape", f"const __constant int64_t* {name}_strides"]
    arguments += [f"device {kind}* {name}" for name, kind in zip(spec.outputs, outputs, strict=True)]
    kernel = f"__kernel void k({', '.join(arguments)}) {{\n{POSITIONS}{source.body}}}\n"
    assert errors_of(f"{source.header}\n{kernel}") == ""


def types(arrays: Sequence[mx.array]) -> list[str]:
    return [TYPES[array.dtype] for array in arrays]


@pytest.mark.parametrize(
    "text",
    [
        "uint f(uint half) { return half; }",
        "float f(device float* x); float g(threadgroup float* x) { return f(x); }",
        "constexpr int n = 10;",
    ],
)
def test_what_metal_does_not_accept_is_found(text: str) -> None:
    assert "error" in errors_of(text)


@pytest.mark.parametrize("dims", [(128, 128), (64, 256), (80, 80)])
@pytest.mark.parametrize(
    "scheme",
    [
        "turbo4",
        "turbo3",
        "turbo2",
        "turbo6",
        "turbo8v4",
        "turbo0v4",
        "affine4",
        "trellis2",
        "trellis3",
        "trellis4",
    ],
)
def test_attention(scheme: str, dims: tuple[int, int]) -> None:
    cache, queries = filled(scheme, 1, 2, 3, 300, dims, mx.float16, 1)
    plan = plan_for(queries, *cache.sides, False, METAL)
    assert plan is not None
    spec, floats = plan.attend_spec(), {"before", "sizes", "fixed"}
    kinds = ["uint" if "codes" in name else "float" if name in floats else "half" for name in spec.inputs]
    check(spec, kinds, ["float"])
    check(plan.merge_spec(), ["float"] * 3, ["half"])


@pytest.mark.parametrize("dim", [128, 80])
@pytest.mark.parametrize("scheme", ["turbo2", "trellis3", "trellis4v2"])
def test_encoding_in_place(scheme: str, dim: int) -> None:
    vectors = layer(scheme, dim, 16, 16)
    planned = in_place._plan(vectors, False)
    assert planned is not None
    plan, fixed = planned
    stored = [array for one in vectors for array in (*one.taken.memory, *one.store.memory)]
    check(plan.spec, ["float", "float", *types(stored), *types(fixed)], ["float"])


@pytest.mark.parametrize("dim", [128, 80])
@pytest.mark.parametrize(
    "spec",
    [FormatSpec("turbo", 3), FormatSpec("turbo", 4), FormatSpec("turbo", 6), FormatSpec("affine", 8)]
    + [FormatSpec("trellis", bits) for bits in (2, 3, 4)],
)
def test_encoding_and_decoding(spec: FormatSpec, dim: int) -> None:
    x = mx.random.normal((1, 2, 64, dim)).astype(mx.float16)
    format_ = make_format(spec, dim, "key").fit(x, NO_STATISTICS)
    if isinstance(format_, TurboFormat):
        encoding = encode_plan(format_, x)
        assert encoding is not None
        inputs = types(encode_inputs(encoding, format_, x))
        check(encoding.spec, inputs, ["uint", "half"])
    packed = format_.encode(x)
    decoding = decode_plan(format_, (), packed, (), mx.float16)
    assert decoding is not None
    check(decoding.spec, types(decode_inputs(decoding, format_, (), packed, ())), ["half"])


def test_pointers_without_address_space_are_found() -> None:
    for text in ("const float* x", "f(uint* x)", "TqVector<S, 4>* x", "int& x", "(KEY_SCALE*)x"):
        assert UNQUALIFIED.search(text)
        assert not UNQUALIFIED.search(re.sub(r"(\w+(<[^<>]*>)?[*&])", r"thread \1", text))
    assert not UNQUALIFIED.search("x * y + S * 2 && uint(x) & z")


def test_copying_and_joining(monkeypatch: pytest.MonkeyPatch) -> None:
    specs: list[KernelSpec] = []

    def compiled(spec: KernelSpec) -> Callable[..., list[mx.array]]:
        specs.append(spec)
        return lambda **launch: [mx.zeros(MIN_INPUT_SIZE)]

    monkeypatch.setattr(workspace, "kernels", lambda: SimpleNamespace(compiled=compiled))
    after = mx.zeros(MIN_INPUT_SIZE)
    for dtype, width in ((mx.float16, 1), (mx.float16, 80), (mx.uint32, 5)):
        array = mx.zeros((1, 2, 64, width), dtype)
        workspace._compiled_copy.__wrapped__(None, array.shape, dtype, 128)(array, after)
        check(specs.pop(), [TYPES[dtype], "float", "float"], [TYPES[dtype]])
    workspace._compiled_join.__wrapped__(None)(*[after] * workspace.JOINED)
    check(specs.pop(), ["float"] * workspace.JOINED, ["float"])

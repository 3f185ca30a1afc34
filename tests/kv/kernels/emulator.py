"""Runs the kernels' Metal source on the CPU: compiled as C++ with ``metal_shim.h``."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tqchat.kv.codec.turbo import TurboFormat
from tqchat.kv.kernels import source
from tqchat.kv.kernels.device import MIN_INPUT_SIZE, Launch
from tqchat.kv.kernels.encode import EncodePlan, fixed_inputs
from tqchat.kv.kernels.in_place import InPlacePlan, PartPlan

CPLUSPLUS = shutil.which("g++") or shutil.which("clang++")

TYPES = {
    mx.float16: "half",
    mx.bfloat16: "bfloat16_t",
    mx.float32: "float",
    mx.uint32: "uint",
    mx.uint8: "uchar",
    mx.int8: "int8_t",
}


_KINDS = {mx.float16: np.float16, mx.bfloat16: np.uint16, mx.float32: np.float32, mx.uint32: np.uint32}


_ANY_STRIDES = {"queries", "sinks_of", "tail_of", "codes", "gains", "scales", "biases", "x"}


def write_into(array: mx.array, contents: np.ndarray) -> None:
    """Write to the memory of an array, which all that share it then have."""
    viewed = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
    mx.eval(viewed)
    np.asarray(memoryview(viewed))[...] = contents


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """A folder for built kernels of all modules and, where tests run in several processes, all of these."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "kernels"
    folder.mkdir(exist_ok=True)
    return folder


class Everything(set[object]):
    """Plans of which each is trusted."""

    def __contains__(self, plan: object) -> bool:
        return True


class Emulator:
    """Compiles each kernel once, into ``folder``.

    Args:
        checks_alignment: Whether loads that a GPU does not allow, of misaligned vectors, are reported on the
            standard error.
    """

    def __init__(self, folder: Path, checks_alignment: bool = False) -> None:
        self.folder = folder
        self.checks = ["-fsanitize=alignment"] if checks_alignment else []
        self.workspaces: dict[int, tuple[mx.array, np.ndarray]] = {}

    def run(
        self,
        spec: source.KernelSpec,
        inputs: Sequence[mx.array],
        launch: Launch,
        workspace_array: mx.array | None = None,
    ) -> list[mx.array]:
        """The outputs of a launch.

        Args:
            workspace_array: Memory behind ``sizes``; its contents persist between launches with the same
                array.
        """
        library = ctypes.CDLL(str(self._library(spec, inputs, launch)))
        keep: list[object] = []
        arguments: list[int] = []
        tails: list[tuple[mx.array, np.ndarray]] = []
        for name, array in zip(spec.inputs, inputs, strict=True):
            assert name == "sizes" or array.size >= MIN_INPUT_SIZE, f"Metal passes {name} in other memory"
            # Contiguous and 16-byte aligned; strides are in elements, as MLX passes them.
            strided = np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)
            strides = np.array(strided.strides, np.int64) // strided.itemsize
            if name == "sizes":  # read through its strides only
                strides = np.array(memoryview(array).strides, np.int64) // array.itemsize
            in_place = spec.kernel == "encode_in_place" and name != "sizes"  # it writes into inputs
            if in_place or name in _ANY_STRIDES or name.endswith("_token"):
                viewed = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
                mx.eval(viewed)
                strided = np.asarray(memoryview(viewed))
                strides = np.array(memoryview(viewed).strides, np.int64) // strided.itemsize
                keep.append(viewed)
            if in_place or name.endswith(("_codes", "_scales", "_biases", "_tail")):  # required by kernels
                assert memoryview(array).c_contiguous
            if name.endswith("_tail"):  # kernels write into it
                tails.append((array, strided))
            if name == "sizes" and workspace_array is not None:
                # The array is kept too, so that its id is not reused.
                shared = self.workspaces.setdefault(
                    id(workspace_array), (workspace_array, np.array(workspace_array))
                )
                strided = shared[1]
            shape = np.array(array.shape, np.int32)
            keep += [strided, shape, strides]
            arguments += [strided.ctypes.data, shape.ctypes.data, strides.ctypes.data]
        results = []
        for shape_, dtype in zip(launch["output_shapes"], launch["output_dtypes"], strict=True):
            kind = _KINDS[dtype]
            result = np.full(shape_, 12345, kind)
            results.append(result)
            arguments.append(result.ctypes.data)
        groups = [-(-g // t) for g, t in zip(launch["grid"], launch["threadgroup"], strict=True)]
        pointers = (ctypes.c_void_p * len(arguments))(*arguments)
        library.launch(pointers, groups[0], groups[1], launch["threadgroup"][0])
        for array, strided in tails:
            write_into(array, strided)
        return [
            mx.array(r).view(mx.bfloat16) if d == mx.bfloat16 else mx.array(r)
            for r, d in zip(results, launch["output_dtypes"], strict=True)
        ]

    def _library(self, spec: source.KernelSpec, inputs: Sequence[mx.array], launch: Launch) -> Path:
        kernel_source = spec.source("metal")
        lines = ['#include "metal_shim.h"', kernel_source.header, "static void kernel(void** a) {"]
        at = 0
        for name, array in zip(spec.inputs, inputs, strict=True):
            lines += [
                f"    const {TYPES[array.dtype]}* {name} = (const {TYPES[array.dtype]}*)a[{at}];",
                f"    const int* {name}_shape = (const int*)a[{at + 1}]; (void){name}_shape;",
                f"    const int64_t* {name}_strides = (const int64_t*)a[{at + 2}];",
            ]
            at += 3
        for name, dtype in zip(spec.outputs, launch["output_dtypes"], strict=True):
            lines.append(f"    {TYPES[dtype]}* {name} = ({TYPES[dtype]}*)a[{at}];")
            at += 1
        # Static variables stand for threadgroup memory, which all fibers share.
        lines += [re.sub(r"^TQ_SHARED ", "static ", kernel_source.body, flags=re.MULTILINE), "}"]
        lines += [
            'extern "C" void launch(void** a, int x, int y, int threads)',
            "{ shim::run(kernel, a, x, y, threads); }",
        ]
        program = "\n".join(lines)
        stem = f"{spec.kernel}-{hashlib.sha256(program.encode()).hexdigest()[:16]}"
        built = self.folder / f"{stem}.so"
        if not built.exists():
            # Other processes may build the same.
            code = self.folder / f"{stem}-{os.getpid()}.cpp"
            building = code.with_suffix(".so")
            code.write_text(program)
            assert CPLUSPLUS is not None
            here = Path(__file__).parent
            command = [
                CPLUSPLUS,
                "-std=c++17",
                "-O1",
                "-shared",
                "-fPIC",
                "-w",
                *self.checks,
                f"-I{here}",
                str(code),
                "-o",
                str(building),
            ]
            subprocess.run(command, check=True, capture_output=True, text=True)
            building.replace(built)
        return built


def assert_same_in_place(
    emulator: Emulator, plan: EncodePlan, format_: TurboFormat, x: mx.array, expected: Sequence[mx.array]
) -> None:
    """The kernel that writes into a store has the same codes there, and nothing else is written."""
    fixed = fixed_inputs(plan, format_)
    part = PartPlan(plan, False, tuple((name, index) for index, name in enumerate(fixed)))
    in_place = InPlacePlan((part,))
    batch, heads, tokens, _ = x.shape
    stored = [mx.full((batch, heads, tokens + 9, one.shape[3]), 7, one.dtype) for one in expected]
    sizes = mx.as_strided(mx.zeros(8), [1] * 3, [tokens, (tokens + 9) | 5 << 32, tokens])
    inputs = [mx.zeros(8), sizes, mx.contiguous(x), *stored, *fixed.values()]
    emulator.run(in_place.spec, inputs, in_place.launch(batch * heads, [tokens]))
    for array, block in zip(stored, expected, strict=True):
        around = mx.full((batch, heads, 5, block.shape[3]), 7, block.dtype)
        whole = mx.concatenate([around, block, around[:, :, :4]], axis=2)
        assert mx.array_equal(array.view(mx.uint16), whole.view(mx.uint16))

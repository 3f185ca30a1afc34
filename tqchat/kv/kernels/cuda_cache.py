"""Compiled CUDA kernels on disk. MLX keeps those of its own there, but compiles others anew in each process.

MLX looks for every kernel in a folder before it compiles it, under a name made from the kernel's text. So
ours are compiled here, with NVIDIA's run-time compiler, and put there. Where that is not possible, MLX
compiles them.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import mlx.core as mx

from tqchat.files import write_atomically

FOLDER_VARIABLE = "MLX_PTX_CACHE_DIR"
"""MLX's own variable for the folder of compiled kernels."""

_TYPES = {
    mx.bool_: "bool",
    mx.uint8: "uint8_t",
    mx.uint16: "uint16_t",
    mx.uint32: "uint32_t",
    mx.uint64: "uint64_t",
    mx.int8: "int8_t",
    mx.int16: "int16_t",
    mx.int32: "int32_t",
    mx.int64: "int64_t",
    mx.float16: "__half",
    mx.bfloat16: "__nv_bfloat16",
    mx.float32: "float",
}
_DESCRIPTIONS = {"Shape": "_shape", "Strides": "_strides", "int": "_ndim"}
"""What MLX passes of an input if the body names it, by type."""

_UTILITIES = """#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;
namespace mlx::core::cu {
template <typename T>
struct Numbers {
    T values[10];
    __device__ T operator[](int axis) const { return values[axis]; }
};
using Shape = Numbers<int32_t>;
using Strides = Numbers<int64_t>;
}
"""
_HEADERS = {
    "mlx/backend/cuda/device/utils.cuh": _UTILITIES,
    "cooperative_groups.h": "#pragma once\nnamespace cooperative_groups {}\n",
}
"""In place of MLX's headers, which are inside its library and take most of the compiler's time."""

_log = logging.getLogger(__name__)
_lock = threading.Lock()


class CompilerError(Exception):
    """The run-time compiler is missing or refused a kernel."""


def generated_text(
    name: str,
    header: str,
    body: str,
    inputs: Sequence[tuple[str, mx.array]],
    outputs: Sequence[tuple[str, mx.Dtype]],
) -> str:
    """The text that MLX makes of a kernel.

    Args:
        header: Text before the function; ``body`` the text of the function.
        inputs: Names and arrays, of which dtype and number of dimensions count.
        outputs: Names and dtypes.
    """
    arguments = []
    for label, array in inputs:
        arguments.append(f"    const {_TYPES[array.dtype]}* {label}")
        for kind, suffix in _DESCRIPTIONS.items():
            if array.ndim and f"{label}{suffix}" in body:
                arguments.append(f"    const __grid_constant__ {kind} {label}{suffix}")
    arguments += [f"    {_TYPES[dtype]}* {label}" for label, dtype in outputs]
    return (
        '\n#include "mlx/backend/cuda/device/utils.cuh"\n\n#include <cooperative_groups.h>\n\n'
        f"{header}namespace mlx::core::cu {{\n\nnamespace cg = cooperative_groups;\n\n"
        f"__global__ void custom_kernel_{name}(\n"
        + ",\n".join(arguments)
        + f") {{\n{body}\n}}\n\n}} // namespace mlx::core::cu\n"
    )


@lru_cache(maxsize=256)
def keep_compiled(name: str, text: str) -> None:
    """Compile a kernel into the folder in which MLX looks for it, if it is not there and can be compiled."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        return
    file = Path(folder) / f"custom_kernel_{name}_{string_hash(text.encode()):x}.ptx"
    function = f"mlx::core::cu::custom_kernel_{name}"
    with _lock:
        if file.exists():
            return
        try:
            machine_code, symbol = compiled(text, function, _architecture(), _include_folders())
            # MLX reads the names once it has found the code.
            write_atomically(file.with_suffix(".txt"), f"{function}\t{symbol}\n".encode())
            write_atomically(file, machine_code)
        except (CompilerError, OSError) as error:
            _log.info("MLX compiles %s: %s", name, error)


def compiled(text: str, function: str, architecture: str, folders: Sequence[str]) -> tuple[bytes, str]:
    """Machine code (a cubin) of a kernel, and the symbol of its function.

    Args:
        function: The kernel's qualified name in the text.
        architecture: Such as ``sm_90a``.
        folders: Where the CUDA headers are.

    Raises:
        CompilerError: if the compiler is missing or refuses the text.
    """
    library = _library()
    program = ctypes.c_void_p()
    count = len(_HEADERS)
    _call(
        library.nvrtcCreateProgram,
        ctypes.byref(program),
        text.encode(),
        b"kernel.cu",
        count,
        (ctypes.c_char_p * count)(*(content.encode() for content in _HEADERS.values())),
        (ctypes.c_char_p * count)(*(name.encode() for name in _HEADERS)),
    )
    try:
        _call(library.nvrtcAddNameExpression, program, function.encode())
        options = [
            "--device-as-default-execution-space",
            f"--gpu-architecture={architecture}",
            *(f"--include-path={folder}" for folder in folders),
        ]
        encoded = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if library.nvrtcCompileProgram(program, len(options), encoded):
            raise CompilerError(_message(library, program))
        symbol = ctypes.c_char_p()
        _call(library.nvrtcGetLoweredName, program, function.encode(), ctypes.byref(symbol))
        size = ctypes.c_size_t()
        _call(library.nvrtcGetCUBINSize, program, ctypes.byref(size))
        code = ctypes.create_string_buffer(size.value)
        _call(library.nvrtcGetCUBIN, program, code)
        return code.raw, (symbol.value or b"").decode()
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def string_hash(content: bytes) -> int:
    """``std::hash`` of a string in libstdc++, by which MLX names kernels: MurmurHash64A."""
    multiplier, mask = 0xC6A4A7935BD1E995, (1 << 64) - 1

    def mixed(value: int) -> int:
        value = value * multiplier & mask
        return (value ^ value >> 47) * multiplier & mask

    found = 0xC70F6907 ^ (len(content) * multiplier & mask)
    whole = len(content) & ~7
    for start in range(0, whole, 8):
        found = (found ^ mixed(int.from_bytes(content[start : start + 8], "little"))) * multiplier & mask
    if rest := content[whole:]:
        found = (found ^ int.from_bytes(rest, "little")) * multiplier & mask
    found = (found ^ found >> 47) * multiplier & mask
    return found ^ found >> 47


def _architecture() -> str:
    info: dict[str, Any] = mx.device_info()
    major, minor = (int(info[f"compute_capability_{part}"]) for part in ("major", "minor"))
    return f"sm_{major}{minor}{'a' if major >= 9 else ''}"


def _include_folders() -> list[str]:
    """Folders in which MLX looks for headers: its own, then that of the CUDA package or of the toolkit."""
    package = Path(mx.__file__).resolve().parent
    own = package / "include"
    toolkit = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    cuda = [*sorted((package.parent / "nvidia").glob("cu*/include")), Path(toolkit) / "include"]
    return [str(own), str(own / "cccl"), *(str(folder) for folder in cuda if folder.is_dir())][:3]


@lru_cache(maxsize=1)
def _library() -> Any:
    """NVIDIA's run-time compiler, which MLX has loaded."""
    for name in ("libnvrtc.so.13", "libnvrtc.so.12"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise CompilerError("NVIDIA's run-time compiler is not loaded")


def _call(function: Any, *arguments: Any) -> None:
    if status := function(*arguments):
        raise CompilerError(f"{function.__name__} failed with status {status}")


def _message(library: Any, program: ctypes.c_void_p) -> str:
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value + 1)
    library.nvrtcGetProgramLog(program, log)
    return log.value.decode(errors="replace").strip()[:2000]

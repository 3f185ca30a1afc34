"""CUDA kernels are compiled where MLX looks for them."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from tqchat.kv.kernels import cuda_cache
from tqchat.kv.kernels.cuda_cache import CompilerError, compiled, generated_text, keep_compiled, string_hash

BODY = "output[0] = x[0] * x_strides[0] * rows_shape[0];"
TEXT = """
#include "mlx/backend/cuda/device/utils.cuh"

#include <cooperative_groups.h>

// before
namespace mlx::core::cu {

namespace cg = cooperative_groups;

__global__ void custom_kernel_test(
    const __half* x,
    const __grid_constant__ Strides x_strides,
    const uint32_t* rows,
    const __grid_constant__ Shape rows_shape,
    const float* one,
    float* output,
    __half* rest) {
output[0] = x[0] * x_strides[0] * rows_shape[0];
}

} // namespace mlx::core::cu
"""


def text() -> str:
    inputs = [
        ("x", mx.zeros((2, 3), dtype=mx.float16)),
        ("rows", mx.zeros(4, dtype=mx.uint32)),
        ("one", mx.array(1.0)),
    ]
    return generated_text("test", "// before\n", BODY, inputs, [("output", mx.float32), ("rest", mx.float16)])


def test_the_text_is_that_of_mlx() -> None:
    assert text() == TEXT


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", 0x553E93901E462A6E),
        (b"a", 0x454DDEE488C1ED6B),
        (b"1234567", 0x6D7A4E79E8A2CBF6),
        (b"12345678", 0x8C5B90A33A04DCA5),
        (b"123456789", 0xAAEB28D3D5F165C0),
        (b"\xff" * 1000, 0x3025E966997A6379),
    ],
)
def test_the_hash_is_that_of_the_cpp_library(content: bytes, expected: int) -> None:
    """Values printed by a program that libstdc++ was linked to."""
    assert string_hash(content) == expected


def test_kernels_are_written_under_the_names_that_mlx_reads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []

    def compile_(source: str, function: str, architecture: str, folders: list[str]) -> tuple[bytes, str]:
        asked.append(function)
        return b"code", "_symbol"

    monkeypatch.setattr(cuda_cache, "compiled", compile_)
    monkeypatch.setattr(cuda_cache, "_architecture", lambda: "sm_90a")
    monkeypatch.setenv(cuda_cache.FOLDER_VARIABLE, str(tmp_path))
    for _ in range(2):
        keep_compiled.cache_clear()  # as in another process
        keep_compiled("test", TEXT)
    name = f"custom_kernel_test_{string_hash(TEXT.encode()):x}"
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {
        f"{name}.ptx": b"code",
        f"{name}.txt": b"mlx::core::cu::custom_kernel_test\t_symbol\n",
    }
    assert asked == ["mlx::core::cu::custom_kernel_test"], "compiled once"


def test_without_a_compiler_or_a_folder_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing() -> None:
        raise CompilerError("none here")

    monkeypatch.setattr(cuda_cache, "_library", missing)
    monkeypatch.setattr(cuda_cache, "_architecture", lambda: "sm_90a")
    for folder in (tmp_path, tmp_path / "gone"):
        monkeypatch.setenv(cuda_cache.FOLDER_VARIABLE, str(folder))
        keep_compiled.cache_clear()
        keep_compiled("test", TEXT)
    monkeypatch.delenv(cuda_cache.FOLDER_VARIABLE)
    keep_compiled("other", TEXT)
    assert not list(tmp_path.iterdir())


def test_the_compiler_makes_machine_code() -> None:
    try:
        cuda_cache._library()
    except CompilerError:
        pytest.skip("NVIDIA's run-time compiler is not installed here")
    folders, function = cuda_cache._include_folders(), "mlx::core::cu::custom_kernel_test"
    source = TEXT.replace("x[0] * ", "float(x[0]) * ")
    code, symbol = compiled(source, function, "sm_80", folders)
    assert code.startswith(b"\x7fELF") and symbol in code.decode("latin-1")
    with pytest.raises(CompilerError, match="output_"):
        compiled(
            source.replace("output[0]", "output_[0]"), "mlx::core::cu::custom_kernel_test", "sm_80", folders
        )

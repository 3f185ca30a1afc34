"""The machine: device name, library versions and copy bandwidth."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

import time
from statistics import median

import mlx.core as mx

from tqchat.engine import backend

COPY_BYTES = {"cpu": 256 << 20, "metal": 1 << 30, "cuda": 4 << 30}
"""Array size of the bandwidth test, far larger than any processor cache."""

ROUNDS = 5


def device() -> str:
    """Device, backend and versions in one line."""
    machine = backend.prepare()
    return f"{machine.device} ({machine.name}), MLX {machine.mlx_version}, mlx-lm {machine.mlx_lm_version}"


def copy_bandwidth() -> float:
    """Bytes per second, reads plus writes, of a large elementwise operation."""
    source = mx.zeros((COPY_BYTES[backend.prepare().name] // 4,), dtype=mx.float32)
    mx.eval(source)
    times = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        mx.eval(source + 1.0)
        times.append(time.perf_counter() - began)
    mx.clear_cache()
    return 2 * source.nbytes / median(times[1:])

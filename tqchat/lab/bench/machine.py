"""The machine itself: its name, and how fast it copies."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

import time
from statistics import median

import mlx.core as mx

from tqchat.engine import backend

COPIED = {"cpu": 256 << 20, "metal": 1 << 30, "cuda": 4 << 30}
"""Bytes that are copied to tell the bandwidth; far more than caches hold."""

ROUNDS = 5


def device() -> str:
    """What computes here, and with which MLX."""
    machine = backend.prepare()
    return f"{machine.device} ({machine.name}), MLX {machine.mlx_version}, mlx-lm {machine.mlx_lm_version}"


def copy_bandwidth() -> float:
    """Bytes a second that a large elementwise operation reads and writes."""
    source = mx.zeros((COPIED[backend.prepare().name] // 4,), dtype=mx.float32)
    mx.eval(source)
    times = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        mx.eval(source + 1.0)
        times.append(time.perf_counter() - began)
    mx.clear_cache()
    return 2 * source.nbytes / median(times[1:])

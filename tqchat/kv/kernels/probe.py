"""Verifies the kernels on a few tokens, for ``tqchat doctor``."""

from __future__ import annotations

import mlx.core as mx

from tqchat.kv.cache import SchemeCache
from tqchat.kv.kernels.device import kernels
from tqchat.kv.scheme import parse_scheme

SCHEMES = ("turbo4", "turbo8v4", "trellis3")


def probe() -> str:
    """Which kernels this device uses, or why it uses plain operations, in one line."""
    device_kernels = kernels()
    if device_kernels is None:
        return "none: plain operations on a CPU"
    for name in SCHEMES:
        cache = SchemeCache(parse_scheme(name))
        vectors = mx.random.normal((1, 2, 320, 128)).astype(mx.float16)
        for part in (vectors[:, :, :-1], vectors[:, :, -1:]):
            cache.update_and_fetch(part, part)
        # As in decode: one more token, pending until the kernel writes it.
        for side in cache.sides:
            side.append(vectors[:, :, -1:])
        queries = mx.random.normal((1, 8, 1, 128)).astype(mx.float16)
        mx.eval([cache.attend(queries, 0.1, None) for _ in range(2)], cache.decoded())
    language = {"metal": "Metal", "cuda": "CUDA"}[device_kernels.language] + (
        " with tensor cores" if device_kernels.tensor_cores else ""
    )
    if not device_kernels.refused:
        return f"{language}: attention, encoding and decoding agree with plain operations"
    reasons = "; ".join(dict.fromkeys(device_kernels.refused.values()))
    refused, trusted = len(device_kernels.refused), len(device_kernels.trusted)
    return f"{language}: {refused} of {refused + trusted} not used ({reasons})"

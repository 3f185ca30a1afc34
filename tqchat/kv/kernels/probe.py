"""The kernels tried out on a few tokens, for ``tqchat doctor``."""

from __future__ import annotations

import mlx.core as mx

from tqchat.kv.cache import SchemeCache
from tqchat.kv.kernels.device import kernels
from tqchat.kv.scheme import parse_scheme

SCHEMES = ("turbo4", "turbo8v4")


def probe() -> str:
    """Which kernels this device uses, in one line, or why it uses plain operations."""
    made = kernels()
    if made is None:
        return "none: plain operations on a CPU"
    for name in SCHEMES:
        cache = SchemeCache(parse_scheme(name))
        vectors = mx.random.normal((1, 2, 256, 128)).astype(mx.float16)
        for part in (vectors[:, :, :-1], vectors[:, :, -1:]):
            cache.update_and_fetch(part, part)
        # As it is while a reply is generated: one more token, which waits for the kernel to write it.
        for side in cache.sides:
            side.append(vectors[:, :, -1:])
        queries = mx.random.normal((1, 8, 1, 128)).astype(mx.float16)
        mx.eval([cache.attend(queries, 0.1, None) for _ in range(2)])
    language = {"metal": "Metal", "cuda": "CUDA"}[made.language] + (
        " with tensor cores" if made.tensor_cores else ""
    )
    if not made.refused:
        return f"{language}: attention and encoding agree with plain operations"
    reasons = "; ".join(dict.fromkeys(made.refused.values()))
    return f"{language}: {len(made.refused)} of {len(made.refused) + len(made.trusted)} not used ({reasons})"

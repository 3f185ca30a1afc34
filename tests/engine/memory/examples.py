"""A model's shapes and quality profiles, made up."""

from __future__ import annotations

from tqchat.engine.memory.quality_profile import Profile, SchemeQuality
from tqchat.engine.memory.shapes import bytes_by_scheme
from tqchat.kv.memory import LayerReport, MemoryReport


def profile(**klds: float) -> Profile:
    rows = tuple(SchemeQuality(name, kld, kld, 1.0, 0, 0, 1.0) for name, kld in klds.items())
    return Profile("model", "f" * 64, 1, 2048, rows)


def layer(index: int, tokens: int = 1, kind: str = "full") -> LayerReport:
    size = tokens * 8 * 256 * 2
    reason = None if kind == "full" else "kept as it is"
    own = (
        index,
        kind,
        "fp16",
        reason,
        tokens,
        size // 2,
        size // 2,
        size,
        size,
        size,
        0,
        tokens,
        0,
        8,
        128,
        128,
    )
    return LayerReport(*own)  # type: ignore[arg-type]


SHAPES = MemoryReport("fp16", 1, tuple(layer(i) for i in range(32)))
NEEDS = bytes_by_scheme(SHAPES, 8192)

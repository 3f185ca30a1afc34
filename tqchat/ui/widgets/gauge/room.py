"""How many more tokens the memory budget holds."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from tqchat.engine.memory.shapes import bytes_by_scheme
from tqchat.kv.memory import MemoryReport

_SPAN = 4096


def room(report: MemoryReport, budget: int) -> tuple[int, int] | None:
    """Tokens that still fit into ``budget`` bytes under the scheme in force, and under FP16.

    Reckoned from the bytes held now and what each further token takes in this cache's own layers; ``None``
    where that cannot be said: no token yet, or layers that do not grow.
    """
    if not report.tokens:
        return None
    ours, raw = _bytes_per_token(_shape(report))
    if ours <= 0 or raw <= 0:
        return None
    return max(0, int((budget - report.bytes) / ours)), max(0, int((budget - report.fp16_bytes) / raw))


def _shape(report: MemoryReport) -> MemoryReport:
    """The report of one token in the same layers: equal, and so reckoned once, while a cache grows."""
    return replace(
        report,
        tokens=1,
        shared_bytes=0,
        layers=tuple(
            replace(
                layer,
                tokens=min(layer.tokens, 1),
                bytes=layer.bytes // max(layer.tokens, 1),
                key_bytes=0,
                value_bytes=0,
                allocated_bytes=0,
                fp16_bytes=0,
                packed_tokens=0,
                tail_tokens=0,
                sink_tokens=0,
            )
            for layer in report.layers
        ),
    )


@lru_cache(maxsize=16)
def _bytes_per_token(shape: MemoryReport) -> tuple[float, float]:
    """What a further token takes under the scheme in force and under FP16; zeros for an unlisted scheme."""
    # Far enough out that tail and sinks are full.
    near, far = bytes_by_scheme(shape, _SPAN), bytes_by_scheme(shape, 2 * _SPAN)
    if shape.scheme not in near:
        return 0.0, 0.0
    ours, raw = ((far[name] - near[name]) / _SPAN for name in (shape.scheme, "fp16"))
    return ours, raw

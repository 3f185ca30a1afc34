"""Tokens that still fit into the memory budget."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from tqchat.engine.memory.shapes import bytes_by_scheme
from tqchat.kv.memory import MemoryReport

_PROBE_TOKENS = 4096


class RemainingTokens(NamedTuple):
    """Tokens that still fit under the active scheme, and under FP16."""

    in_scheme: int
    in_fp16: int

    def within(self, context_left: int | None) -> tuple[RemainingTokens, bool]:
        """The tokens that fit into the context, too; whether that, not memory, is what ends first."""
        if context_left is None or context_left >= self.in_scheme:
            return self, False
        left = max(0, context_left)
        return RemainingTokens(left, min(left, self.in_fp16)), True


def remaining_tokens(report: MemoryReport, budget: int) -> RemainingTokens | None:
    """Tokens that still fit into ``budget`` bytes.

    Computed from the bytes held now and the bytes per further token of this cache's layers; ``None`` without
    tokens or if no layer grows.
    """
    if not report.tokens:
        return None
    ours, raw = _bytes_per_token(_shape(report))
    if ours <= 0 or raw <= 0:
        return None
    return RemainingTokens(
        max(0, int((budget - report.bytes) / ours)), max(0, int((budget - report.fp16_bytes) / raw))
    )


def _shape(report: MemoryReport) -> MemoryReport:
    """The report reduced to one token per layer: it stays equal while a cache grows, so it is a cache key."""
    return replace(
        report,
        tokens=1,
        shared_bytes=0,
        checkpoints=(),
        earlier=frozenset(),
        draft=None if report.draft is None else _shape(report.draft),
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
                fine_tokens=0,
                tail_tokens=0,
                sink_tokens=0,
                rounded_tokens=0,
                rounded_bits=(16, 16),
                rounded_times=0,
            )
            for layer in report.layers
        ),
    )


@lru_cache(maxsize=16)
def _bytes_per_token(shape: MemoryReport) -> tuple[float, float]:
    """Bytes per further token under the active scheme and FP16; zeros for an unlisted scheme."""
    # Both lengths are long enough that tail and sinks are full.
    near, far = bytes_by_scheme(shape, _PROBE_TOKENS), bytes_by_scheme(shape, 2 * _PROBE_TOKENS)
    if shape.scheme not in near:
        return 0.0, 0.0
    ours, raw = ((far[name] - near[name]) / _PROBE_TOKENS for name in (shape.scheme, "fp16"))
    return ours, raw

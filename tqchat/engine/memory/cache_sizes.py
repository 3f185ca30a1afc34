"""Predicted cache sizes at usual context lengths, and whether they fit this machine. Pure Python, no MLX."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from tqchat.engine.events import ModelEstimate
from tqchat.engine.memory.shapes import at_length
from tqchat.kv.memory import LayerKind, predict_bytes
from tqchat.kv.scheme import FP16, Scheme

Verdict = Literal["fits", "tight", "does not fit"]
CONTEXT_TOKENS = (8_192, 32_768)


@dataclass(frozen=True)
class CacheSize:
    """Bytes of a cache of ``tokens`` tokens under a scheme, and under FP16."""

    tokens: int
    bytes: int
    fp16_bytes: int
    verdict: Verdict
    fp16_verdict: Verdict


@dataclass(frozen=True)
class LayerKindSize:
    """Bytes of all layers of one kind."""

    kind: LayerKind
    window: int | None
    layers: int
    bytes: int


def cache_sizes(estimate: ModelEstimate, scheme: Scheme) -> list[CacheSize]:
    """The cache at 8k and 32k tokens, or at the model's context limit if that is shorter."""
    limit = estimate.context_limit
    lengths = sorted({min(length, limit) if limit else length for length in CONTEXT_TOKENS})
    return [_size(estimate, tokens, scheme) for tokens in lengths]


def _size(estimate: ModelEstimate, tokens: int, scheme: Scheme) -> CacheSize:
    assert estimate.shapes is not None
    layers = at_length(estimate.shapes, tokens)
    packed, raw = predict_bytes(layers, scheme), predict_bytes(layers, FP16)
    return CacheSize(tokens, packed, raw, verdict(estimate, packed), verdict(estimate, raw))


def verdict(estimate: ModelEstimate, cache_bytes: int) -> Verdict:
    """``fits`` within the memory budget; ``tight`` if only in all the memory beside the weights."""
    if cache_bytes <= estimate.memory_budget:
        return "fits"
    return "tight" if estimate.weight_bytes + cache_bytes <= estimate.memory_bytes else "does not fit"


def sizes_by_layer_kind(estimate: ModelEstimate, tokens: int, scheme: Scheme) -> list[LayerKindSize]:
    """Bytes at ``tokens`` tokens of each kind of layer."""
    assert estimate.shapes is not None
    report = at_length(estimate.shapes, tokens)
    found = []
    for kind, window in dict.fromkeys((layer.kind, layer.window) for layer in report.layers):
        layers = tuple(layer for layer in report.layers if (layer.kind, layer.window) == (kind, window))
        size = predict_bytes(replace(report, layers=layers), scheme)
        found.append(LayerKindSize(kind, window, len(layers), size))
    return found

"""How long a conversation a model has room for on this machine, under which scheme. Pure Python, no MLX."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from tqchat.engine.chooser import stretched
from tqchat.engine.events import ModelEstimate
from tqchat.kv.memory import LayerKind, predict_bytes
from tqchat.kv.scheme import FP16, Scheme

Verdict = Literal["fits", "tight", "does not fit"]
LENGTHS = (8_192, 32_768)
"""Tokens that a cache is reckoned at, beside the model's own limit."""


@dataclass(frozen=True)
class CacheSize:
    """A cache of ``tokens`` tokens: under a scheme, and under FP16."""

    tokens: int
    bytes: int
    fp16_bytes: int
    verdict: Verdict
    fp16_verdict: Verdict


@dataclass(frozen=True)
class Kind:
    """The layers of one kind together, and what they hold at a length."""

    kind: LayerKind
    window: int | None
    layers: int
    bytes: int


def sizes(estimate: ModelEstimate, scheme: Scheme) -> list[CacheSize]:
    """The cache at 8k and 32k tokens, or at the model's limit where that is shorter."""
    limit = estimate.context_limit
    lengths = sorted({min(length, limit) if limit else length for length in LENGTHS})
    return [_size(estimate, tokens, scheme) for tokens in lengths]


def _size(estimate: ModelEstimate, tokens: int, scheme: Scheme) -> CacheSize:
    assert estimate.shapes is not None
    longer = stretched(estimate.shapes, tokens)
    ours, raw = predict_bytes(longer, scheme), predict_bytes(longer, FP16)
    return CacheSize(tokens, ours, raw, verdict(estimate, ours), verdict(estimate, raw))


def verdict(estimate: ModelEstimate, cache_bytes: int) -> Verdict:
    """Whether a cache fits beside the weights: within its share, in what is left at all, or not."""
    if cache_bytes <= estimate.cache_budget:
        return "fits"
    return "tight" if estimate.weight_bytes + cache_bytes <= estimate.memory_bytes else "does not fit"


def kinds(estimate: ModelEstimate, tokens: int, scheme: Scheme) -> list[Kind]:
    """The model's layers by kind, with what each kind takes at ``tokens`` tokens."""
    assert estimate.shapes is not None
    longer = stretched(estimate.shapes, tokens)
    found = []
    for kind, window in dict.fromkeys((layer.kind, layer.window) for layer in longer.layers):
        own = tuple(layer for layer in longer.layers if (layer.kind, layer.window) == (kind, window))
        taken = predict_bytes(replace(longer, layers=own), scheme)
        found.append(Kind(kind, window, len(own), taken))
    return found

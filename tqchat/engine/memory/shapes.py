"""The shapes of a model's caches, and their bytes at any length."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tqchat.kv.memory import LayerReport, MemoryReport, predict_bytes
from tqchat.kv.scheme import SCHEMES

ASSUMED_WINDOW_TOKENS = 4096
"""Window of a sliding-window layer whose report does not state one."""


def cache_shapes(model: Any) -> MemoryReport:
    """Report on a cache of one token. The graph that would fill it is built but never evaluated."""
    import mlx.core as mx

    from tqchat import kv

    cache = kv.make_prompt_cache(model, "fp16")
    model(mx.array([[0]]), cache=cache)
    return kv.memory_report(cache)


def at_length(shapes: MemoryReport, tokens: int) -> MemoryReport:
    """The same layers at ``tokens`` tokens, for ``predict_bytes``.

    Args:
        shapes: Report on any shorter cache of the model that is not empty.
    """
    layers = tuple(_layer_at(layer, tokens) for layer in shapes.layers)
    draft = None if shapes.draft is None else at_length(shapes.draft, tokens)
    return replace(shapes, tokens=tokens, layers=layers, draft=draft)


def bytes_by_scheme(shapes: MemoryReport, tokens: int) -> dict[str, int]:
    """Predicted bytes of ``tokens`` tokens under each listed scheme."""
    longer = at_length(shapes, tokens)
    return {scheme.name: predict_bytes(longer, scheme) for scheme in SCHEMES}


def _layer_at(layer: LayerReport, tokens: int) -> LayerReport:
    if layer.reason is None or layer.window is not None:
        return replace(layer, tokens=tokens)
    if not layer.tokens:
        return layer
    count = min(tokens, ASSUMED_WINDOW_TOKENS) if layer.kind == "sliding" else tokens
    return replace(layer, tokens=count, bytes=layer.bytes * count // layer.tokens)

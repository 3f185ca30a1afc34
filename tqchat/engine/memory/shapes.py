"""The shapes of a model's caches, and their bytes at any length."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tqchat.kv.attention.per_model import PerModel
from tqchat.kv.memory import LayerReport, MemoryReport, predict_bytes
from tqchat.kv.scheme import FP16, SCHEMES

ASSUMED_WINDOW_TOKENS = 4096
"""Window of a sliding-window layer whose report does not state one."""


_shapes = PerModel[MemoryReport]()


def cache_shapes(model: Any) -> MemoryReport:
    """Report on a model's cache of one token."""
    return _shapes.get(model, lambda: _measured(model))


def _measured(model: Any) -> MemoryReport:
    """The graph that would fill the cache is built but never evaluated."""
    import mlx.core as mx

    from tqchat import kv

    cache = kv.make_prompt_cache(model, "fp16")
    model(mx.array([[0]]), cache=cache)
    return kv.memory_report(cache)


def uniform_shapes(
    layers: int, kv_heads: int, head_dim: int, window: int = 0, full_every: int = 1
) -> MemoryReport:
    """What ``cache_shapes`` reports for a model whose layers are alike, without building it.

    Args:
        window: Tokens that a sliding-window layer keeps; 0 if there are none.
        full_every: With a window, every n-th layer has full attention.
    """
    vector_bytes = 2 * kv_heads * head_dim

    def layer(index: int) -> LayerReport:
        slides = bool(window) and (index + 1) % full_every != 0
        return LayerReport(
            index=index,
            kind="sliding" if slides else "full",
            scheme=FP16.name,
            reason=None,
            tokens=1,
            key_bytes=vector_bytes,
            value_bytes=vector_bytes,
            bytes=2 * vector_bytes,
            allocated_bytes=2 * vector_bytes,
            fp16_bytes=2 * vector_bytes,
            packed_tokens=0,
            tail_tokens=1,
            sink_tokens=0,
            heads=kv_heads,
            key_dim=head_dim,
            value_dim=head_dim,
            window=window if slides else None,
        )

    return MemoryReport(FP16.name, 1, tuple(layer(index) for index in range(layers)))


def at_length(shapes: MemoryReport, tokens: int) -> MemoryReport:
    """The same layers at ``tokens`` tokens, for ``predict_bytes``.

    Args:
        shapes: Report on any shorter cache of the model that is not empty.
    """
    layers = tuple(_layer_at(layer, tokens) for layer in shapes.layers)
    draft = None if shapes.draft is None else at_length(shapes.draft, tokens)
    return replace(shapes, tokens=tokens, layers=layers, draft=draft)


def predicted_report(shapes: MemoryReport, tokens: int) -> MemoryReport:
    """A report on an FP16 cache of ``tokens`` tokens that does not exist; its scheme has no name."""
    longer = at_length(shapes, tokens)

    def with_bytes(layer: LayerReport) -> LayerReport:
        size = predict_bytes(replace(longer, layers=(layer,), draft=None), FP16)
        return replace(layer, bytes=size, allocated_bytes=size, fp16_bytes=size)

    return replace(longer, scheme="", layers=tuple(map(with_bytes, longer.layers)))


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

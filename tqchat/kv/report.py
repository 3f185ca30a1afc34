"""Counting the bytes of a live cache from its arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models import cache as mlx_cache

from tqchat.kv.cache import ROLES, SchemeCache
from tqchat.kv.memory import LayerKind, LayerReport, MemoryReport
from tqchat.kv.prompt_cache import LatentCache, flat_layers
from tqchat.kv.scheme import FP16, Scheme, parse_scheme
from tqchat.kv.window import WindowCache, raw_window_reason


def memory_report(cache: list[Any], scheme: str | Scheme | None = None) -> MemoryReport:
    """Bytes of a prompt cache by layer, compared with FP16 for the same layers and tokens.

    Args:
        scheme: The requested scheme, shown in the report; by default that of the layers.
    """
    layers = flat_layers(cache)
    scheme_caches = [layer for layer in layers if isinstance(layer, SchemeCache)]
    if scheme is None:
        scheme = scheme_caches[0].scheme if scheme_caches else FP16
    elif isinstance(scheme, str):
        scheme = parse_scheme(scheme)
    reports = layer_reports(dict(enumerate(layers)), scheme)
    shared = {id(array): array.nbytes for layer in scheme_caches for array in layer.shared_arrays}
    holding = [layer for layer in scheme_caches if not layer.empty()]
    return MemoryReport(
        scheme=scheme.name,
        tokens=max((layer.tokens for layer in reports), default=0),
        layers=reports,
        shared_bytes=sum(shared.values()),
        earlier=frozenset.intersection(*(layer.earlier.formats for layer in holding))
        if holding
        else frozenset(),
    )


def layer_reports(layers: Mapping[int, Any], scheme: Scheme = FP16) -> tuple[LayerReport, ...]:
    """Reports on some of the layers of a cache, by index in ``flat_layers``."""
    return tuple(_layer_report(index, layer, scheme) for index, layer in layers.items())


def _layer_report(index: int, layer: Any, scheme: Scheme) -> LayerReport:
    if isinstance(layer, SchemeCache):
        return _scheme_layer(index, layer)
    if isinstance(layer, mlx_cache.ArraysCache):
        return _recurrent_layer(index, layer)
    return _mlx_lm_layer(index, layer, scheme)


def _scheme_layer(index: int, layer: SchemeCache) -> LayerReport:
    keys, values = layer.sides
    key_bytes = keys.bytes + keys.working_bytes + layer.statistics_bytes
    value_bytes = values.bytes + values.working_bytes
    carried = [
        layer.rounding[role].at_most(side.spec.bits) for role, side in zip(ROLES, layer.sides, strict=True)
    ]
    batch, heads = keys.shape
    heads *= batch
    packed_side = max(layer.sides, key=lambda side: side.encoded)
    window = layer.max_size if isinstance(layer, WindowCache) else None
    return LayerReport(
        index=index,
        kind="full" if window is None else "sliding",
        scheme=layer.scheme.name,
        reason=_raw_reason(layer),
        tokens=keys.length,
        key_bytes=key_bytes,
        value_bytes=value_bytes,
        bytes=key_bytes + value_bytes + layer.launch_bytes,
        allocated_bytes=layer.nbytes,
        fp16_bytes=2 * keys.length * heads * (keys.head_dim + values.head_dim),
        packed_tokens=layer.packed_tokens,
        tail_tokens=packed_side.recent.length,
        sink_tokens=packed_side.sinks.length,
        heads=heads,
        key_dim=keys.head_dim,
        value_dim=values.head_dim,
        window=window,
        rounded_tokens=max(rounding.tokens for rounding in carried),
        rounded_bits=(carried[0].fewest, carried[1].fewest),
        rounded_times=max(rounding.times for rounding in carried),
        key_bits=keys.spec.bits,
        value_bits=values.spec.bits,
        fine_tokens=packed_side.fine.length,
    )


def _raw_reason(layer: SchemeCache) -> str | None:
    if isinstance(layer, WindowCache) and (reason := raw_window_reason(layer.max_size, layer.scheme)):
        return reason
    if layer.empty() or not layer.scheme.compresses or any(side.spec.kind != "raw" for side in layer.sides):
        return None
    dims = " and ".join(str(dim) for dim in dict.fromkeys(side.head_dim for side in layer.sides))
    return f"head dimension of {dims}: packed it would take no less"


def _recurrent_layer(index: int, layer: mlx_cache.ArraysCache) -> LayerReport:
    arrays: list[Any] = layer.cache
    size = sum(array.nbytes for array in arrays if array is not None)
    reason = "recurrent state: its size does not grow with the conversation"
    return _plain_report(index, "recurrent", reason, size, size)


def _mlx_lm_layer(index: int, layer: Any, scheme: Scheme) -> LayerReport:
    """A layer with mlx-lm's own cache: its keys and values if it has them, else all of its arrays."""
    kind: LayerKind = "other"
    window: int | None = None
    reason: str | None
    if isinstance(layer, mlx_cache.RotatingKVCache):
        kind = "sliding"
        if layer.keep:
            reason = f"sliding window that keeps its first {layer.keep} tokens: kept as it is"
        else:
            window, reason = layer.max_size, raw_window_reason(layer.max_size, scheme)
    elif isinstance(layer, mlx_cache.ChunkedKVCache):
        kind, reason = "sliding", "chunked attention: bounded by the chunk, kept as it is"
    elif isinstance(layer, LatentCache):
        reason = (
            "latent attention (MLA): one vector for all heads is a compressed cache already, kept as it is"
        )
    elif isinstance(layer, mlx_cache.KVCache):
        reason = "indexed attention: the model works on the cache's arrays itself, kept as it is"
    else:
        reason = f"{type(layer).__name__}: not a cache of keys and values that can be packed"
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    if not (isinstance(keys, mx.array) and isinstance(values, mx.array)):
        leaves = dict(tree_flatten(layer.state)).values()
        size = sum(leaf.nbytes for leaf in leaves if isinstance(leaf, mx.array))
        return replace(_plain_report(index, kind, reason, size, size), window=window)
    capacity = int(keys.shape[2])
    tokens = min(int(layer.offset), capacity)
    heads = int(keys.shape[0] * keys.shape[1])
    key_bytes = keys.nbytes // max(capacity, 1) * tokens
    value_bytes = values.nbytes // max(capacity, 1) * tokens
    return LayerReport(
        index=index,
        kind=kind,
        scheme="fp16",
        reason=reason,
        tokens=tokens,
        key_bytes=key_bytes,
        value_bytes=value_bytes,
        bytes=key_bytes + value_bytes,
        allocated_bytes=keys.nbytes + values.nbytes,
        fp16_bytes=2 * tokens * heads * int(keys.shape[3] + values.shape[3]),
        packed_tokens=0,
        tail_tokens=tokens,
        sink_tokens=0,
        heads=heads,
        key_dim=int(keys.shape[3]),
        value_dim=int(values.shape[3]),
        window=window,
    )


def _plain_report(index: int, kind: LayerKind, reason: str | None, size: int, allocated: int) -> LayerReport:
    return LayerReport(
        index=index,
        kind=kind,
        scheme="fp16",
        reason=reason,
        tokens=0,
        key_bytes=0,
        value_bytes=0,
        bytes=size,
        allocated_bytes=allocated,
        fp16_bytes=size,
        packed_tokens=0,
        tail_tokens=0,
        sink_tokens=0,
        heads=0,
        key_dim=0,
        value_dim=0,
    )

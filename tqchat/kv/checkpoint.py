"""Where a cache that cannot be trimmed can go back to.

What has left a sliding window is gone, and a recurrent state remembers no earlier one. A checkpoint is a copy
of just these layers, taken where a conversation is likely to be taken up again; the others are trimmed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models import cache as mlx_cache

from tqchat.kv.cache import SchemeCache
from tqchat.kv.prompt_cache import LatentCache, cache_list, convert, flat_layers
from tqchat.kv.report import memory_report
from tqchat.kv.snapshot import describe_layer, rebuild_layer, unsaved

_KEEP_EVERYTHING = (SchemeCache, LatentCache, mlx_cache.KVCache, mlx_cache.QuantizedKVCache)
"""Classes whose layers hold all tokens, so that any number of the last ones can be forgotten."""


@dataclass(eq=False)
class Checkpoint:
    """The layers that cannot be trimmed, as they were after ``tokens`` tokens.

    Attributes:
        layers: Copies by index among ``flat_layers``; they are never used, only copied again.
        stored: The file that a save has put them into.
    """

    tokens: int
    layers: dict[int, Any]
    stored: Any = None

    @property
    def bytes(self) -> int:
        """Bytes that it takes in memory."""
        return memory_report(list(self.layers.values())).bytes


def needs_checkpoints(cache: Sequence[Any]) -> bool:
    """Whether a cache has layers that trimming does not serve for good."""
    return any(type(layer) not in _KEEP_EVERYTHING for layer in flat_layers(list(cache)))


def can_trim(cache: Sequence[Any]) -> bool:
    """Whether the last tokens of all layers can be forgotten as things are."""
    # mlx-lm trims chunked layers even where what the shorter chunk needs has left at the front.
    return all(
        layer.is_trimmable() and not getattr(layer, "start_position", 0) for layer in flat_layers(list(cache))
    )


def take(cache: Sequence[Any], tokens: int) -> Checkpoint:
    """Copy the layers that cannot be trimmed, evaluated.

    Raises:
        CacheFileError: if one is of a kind that is not known.
    """
    flat = flat_layers(list(cache))
    return Checkpoint(
        tokens, {i: copied(layer) for i, layer in enumerate(flat) if type(layer) not in _KEEP_EVERYTHING}
    )


def go_back(cache: Sequence[Any], checkpoint: Checkpoint, surplus: int) -> list[Any]:
    """The cache as it was at a checkpoint: its other layers, trimmed in place by ``surplus`` tokens, and new
    copies of those that the checkpoint holds."""
    flat = flat_layers(list(cache))
    copies = {index: copied(layer) for index, layer in checkpoint.layers.items()}
    for index, layer in enumerate(flat):
        if index not in copies:
            layer.trim(surplus)
    return replaced(cache, copies)


def replaced(cache: Sequence[Any], layers: dict[int, Any]) -> list[Any]:
    """A cache with some of its ``flat_layers`` replaced."""
    numbers = iter(range(len(flat_layers(list(cache)))))

    def of(layer: Any) -> Any:
        if isinstance(layer, mlx_cache.CacheList):
            return cache_list([of(part) for part in layer.caches])
        return layers.get(next(numbers), layer)

    return [of(layer) for layer in cache]


def converted(checkpoint: Checkpoint, scheme: str) -> Checkpoint:
    """The same checkpoint under another scheme."""
    new = convert(list(checkpoint.layers.values()), scheme)
    return Checkpoint(checkpoint.tokens, dict(zip(checkpoint.layers, new, strict=True)))


def copied(layer: Any) -> Any:
    """A copy of a layer that shares nothing with it, evaluated.

    Raises:
        CacheFileError: if it is of a kind that is not known.
    """
    arrays: dict[str, mx.array] = {}
    told = describe_layer(layer, "layer", arrays)
    # Arrays of its own: mlx-lm assigns into those that it has.
    copy = rebuild_layer(told, "layer", {name: mx.contiguous(array) for name, array in arrays.items()})
    for name, value in unsaved(layer).items():
        setattr(copy, name, value)
    if not copy.empty():
        mx.eval(copy.state)
    return copy


def described(checkpoint: Checkpoint) -> tuple[dict[int, Any], dict[str, mx.array]]:
    """What ``rebuilt`` wants: a description of each layer, and all their arrays by name."""
    arrays: dict[str, mx.array] = {}
    layers = {index: describe_layer(layer, str(index), arrays) for index, layer in checkpoint.layers.items()}
    return layers, arrays


def rebuilt(tokens: int, layers: dict[int, Any], arrays: dict[str, mx.array]) -> Checkpoint:
    """The inverse of ``described``, evaluated."""
    found = {index: rebuild_layer(told, str(index), arrays) for index, told in layers.items()}
    mx.eval([layer.state for layer in found.values() if not layer.empty()])
    return Checkpoint(tokens, found)

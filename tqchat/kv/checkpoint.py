"""Checkpoints: copies of the layers that cannot be trimmed (sliding windows, recurrent states).

A cache is rolled back to a checkpoint by restoring these copies and trimming the other layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mlx.core as mx
from mlx_lm.models import cache as mlx_cache

from tqchat.kv.cache import SchemeCache
from tqchat.kv.conversion import convert_keeping, temporary_file
from tqchat.kv.memory import LayerReport
from tqchat.kv.prompt_cache import LatentCache, flat_layers, replace_layers
from tqchat.kv.report import layer_reports
from tqchat.kv.scheme import Scheme
from tqchat.kv.snapshot import can_save, describe_layer, rebuild_layer, transient_attributes
from tqchat.kv.storage.write_behind import in_own_buffer
from tqchat.kv.window import only_window

_TRIMMABLE = (SchemeCache, LatentCache, mlx_cache.KVCache, mlx_cache.QuantizedKVCache)
"""Cache classes that hold all tokens, so that any number of the last ones can be trimmed."""


@dataclass(eq=False)
class Checkpoint:
    """The layers that cannot be trimmed, as they were after ``tokens`` tokens.

    Attributes:
        layers: Copies by index in ``flat_layers``; never modified, only copied.
        stored: The file that a save has written them to.
    """

    tokens: int
    layers: dict[int, Any]
    stored: Any = None

    @cached_property
    def report(self) -> tuple[LayerReport, ...]:
        """Bytes of its layers."""
        return layer_reports(self.layers)

    @property
    def bytes(self) -> int:
        """Bytes of the live arrays as allocated, spare capacity included."""
        return sum(layer.allocated_bytes for layer in self.report)


def needs_checkpoints(cache: Sequence[Any]) -> bool:
    """Whether a cache has layers that cannot always be trimmed."""
    return bool(layers_copied(cache))


def layers_copied(cache: Sequence[Any]) -> list[int]:
    """Indices of the layers that checkpoints copy."""
    return [i for i, layer in enumerate(flat_layers(list(cache))) if type(layer) not in _TRIMMABLE]


def can_trim(cache: Sequence[Any]) -> bool:
    """Whether all layers can be trimmed in their present state."""
    # mlx-lm trims chunked layers even if tokens that the shorter chunk needs were already dropped.
    return all(
        layer.is_trimmable() and not getattr(layer, "start_position", 0) for layer in flat_layers(list(cache))
    )


def take(cache: Sequence[Any], tokens: int) -> Checkpoint:
    """Copy the layers that cannot be trimmed, evaluated. Windows lose what has left them."""
    flat = flat_layers(list(cache))
    return Checkpoint(tokens, {index: copy_layer(only_window(flat[index])) for index in layers_copied(cache)})


def roll_back(cache: Sequence[Any], checkpoint: Checkpoint, surplus: int) -> list[Any]:
    """The cache as it was at a checkpoint.

    Its other layers are trimmed in place by ``surplus`` tokens; those of the checkpoint are copied.
    """
    flat = flat_layers(list(cache))
    copies = {index: copy_layer(layer) for index, layer in checkpoint.layers.items()}
    for index, layer in enumerate(flat):
        if index not in copies:
            layer.trim(surplus)
    return replace_layers(cache, copies)


def convert(checkpoints: Sequence[Checkpoint], scheme: Scheme) -> list[Checkpoint]:
    """The same checkpoints under another scheme, evaluated, each layer as ``conversion.convert`` does."""
    file = temporary_file() if checkpoints else None
    return [
        Checkpoint(
            one.tokens,
            {index: convert_keeping(layer, scheme, index, file) for index, layer in one.layers.items()},
        )
        for one in checkpoints
    ]


def copy_layer(layer: Any) -> Any:
    """An independent copy of a layer, evaluated."""
    if not can_save(layer):  # a class of the model's own
        duplicate = deepcopy(layer)
        mx.eval(duplicate.state)
        return duplicate
    arrays: dict[str, mx.array] = {}
    description = describe_layer(layer, "layer", arrays)
    # Copied arrays, because mlx-lm assigns into its own.
    copied = {name: in_own_buffer(array) for name, array in arrays.items()}
    duplicate = rebuild_layer(description, "layer", copied)
    for name, value in transient_attributes(layer).items():
        setattr(duplicate, name, in_own_buffer(value) if isinstance(value, mx.array) else value)
    if not duplicate.empty():
        mx.eval(duplicate.state)
    return duplicate


def describe(checkpoint: Checkpoint) -> tuple[dict[int, Any], dict[str, mx.array]]:
    """Arguments of ``rebuild``: a description of each layer, and all arrays by name."""
    arrays: dict[str, mx.array] = {}
    layers = {index: describe_layer(layer, str(index), arrays) for index, layer in checkpoint.layers.items()}
    return layers, arrays


def rebuild(tokens: int, layers: dict[int, Any], arrays: dict[str, mx.array]) -> Checkpoint:
    """The inverse of ``describe``, evaluated."""
    rebuilt = {index: rebuild_layer(description, str(index), arrays) for index, description in layers.items()}
    mx.eval([layer.state for layer in rebuilt.values() if not layer.empty()])
    return Checkpoint(tokens, rebuilt)

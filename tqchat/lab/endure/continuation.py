"""Compares caches bit for bit: a digest of their next logits, and a prefill in the same forward passes."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from tqchat import kv
from tqchat.engine.models import LoadedModel
from tqchat.kv.checkpoint import copy_layer, needs_checkpoints
from tqchat.kv.prompt_cache import flat_layers, replace_layers

NEXT_TOKENS = (5, 77, 901)
"""Tokens that a cache is continued with for its digest."""

Steps = list[tuple[int, int]]
"""For each forward pass: tokens in the cache before it, and tokens added."""


def copy(cache: list[Any]) -> list[Any]:
    """A deep copy of a cache."""
    return replace_layers(cache, {index: copy_layer(layer) for index, layer in enumerate(flat_layers(cache))})


def digest_of(model: LoadedModel, cache: list[Any], tokens: Sequence[int], scheme: str) -> str:
    """Digest of a cache's tokens and scheme and of its logits for ``NEXT_TOKENS``. Works on a copy."""
    cache = copy(cache)
    digest = hashlib.sha256(repr((list(tokens), scheme)).encode())
    for token in NEXT_TOKENS:
        logits = model.model(mx.array([[token]]), cache=cache).astype(mx.float32)
        mx.eval(logits)
        digest.update(bytes(memoryview(logits.reshape(-1).view(mx.uint8))))
    return digest.hexdigest()


def record_steps(model: LoadedModel) -> None:
    """Record the forward passes of this model in its caches, for ``steps_of``."""
    kind: Any = type(model.model)
    call = kind.__call__

    def recording(self: Any, inputs: mx.array, cache: Any = None, **others: Any) -> Any:
        first = flat_layers(cache)[0] if cache else None
        if self is model.model and isinstance(offset := getattr(first, "offset", None), int):
            first.steps = _after(getattr(first, "steps", []), offset, int(inputs.shape[1]))  # type: ignore[union-attr]
        return call(self, inputs, cache=cache, **others)

    kind.__call__ = recording


def steps_of(cache: list[Any], tokens: int) -> Steps | None:
    """Forward passes that filled a cache of ``tokens`` tokens.

    ``None`` if they cannot be repeated: some were not recorded, or a window has dropped trimmed tokens.
    """
    steps: Steps = _after(getattr(flat_layers(cache)[0], "steps", []), tokens, 0)
    end, overlap = 0, False
    for start, count in steps:
        if start > end:
            return None
        end, overlap = start + count, overlap or start < end
    whole = end == tokens or (end > tokens and not needs_checkpoints(cache))
    return steps if whole and not (overlap and needs_checkpoints(cache)) else None


def steps_from(text: str) -> Steps:
    """Parse steps from JSON."""
    return [(int(start), int(count)) for start, count in json.loads(text)]


def attach_steps(cache: list[Any], steps: Steps) -> None:
    """Attach recorded steps to a restored cache."""
    flat_layers(cache)[0].steps = steps


def prefill_again(model: LoadedModel, tokens: Sequence[int], steps: Steps) -> list[Any]:
    """A fresh FP16 cache of these tokens, read in these steps.

    The number of tokens in a forward pass decides the order of sums in a matrix product, and so the last bits
    of keys and values. Tokens that were trimmed afterwards are replaced by others.
    """
    cache = kv.make_prompt_cache(model.model, "fp16", dtype=model.cache_dtype)
    for start, count in steps:
        _trim(cache, start)
        step = list(tokens[start : start + count])
        step += [NEXT_TOKENS[0]] * (count - len(step))
        model.model(mx.array([step]), cache=cache)
        mx.eval([layer.state for layer in cache])
    _trim(cache, len(tokens))
    return cache


def _after(steps: Steps, offset: int, count: int) -> Steps:
    """Steps before ``offset``, plus one of ``count`` tokens there."""
    kept = [step for step in steps if step[0] < offset]
    return [*kept, (offset, count)] if count else kept


def _trim(cache: list[Any], keep: int) -> None:
    for layer in cache:
        layer.trim(layer.offset - keep)

"""What a cache is, to the last bit: how it goes on, and in which steps it was read."""

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
from tqchat.kv.checkpoint import copy_layer, needs_checkpoints, replace_layers
from tqchat.kv.prompt_cache import flat_layers

NEXT = (5, 77, 901)
"""Tokens that a cache is continued with."""

Steps = list[tuple[int, int]]
"""Where the cache was before each step, and how many tokens the step read."""


def copy(cache: list[Any]) -> list[Any]:
    """A copy of a cache that shares nothing with it."""
    return replace_layers(cache, {index: copy_layer(layer) for index, layer in enumerate(flat_layers(cache))})


def going_on(model: LoadedModel, cache: list[Any], tokens: Sequence[int], scheme: str) -> str:
    """A digest of what a cache holds and of all logits with which it goes on. The cache is left alone."""
    cache = copy(cache)
    digest = hashlib.sha256(repr((list(tokens), scheme)).encode())
    for token in NEXT:
        logits = model.model(mx.array([[token]]), cache=cache).astype(mx.float32)
        mx.eval(logits)
        digest.update(bytes(memoryview(logits.reshape(-1).view(mx.uint8))))
    return digest.hexdigest()


def record_steps(model: LoadedModel) -> None:
    """Let every cache that this model reads into remember the steps; ``steps_of`` tells them."""
    kind: Any = type(model.model)
    call = kind.__call__

    def recording(self: Any, inputs: mx.array, cache: Any = None, **others: Any) -> Any:
        first = flat_layers(cache)[0] if cache else None
        if self is model.model and isinstance(offset := getattr(first, "offset", None), int):
            first.steps = _after(getattr(first, "steps", []), offset, int(inputs.shape[1]))  # type: ignore[union-attr]
        return call(self, inputs, cache=cache, **others)

    kind.__call__ = recording


def steps_of(cache: list[Any], tokens: int) -> Steps | None:
    """The steps that a cache of so many tokens was read in, ``None`` if they cannot be taken again: because
    nobody saw all of them, or because what they took back is gone from a window."""
    steps: Steps = _after(getattr(flat_layers(cache)[0], "steps", []), tokens, 0)
    end, overlap = 0, False
    for start, count in steps:
        if start > end:
            return None
        end, overlap = start + count, overlap or start < end
    whole = end == tokens or (end > tokens and not needs_checkpoints(cache))
    return steps if whole and not (overlap and needs_checkpoints(cache)) else None


def steps_from(text: str) -> Steps:
    """Steps as they were written down."""
    return [(int(start), int(count)) for start, count in json.loads(text)]


def remember(cache: list[Any], steps: Steps) -> None:
    """Tell a cache that came from disk how it was read."""
    flat_layers(cache)[0].steps = steps


def read_again(model: LoadedModel, tokens: Sequence[int], steps: Steps) -> list[Any]:
    """A fresh FP16 cache of these tokens, read in these steps.

    How many tokens a step has decides how a matrix product is summed up, and with it the last bits of keys
    and values. Which tokens they are that were taken back afterwards does not matter.
    """
    cache = kv.make_prompt_cache(model.model, "fp16", dtype=model.cache_dtype)
    for start, count in steps:
        _trim(cache, start)
        step = list(tokens[start : start + count])
        step += [NEXT[0]] * (count - len(step))
        model.model(mx.array([step]), cache=cache)
        mx.eval([layer.state for layer in cache])
    _trim(cache, len(tokens))
    return cache


def _after(steps: Steps, offset: int, count: int) -> Steps:
    """The steps that still matter once the cache goes on from ``offset``."""
    kept = [step for step in steps if step[0] < offset]
    return [*kept, (offset, count)] if count else kept


def _trim(cache: list[Any], keep: int) -> None:
    for layer in cache:
        layer.trim(layer.offset - keep)

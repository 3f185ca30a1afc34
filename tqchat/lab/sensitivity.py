"""Measures how much quantisation errors of each layer's keys and values matter to a model.

The first half of a text is read with raw caches. Then one layer's keys or values of that half are packed at
``PROBE_BITS``, and the second half is read a few tokens at a time, which are packed as they leave the tail,
as in a reply. Its KLD from the raw caches divided by the expected squared error is the sensitivity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from tqchat import kv
from tqchat.engine.cache.prompt_cache import prefill_chunk_tokens
from tqchat.engine.memory.allocation import Role, Sensitivity
from tqchat.engine.models import LoadedModel
from tqchat.kv.cache import SchemeCache
from tqchat.kv.checkpoint import copy_layer
from tqchat.kv.prompt_cache import convert_layer, flat_layers, replace_layers
from tqchat.kv.scheme import RAW, FormatSpec, Scheme

PROBE_BITS = 2
"""Code width of the measured side: its error dominates differences of rounding and order of sums."""

MAX_TOKENS = 2048
"""Maximum tokens read. The first half is a prompt, the second half is compared.

A longer text tells more: with bits allocated by 1,024 and by 2,048 tokens the KLD of ``trellis2`` was 0.0154
and 0.0125 (see ``CODEC.md``).
"""

STEP_TOKENS = 64
"""Tokens read at a time in the second half."""

_PROBE = FormatSpec("turbo", PROBE_BITS)
_PROBES: dict[Role, Scheme] = {
    "key": Scheme("turbo2", _PROBE, RAW, tail=64),
    "value": Scheme("turbo2", RAW, _PROBE, tail=64),
}


def measure(
    model: LoadedModel,
    tokens: Sequence[int],
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Sensitivity:
    """The sensitivity of each layer, by the index of its cache; 0 where no scheme applies.

    Args:
        tokens: A text; the first ``MAX_TOKENS`` are read.
        progress: Called with the current layer, the number of passes done and of all passes.
    """
    half = min(len(tokens), MAX_TOKENS) // 2
    packed, compared = tokens[:half], tokens[half : 2 * half]
    # Under a scheme that packs keys, queries are observed, which keys are fitted to.
    base = kv.make_prompt_cache(model.model, _PROBES["key"], dtype=model.cache_dtype)
    _read(model, base, packed, prefill_chunk_tokens(model, base))
    reference = _read(model, _copy(base), compared, STEP_TOKENS)
    layers = flat_layers(base)
    sides: list[tuple[Role, int]] = [
        (role, index)
        for role in _PROBES
        for index, layer in enumerate(layers)
        if isinstance(layer, SchemeCache)
    ]
    found: dict[Role, list[float]] = {role: [0.0] * len(layers) for role in _PROBES}
    for done, (role, index) in enumerate(sides):
        progress(f"{role}s of layer {index}", done, len(sides))
        cache = _copy(base)
        probed = convert_layer(flat_layers(cache)[index], _PROBES[role], index)
        logprobs = _read(model, replace_layers(cache, {index: probed}), compared, STEP_TOKENS, probed)
        kld: Any = (mx.exp(reference) * (reference - logprobs)).sum(axis=-1).mean().item()
        found[role][index] = max(kld, 0.0) / _PROBE.error
        mx.clear_cache()
    progress("done", len(sides), len(sides))
    return Sensitivity(tuple(found["key"]), tuple(found["value"]))


def _copy(cache: list[Any]) -> list[Any]:
    return replace_layers(cache, {i: copy_layer(layer) for i, layer in enumerate(flat_layers(cache))})


def _read(
    model: LoadedModel, cache: list[Any], tokens: Sequence[int], step: int, packed: SchemeCache | None = None
) -> mx.array:
    """Read tokens, ``step`` at a time; the log-probabilities after each, float32 ``[tokens, vocabulary]``.

    Args:
        packed: Layer whose tokens are packed after each step.
    """
    parts = []
    for start in range(0, len(tokens), step):
        logits = model.model(mx.array(list(tokens[start : start + step]))[None], cache=cache)[0]
        logits = logits.astype(mx.float32)
        parts.append(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        if packed is not None:
            packed.pack_due()
        mx.eval(parts[-1], [layer.state for layer in cache if not layer.empty()])
    return mx.concatenate(parts, axis=0)

"""The caches that are timed: ours under each scheme, and mlx-lm's own."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

import copy
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from tqchat import kv
from tqchat.engine.models import LoadedModel
from tqchat.kv.cache import SchemeCache
from tqchat.kv.prompt_cache import flat_layers
from tqchat.kv.scheme import FP16
from tqchat.lab.candidates import CONTESTANTS, MLX_QUANTIZED, Candidate, UnknownCandidate, parse_candidates
from tqchat.lab.evaluation import to_mlx_quantized

REFERENCE = "mlx16"
"""mlx-lm's 16-bit cache, the reference of all ratios."""

MLX_CACHES = (Candidate(REFERENCE, FP16), *MLX_QUANTIZED)
"""Candidates that are mlx-lm's own caches."""

FILL_CHUNK_TOKENS = 4096
"""Random tokens added to a cache at a time."""


class Mlx16Cache(KVCache):  # type: ignore[misc, unused-ignore]
    """mlx-lm's ``KVCache`` that casts to ``dtype``: on a CPU models compute in float32."""

    def __init__(self, dtype: mx.Dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self._dtype = dtype

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
        """Append tokens; all keys and values, in ``dtype``."""
        return super().update_and_fetch(  # type: ignore[no-untyped-call]
            keys.astype(self._dtype), values.astype(self._dtype)
        )


def candidates(names: str) -> tuple[Candidate, ...]:
    """Parse a comma-separated list; mlx-lm's caches are added and come first.

    Raises:
        UnknownCandidate: if a name is not known, or has no speed of its own.
    """
    asked = ",".join(name for name in names.split(",") if name.strip().lower() != REFERENCE)
    chosen = parse_candidates(asked) if asked else ()
    for name in asked.lower().split(","):
        if name.strip() in CONTESTANTS:
            raise UnknownCandidate(
                f"{name.strip()} is rebuilt to measure its quality, not its speed: use `tqchat lab eval`."
            )
    chosen = tuple(candidate for candidate in chosen if candidate.contestant is None)
    return (*MLX_CACHES, *(candidate for candidate in chosen if candidate not in MLX_CACHES))


def mlx_counterpart(candidate: Candidate) -> str:
    """Name of the mlx-lm quantised cache to compare with: ``mlx8`` if keys have more than 4 bits."""
    if candidate.mlx_bits is not None or candidate.name == REFERENCE:
        return ""
    return "mlx8" if candidate.scheme.key.bits > 4 else "mlx4"


def prefilled(model: LoadedModel, tokens: Sequence[int]) -> list[Any]:
    """Our 16-bit caches after the model has read ``tokens``."""
    from tqchat.engine.cache.prompt_cache import PromptCache

    held = PromptCache(model, "fp16")
    for _ in held.prefill_in_chunks(tokens):
        pass
    return held.cache


def filled(model: LoadedModel, text: Sequence[int] | None, count: int) -> list[Any]:
    """Our 16-bit caches of ``count`` tokens: read from ``text``, or random without one."""
    return random_filled(model, count) if text is None else prefilled(model, text[:count])


def random_filled(model: LoadedModel, count: int) -> list[Any]:
    """Our 16-bit caches with ``count`` random tokens, for models with random weights.

    The time of attention does not depend on the values.
    """
    cache = kv.make_prompt_cache(model.model, "fp16", dtype=model.cache_dtype)
    heads, head_dim = model.config["num_key_value_heads"], model.config["head_dim"]
    for layer in cache:
        for start in range(0, count, FILL_CHUNK_TOKENS):
            shape = (2, 1, heads, min(FILL_CHUNK_TOKENS, count - start), head_dim)
            layer.update_and_fetch(*mx.random.normal(shape, dtype=mx.float16))
            mx.eval(layer.state)
    return cache


def make_cache(candidate: Candidate, base: list[Any], model: LoadedModel) -> list[Any]:
    """Copy the tokens of ``base`` (our 16-bit caches) into the candidate's kind of cache."""
    if not all(type(layer) is SchemeCache for layer in base):
        # Windows and recurrent states are not converted, so each candidate needs its own copy.
        base = copy.deepcopy(base)
    if candidate.name == REFERENCE:
        return [_to_mlx16(layer, model.cache_dtype) for layer in base]
    if candidate.mlx_bits is not None:
        return [to_mlx_quantized(layer, candidate.mlx_bits, model) for layer in base]
    cache = kv.convert(base, candidate.scheme)
    kv.use_placeholders(model.model, cache)
    return cache


def cache_bytes(cache: list[Any]) -> int:
    """Allocated bytes of a model's caches."""
    return sum(int(layer.nbytes) for layer in flat_layers(cache))


def eval_cache(cache: list[Any]) -> None:
    """Evaluate all pending arrays of a cache."""
    mx.eval([layer.state for layer in cache if not layer.empty()])


def _to_mlx16(layer: Any, dtype: mx.Dtype | None) -> Any:
    if type(layer) is not SchemeCache or layer.empty():
        return layer
    plain: Any = KVCache() if dtype is None else Mlx16Cache(dtype)  # type: ignore[no-untyped-call]
    plain.update_and_fetch(*layer.keys_and_values())
    mx.eval(plain.state)
    return plain

"""The caches that are timed against each other: ours under each scheme, and mlx-lm's own."""

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
from tqchat.lab.contestants import PEERS, Contestant, parse_contestants
from tqchat.lab.evaluation import quantised

REFERENCE = "mlx16"
"""mlx-lm's own cache, holding 16 bits a value: what ratios are against."""

FOREIGN = (Contestant(REFERENCE, FP16), *PEERS)
"""Those that are mlx-lm's own."""

FILL = 4096
"""Tokens that a cache is filled with in one go."""


class HalfCache(KVCache):  # type: ignore[misc, unused-ignore]
    """mlx-lm's own cache, given 16-bit vectors as its 16-bit models give it."""

    def __init__(self, dtype: mx.Dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self._dtype = dtype

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
        """Add tokens; all of them come back at 16 bits."""
        return super().update_and_fetch(  # type: ignore[no-untyped-call]
            keys.astype(self._dtype), values.astype(self._dtype)
        )


def contestants(names: str) -> tuple[Contestant, ...]:
    """The contestants of a comma-separated list, the reference and mlx-lm's quantised caches first.

    Raises:
        UnknownContestant: if a name is none.
    """
    asked = ",".join(name for name in names.split(",") if name.strip().lower() != REFERENCE)
    chosen = parse_contestants(asked) if asked else ()
    return (*FOREIGN, *(contestant for contestant in chosen if contestant not in FOREIGN))


def rival(contestant: Contestant) -> str:
    """mlx-lm's quantised cache of as many bits, or the next more: 8 where keys have more than 4."""
    if contestant.peer_bits is not None or contestant.name == REFERENCE:
        return ""
    return "mlx8" if contestant.scheme.key.bits > 4 else "mlx4"


def read(model: LoadedModel, tokens: Sequence[int]) -> list[Any]:
    """Our 16-bit caches after the model has read ``tokens``."""
    from tqchat.engine.cache.prompt_cache import PromptCache

    held = PromptCache(model, "fp16")
    for _ in held.prefill_in_chunks(tokens):
        pass
    return held.cache


def filled(model: LoadedModel, count: int) -> list[Any]:
    """Our 16-bit caches with ``count`` random tokens in them, for a model that has not read anything.

    How long attention takes does not depend on what the vectors are.
    """
    cache = kv.make_prompt_cache(model.model, "fp16", dtype=model.cache_dtype)
    heads, head_dim = model.config["num_key_value_heads"], model.config["head_dim"]
    for layer in cache:
        for start in range(0, count, FILL):
            shape = (2, 1, heads, min(FILL, count - start), head_dim)
            layer.update_and_fetch(*mx.random.normal(shape, dtype=mx.float16))
            mx.eval(layer.state)
    return cache


def subject(contestant: Contestant, base: list[Any], model: LoadedModel) -> list[Any]:
    """The tokens of ``base``, our 16-bit caches, in caches of the contestant's kind."""
    if not all(type(layer) is SchemeCache for layer in base):
        base = copy.deepcopy(base)  # windows and recurrent states would be the same ones for everybody
    if contestant.name == REFERENCE:
        return [_plain(layer, model.cache_dtype) for layer in base]
    if contestant.peer_bits is not None:
        return [quantised(layer, contestant.peer_bits, model) for layer in base]
    cache = kv.convert(base, contestant.scheme)
    kv.use_placeholders(model.model, cache)
    return cache


def cache_bytes(cache: list[Any]) -> int:
    """Bytes of the arrays of a model's caches, as allocated."""
    return sum(int(layer.nbytes) for layer in flat_layers(cache))


def evaluate(cache: list[Any]) -> None:
    """Finish what is pending."""
    mx.eval([layer.state for layer in cache if not layer.empty()])


def _plain(layer: Any, dtype: mx.Dtype | None) -> Any:
    if type(layer) is not SchemeCache or layer.empty():
        return layer
    plain: Any = KVCache() if dtype is None else HalfCache(dtype)  # type: ignore[no-untyped-call]
    plain.update_and_fetch(*layer.keys_and_values())
    mx.eval(plain.state)
    return plain

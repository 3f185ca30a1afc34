"""The tokens that a model's caches hold, and the caches that hold them: always in step."""

from __future__ import annotations

import tqchat.engine.ready  # noqa: F401

# isort: split

from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generation_stream
from mlx_lm.models import cache as mlx_cache

from tqchat import kv
from tqchat.engine.models import LoadedModel
from tqchat.kv.memory import MemoryReport
from tqchat.kv.prompt_cache import flat_layers
from tqchat.store.manifest import Pieces, cut
from tqchat.store.vault import Restored

FULL_PRECISION = (16, 16)


class HeldTokens:
    """A cache and the tokens in it. The token list is the truth: a cache that disagrees is thrown away.

    Attributes:
        scheme: Name of the cache's scheme.
        tokens: What the cache holds, first to last.
        restored: How many leading tokens came from disk.
        rounding: The fewest bits (of keys, of values) that packed history has been through.
        pieces: Segments on disk that hold the cache's first tokens as they are here.
    """

    def __init__(self, model: LoadedModel, scheme: str) -> None:
        self.model = model
        self.scheme = kv.parse_scheme(scheme).name
        self.cache: list[Any] = []
        self.tokens: list[int] = []
        self.restored = 0
        self.rounding = FULL_PRECISION
        self.pieces: Pieces = ()
        self.clear()

    def clear(self) -> None:
        """Start over with an empty cache."""
        self.cache = kv.make_prompt_cache(self.model.model, self.scheme, dtype=self.model.cache_dtype)
        self.tokens = []
        self.restored = 0
        self.rounding = FULL_PRECISION
        self.pieces = ()

    def adopt(self, found: Restored) -> str | None:
        """Take over a cache from disk; why not, if it is not one that this model makes."""
        cache, tokens = found.cache, found.tokens
        if [_shape(layer) for layer in cache] != [_shape(layer) for layer in self.cache]:
            return "The saved cache does not have this model's layers"
        if not _holds(cache, len(tokens)):
            return "The saved cache does not hold the tokens that it should"
        self.cache, self.tokens, self.rounding = cache, list(tokens), found.rounding
        self.pieces = found.pieces
        self.restored = len(tokens)
        return None

    def rewind(self, keep: int) -> bool:
        """Keep the first ``keep`` tokens. False if the cache cannot do that; it is then unchanged."""
        surplus = len(self.tokens) - keep
        if surplus <= 0:
            return True
        if keep == 0:
            self.clear()
            return True
        if not mlx_cache.can_trim_prompt_cache(self.cache):
            return False
        mlx_cache.trim_prompt_cache(self.cache, surplus)
        del self.tokens[keep:]
        self.pieces = cut(self.pieces, keep)
        self.restored = min(self.restored, keep)
        if not _holds(self.cache, keep):
            self.clear()
        return True

    def feed(self, tokens: Sequence[int]) -> None:
        """Let the model read tokens; they are in the cache, evaluated, when this returns."""
        with mx.stream(generation_stream):
            self.model.model(mx.array(list(tokens))[None], cache=self.cache)
            self.evaluate()
        self.tokens.extend(tokens)
        mx.clear_cache()

    def feed_in_chunks(self, tokens: Sequence[int]) -> Iterator[int]:
        """``feed`` in pieces that a person can interrupt; yields how many tokens are in after each."""
        step = 512 if self.model.on_cpu else 2048
        for start in range(0, len(tokens), step):
            self.feed(tokens[start : start + step])
            yield min(start + step, len(tokens))

    def evaluate(self) -> None:
        """Finish what is lazily pending, so that the arrays can be kept, saved or converted."""
        mx.eval([layer.state for layer in self.cache if not layer.empty()])

    def settle(self, certain: bool) -> None:
        """After work on the cache: evaluate it, and drop it if it does not hold exactly ``tokens``.

        Args:
            certain: Whether the work ended where it meant to. If not, a cache that cannot be checked goes.
        """
        try:
            self.evaluate()
            good = _holds(self.cache, len(self.tokens)) and (certain or _checkable(self.cache))
        except RuntimeError:
            good = False
        if not good:
            self.clear()

    def convert(self, scheme: str) -> None:
        """Put the same tokens under another scheme. An error leaves the old cache whole."""
        old = kv.parse_scheme(self.scheme)
        packed = self.report().packed_tokens > 0
        if kv.needs_queries(self.cache, scheme):
            kv.observe_queries(self.model.model, self.tokens, self.cache)
        converted = kv.convert(self.cache, scheme)
        if not _holds(converted, len(self.tokens)):
            raise RuntimeError("The converted cache does not hold the same tokens.")
        if packed:
            keys, values = self.rounding
            self.rounding = (min(keys, old.key.bits), min(values, old.value.bits))
        self.cache, self.scheme = converted, kv.parse_scheme(scheme).name
        self.pieces = ()

    def carries_coarser_rounding(self) -> bool:
        """Whether history was rounded more coarsely than the present scheme rounds."""
        scheme = kv.parse_scheme(self.scheme)
        keys, values = self.rounding
        return scheme.key.bits > keys or scheme.value.bits > values

    def report(self) -> MemoryReport:
        """What the cache takes now."""
        return kv.memory_report(self.cache, self.scheme)


def _offsets(cache: list[Any]) -> list[int]:
    return [layer.offset for layer in flat_layers(cache) if isinstance(getattr(layer, "offset", None), int)]


def _holds(cache: list[Any], tokens: int) -> bool:
    """Whether every layer that counts its tokens has counted so many."""
    return all(offset == tokens for offset in _offsets(cache))


def _checkable(cache: list[Any]) -> bool:
    return len(_offsets(cache)) == len(flat_layers(cache))


def _shape(layer: Any) -> Any:
    """What must agree between a saved layer and one that the model makes: class, scheme, storage."""
    if isinstance(layer, mlx_cache.CacheList):
        return ["CacheList", *(_shape(part) for part in layer.caches)]
    told = [type(layer).__name__, getattr(layer, "scheme", None), str(getattr(layer, "dtype", None))]
    return [*told, getattr(layer, "max_size", None), getattr(layer, "keep", None)]

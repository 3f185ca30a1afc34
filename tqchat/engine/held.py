"""The tokens that a model's caches hold, and the caches that hold them: always in step."""

from __future__ import annotations

import tqchat.engine.ready  # noqa: F401

# isort: split

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generation_stream
from mlx_lm.models import cache as mlx_cache

from tqchat import kv
from tqchat.engine.models import LoadedModel
from tqchat.kv import checkpoint
from tqchat.kv.checkpoint import Checkpoint
from tqchat.kv.memory import MemoryReport
from tqchat.kv.prompt_cache import flat_layers, with_ropes
from tqchat.store.manifest import Pieces, cut
from tqchat.store.vault import Restored

FULL_PRECISION = (16, 16)
MOST_CHECKPOINTS, FEWEST_CHECKPOINTS = 8, 2
"""How many user turns are kept to go back to: two to answer again or edit, more while all of them together
take no more bytes than the cache itself."""


class HeldTokens:
    """A cache and the tokens in it. The token list is the truth: a cache that disagrees is thrown away.

    Attributes:
        scheme: Name of the cache's scheme.
        tokens: What the cache holds, first to last.
        restored: How many leading tokens came from disk.
        rounding: The fewest bits (of keys, of values) that packed history has been through.
        pieces: Segments on disk that hold the cache's first tokens as they are here.
        checkpoints: Where it can go back to if it cannot be trimmed, the shortest first.
    """

    def __init__(self, model: LoadedModel, scheme: str) -> None:
        self.model = model
        self.scheme = kv.parse_scheme(scheme).name
        self.cache: list[Any] = []
        self.tokens: list[int] = []
        self.restored = 0
        self.rounding = FULL_PRECISION
        self.pieces: Pieces = ()
        self.checkpoints: list[Checkpoint] = []
        self._beside: int | None = None
        self.clear()

    def clear(self) -> None:
        """Start over with an empty cache."""
        self.cache = kv.make_prompt_cache(self.model.model, self.scheme, dtype=self.model.cache_dtype)
        self.tokens = []
        self.restored = 0
        self.rounding = FULL_PRECISION
        self.pieces = ()
        self.checkpoints = []

    def adopt(self, found: Restored) -> str | None:
        """Take over a cache from disk; why not, if it is not one that this model makes."""
        cache, tokens = found.cache, found.tokens
        shapes = [_shape(layer) for layer in self.cache]
        if [_shape(layer) for layer in cache] != shapes:
            return "The saved cache does not have this model's layers"
        if not _holds(cache, len(tokens)):
            return "The saved cache does not hold the tokens that it should"
        # Nothing on disk says how a model turns its keys, which a later change of scheme wants to know.
        self.cache = with_ropes(cache, self.model.model)
        self.tokens, self.rounding = list(tokens), found.rounding
        self.pieces = found.pieces
        self.checkpoints = [
            one
            for one in found.checkpoints
            if [_shape(layer) for layer in checkpoint.replaced(cache, one.layers)] == shapes
            and _holds(list(one.layers.values()), one.tokens)
        ]
        self.restored = len(tokens)
        kv.stand_in(self.model.model, self.cache)
        return None

    def reach(self, keep: int) -> int:
        """How many of the first ``keep`` tokens ``rewind`` could keep."""
        if keep >= len(self.tokens) or checkpoint.can_trim(self.cache):
            return min(keep, len(self.tokens))
        return max((one.tokens for one in self.checkpoints if one.tokens <= keep), default=0)

    def rewind(self, keep: int) -> None:
        """Keep the first ``keep`` tokens, or as many of them as the cache can go back to: ``reach(keep)``."""
        reach = self.reach(keep)
        surplus = len(self.tokens) - reach
        if not surplus:
            return
        if not reach:
            self.clear()
            return
        if checkpoint.can_trim(self.cache):
            mlx_cache.trim_prompt_cache(self.cache, surplus)
        else:
            there = next(one for one in self.checkpoints if one.tokens == reach)
            self.cache = checkpoint.go_back(self.cache, there, surplus)
            kv.stand_in(self.model.model, self.cache)
        del self.tokens[reach:]
        self.pieces = cut(self.pieces, reach)
        self.checkpoints = [one for one in self.checkpoints if one.tokens <= reach]
        self.restored = min(self.restored, reach)
        if not _holds(self.cache, reach):
            self.clear()

    @property
    def needs_checkpoints(self) -> bool:
        """Whether trimming does not serve this model's caches for good."""
        return checkpoint.needs_checkpoints(self.cache)

    def take_checkpoint(self) -> None:
        """Make it possible to go back to where the cache is now, at the cost of the oldest such places."""
        tokens = len(self.tokens)
        if not self.needs_checkpoints or any(one.tokens == tokens for one in self.checkpoints):
            return
        self.checkpoints.append(checkpoint.take(self.cache, tokens))
        del self.checkpoints[:-MOST_CHECKPOINTS]
        most = kv.memory_report(self.cache).bytes
        while len(self.checkpoints) > FEWEST_CHECKPOINTS and self._checkpoint_bytes > most:
            del self.checkpoints[0]

    @property
    def _checkpoint_bytes(self) -> int:
        return sum(one.bytes for one in self.checkpoints)

    @property
    def allocated_bytes(self) -> int:
        """What the caches' arrays take now, room for growth and checkpoints included."""
        return sum(int(layer.nbytes) for layer in flat_layers(self.cache)) + self._checkpoint_bytes

    def pack_prompts(self, on: bool) -> None:
        """Whether what is read from now on is packed while it is read."""
        for layer in flat_layers(self.cache):
            if isinstance(layer, kv.SchemeCache):
                layer.packs_prompts = on

    def watch_peak(self) -> None:
        """Count the most that is allocated from now on; ``report`` tells it."""
        mx.reset_peak_memory()
        self._beside = mx.get_active_memory() - self.allocated_bytes

    def feed(self, tokens: Sequence[int]) -> None:
        """Let the model read tokens; they are in the cache, evaluated, when this returns."""
        with mx.stream(generation_stream):
            self.model.model(mx.array(list(tokens))[None], cache=self.cache)
            self.evaluate()
        self.tokens.extend(tokens)
        mx.clear_cache()

    def feed_in_chunks(self, tokens: Sequence[int]) -> Iterator[int]:
        """``feed`` in pieces that a person can interrupt; yields how many tokens are in after each."""
        step = reading_step(self.model, self.cache)
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

    def convert(
        self,
        scheme: str,
        stopped: Callable[[], bool] = lambda: False,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Put the same tokens under another scheme. An error, or ``stopped``, leaves the old cache whole.

        Raises:
            ConversionStopped, ConversionFailed: if that is how it ended.
        """
        old = kv.parse_scheme(self.scheme)
        packed = self.report().packed_tokens > 0
        try:
            if self.tokens and kv.needs_queries(self.cache, scheme):
                kv.observe_queries(self.model.model, self.tokens, self.cache)
            checkpoints = [checkpoint.converted(one, scheme) for one in self.checkpoints]
            kv.convert_in_place(self.cache, scheme, stopped=stopped, progress=progress)
        except BaseException:
            kv.forget_queries(self.cache)
            raise
        if packed:
            keys, values = self.rounding
            self.rounding = (min(keys, old.key.bits), min(values, old.value.bits))
        self.scheme = kv.parse_scheme(scheme).name
        self.pieces, self.checkpoints = (), checkpoints
        kv.stand_in(self.model.model, self.cache)

    def carries_coarser_rounding(self) -> bool:
        """Whether history was rounded more coarsely than the present scheme rounds."""
        scheme = kv.parse_scheme(self.scheme)
        keys, values = self.rounding
        return scheme.key.bits > keys or scheme.value.bits > values

    def report(self) -> MemoryReport:
        """What the cache takes now."""
        report = kv.memory_report(self.cache, self.scheme)
        peak = None if self._beside is None else max(0, mx.get_peak_memory() - self._beside)
        return replace(report, checkpoint_bytes=self._checkpoint_bytes, peak_bytes=peak)


def reading_step(model: LoadedModel, cache: list[Any]) -> int:
    """How many tokens of a prompt are read at once: half as many where prompts are packed to save memory,
    since each piece is raw while it is read.
    """
    packs = any(
        layer.packs_prompts and layer.scheme.compresses
        for layer in flat_layers(cache)
        if isinstance(layer, kv.SchemeCache)
    )
    return (512 if model.on_cpu else 2048) // (2 if packs else 1)


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

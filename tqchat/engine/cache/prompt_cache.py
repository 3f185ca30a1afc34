"""The prompt cache of one model: its per-layer caches and the tokens in them, kept consistent."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generation_stream
from mlx_lm.models import cache as mlx_cache

from tqchat import kv
from tqchat.engine import backend
from tqchat.engine.cache.stop_between_layers import PrefillStopped, can_stop_at, stopping_between_layers
from tqchat.engine.models import LoadedModel
from tqchat.engine.models.token_arrays import token_array
from tqchat.kv import checkpoint
from tqchat.kv.cache import ROLES
from tqchat.kv.checkpoint import Checkpoint
from tqchat.kv.memory import MemoryReport
from tqchat.kv.prompt_cache import (
    attach_ropes,
    flat_layers,
    pack_together,
    reading_together,
    replace_layers,
    scheme_caches,
)
from tqchat.kv.storage.rounding_history import UNROUNDED_BITS
from tqchat.kv.storage.write_behind import waiting_bytes
from tqchat.store.vault import Restored
from tqchat.store.vault.manifest import Pieces, trim_pieces

MAX_UNPACKED_TOKENS = 512
"""Longest tail and fine part of a saved cache."""

MAX_CHECKPOINTS, MIN_CHECKPOINTS = 8, 2
"""Two suffice to regenerate or edit; more are kept while together they are smaller than the cache."""

FIRST_CHUNK_TOKENS, MIN_CHUNK_TOKENS = 128, 16
"""If the time of a chunk is limited: size of the first, before the speed is known, and the least."""


class PromptCache:
    """Per-layer caches and the tokens they hold, cleared if the two disagree.

    Attributes:
        scheme: Name of the scheme.
        cache: One cache per layer, as mlx-lm expects them.
        tokens: Token ids in the cache.
        restored: Number of leading tokens that came from disk.
        pieces: Segments on disk that hold the cache's first tokens unchanged.
        checkpoints: Copies to go back to where the cache cannot be trimmed, shortest first.
        draft: The draft model's cache of the same conversation, under the same scheme.
        chunk_seconds: About how long one chunk of a prefill may take; ``None`` for the fastest prefill.
        held_back: Tokens beyond the tail that a reply leaves raw until so many are packed at once (see
            ``hold_back``), and until the cache is settled after it; 0 to pack tile by tile.
    """

    def __init__(self, model: LoadedModel, scheme: str, draft: LoadedModel | None = None) -> None:
        self.model = model
        self.scheme = kv.parse_scheme(scheme).name
        self.cache: list[Any] = []
        self.tokens: list[int] = []
        self.restored = 0
        self.pieces: Pieces = ()
        self.checkpoints: list[Checkpoint] = []
        self.draft = None if draft is None else PromptCache(draft, scheme)
        self.chunk_seconds: float | None = None
        self.held_back = 0
        self._other_bytes: int | None = None
        self.clear()

    def clear(self) -> None:
        """Start over with an empty cache."""
        scheme = self.model.resolve_scheme(self.scheme)
        self.cache = kv.make_prompt_cache(self.model.model, scheme, dtype=self.model.cache_dtype)
        self.tokens = []
        self.restored = 0
        self.pieces = ()
        self.checkpoints = []

    def copy(self, draft: LoadedModel | None = None) -> PromptCache:
        """An independent copy; the draft model reads its prompt again."""
        self.settle(certain=True)
        twin = PromptCache(self.model, self.scheme, draft)
        copies = {index: checkpoint.copy_layer(layer) for index, layer in enumerate(flat_layers(self.cache))}
        twin.cache = attach_ropes(replace_layers(self.cache, copies), self.model.model)
        kv.use_placeholders(self.model.model, twin.cache)
        twin.tokens, twin.pieces = list(self.tokens), self.pieces
        twin.checkpoints = list(self.checkpoints)
        return twin

    @property
    def _scheme_caches(self) -> list[kv.SchemeCache]:
        return scheme_caches(self.cache)

    @property
    def rounding(self) -> tuple[int, int]:
        """Fewest bits (of keys, of values) of tokens packed under earlier schemes; 16 if none."""
        keys, values = (
            min((layer.rounding[role].fewest for layer in self._scheme_caches), default=UNROUNDED_BITS)
            for role in ROLES
        )
        return keys, values

    def replace_with(self, found: Restored) -> str | None:
        """Take over a cache from disk. Returns the reason if its layers are not this model's."""
        cache, tokens = found.cache, found.tokens
        signatures = [_signature(layer) for layer in self.cache]
        if [_signature(layer) for layer in cache] != signatures:
            return "The saved cache does not have this model's layers"
        if not _holds(cache, len(tokens)):
            return "The saved cache does not hold the tokens that it should"
        # Rotary embeddings are not saved, and converting to another scheme needs them.
        self.cache = attach_ropes(cache, self.model.model)
        self.tokens = list(tokens)
        if self.rounding == (UNROUNDED_BITS, UNROUNDED_BITS):  # else each layer tells its own
            for layer in self._scheme_caches:
                layer.mark_rounded(found.rounding)
        self.pieces = found.pieces
        self.checkpoints = [
            one
            for one in found.checkpoints
            if [_signature(layer) for layer in replace_layers(cache, one.layers)] == signatures
            and _holds(list(one.layers.values()), one.tokens)
        ]
        self.restored = len(tokens)
        kv.use_placeholders(self.model.model, self.cache)
        return None

    def retained_tokens(self, keep: int) -> int:
        """Number of the first ``keep`` tokens that ``trim_to`` can keep."""
        if keep >= len(self.tokens) or checkpoint.can_trim(self.cache):
            return min(keep, len(self.tokens))
        return max((one.tokens for one in self.checkpoints if one.tokens <= keep), default=0)

    def trim_to(self, keep: int) -> None:
        """Keep the first ``retained_tokens(keep)`` tokens: ``keep``, or up to the checkpoint before it."""
        kept = self.retained_tokens(keep)
        surplus = len(self.tokens) - kept
        if not surplus:
            return
        if not kept:
            self.clear()
            return
        if checkpoint.can_trim(self.cache):
            mlx_cache.trim_prompt_cache(self.cache, surplus)
        else:
            target = next(one for one in self.checkpoints if one.tokens == kept)
            self.cache = checkpoint.roll_back(self.cache, target, surplus)
            kv.use_placeholders(self.model.model, self.cache)
        del self.tokens[kept:]
        self.pieces = trim_pieces(self.pieces, kept)
        self.checkpoints = [one for one in self.checkpoints if one.tokens <= kept]
        self.restored = min(self.restored, kept)
        if not _holds(self.cache, kept):
            self.clear()

    def forget_saved(self) -> None:
        """Forget what is on disk: files of the saved cache, and tokens as they were under earlier schemes."""
        self.pieces = ()
        layers = [
            *flat_layers(self.cache),
            *(layer for one in self.checkpoints for layer in one.layers.values()),
        ]
        for one in self.checkpoints:
            one.stored = None
        for layer in layers:
            if isinstance(layer, kv.SchemeCache):
                layer.forget_earlier()

    @property
    def needs_checkpoints(self) -> bool:
        """Whether some layer cannot be trimmed, or not once its window is full."""
        return checkpoint.needs_checkpoints(self.cache)

    def take_checkpoint(self) -> None:
        """Add a checkpoint at the current end if the model needs them, dropping the oldest over the limit."""
        tokens = len(self.tokens)
        if not self.needs_checkpoints or any(one.tokens == tokens for one in self.checkpoints):
            return
        self.checkpoints.append(checkpoint.take(self.cache, tokens))
        sizes = [one.bytes for one in self.checkpoints]
        del self.checkpoints[: -checkpoints_kept(sizes, kv.memory_report(self.cache).bytes)]

    @property
    def _checkpoint_bytes(self) -> int:
        return sum(one.bytes for one in self.checkpoints)

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the arrays: slack, checkpoints and the draft model's cache included."""
        shared = {id(array): array.nbytes for layer in self._scheme_caches for array in layer.shared_arrays}
        layers = sum(int(layer.nbytes) for layer in flat_layers(self.cache))
        draft = self.draft.allocated_bytes if self.draft is not None else 0
        return layers + sum(shared.values()) + self._checkpoint_bytes + draft

    def pack_prompts(self, on: bool) -> None:
        """Set whether prompts are packed during prefill, by the draft model's cache as well."""
        for layer in self._scheme_caches:
            layer.packs_prompts = on
        if self.draft is not None:
            self.draft.pack_prompts(on)

    def hold_back(self, on: bool) -> None:
        """Set whether the steps that follow leave ``held_back`` tokens raw; ``settle`` packs them.

        A short reply then fits no format and encodes nothing before its end, and its tokens are attended to
        raw. Windows pack as ever, as they drop tokens.
        """
        for layer in self._scheme_caches:
            if not layer.drops_tokens:
                for side in layer.sides:
                    side.least_packed = self.held_back if on else 0

    def pack_due(self) -> None:
        """Pack what is due. A reply does so between its steps, other prefills when they end."""
        with mx.stream(generation_stream):
            pack_together(self._scheme_caches)

    def reset_peak(self) -> None:
        """Start measuring the peak of allocated memory for ``report``."""
        mx.reset_peak_memory()
        self._other_bytes = mx.get_active_memory() - self.allocated_bytes - waiting_bytes()

    def prefill(self, tokens: Sequence[int], stopped: Callable[[], bool] | None = None) -> None:
        """Run the model over ``tokens``; they are in the cache and evaluated on return.

        Args:
            stopped: Asked between two layers on a CPU, where a chunk takes seconds. Layers are then evaluated
                one by one, with the same results in the same time.

        Raises:
            PrefillStopped: if it was stopped; the cache is unchanged.
        """
        with mx.stream(generation_stream):
            with self._stoppable(stopped), reading_together(self._scheme_caches):
                self.model.model(token_array(tokens)[None], cache=self.cache)
            self.evaluate()
        self.tokens.extend(tokens)
        backend.release_buffers()

    @contextmanager
    def _stoppable(self, stopped: Callable[[], bool] | None) -> Iterator[None]:
        if stopped is None or not self.model.on_cpu or not any(map(can_stop_at, flat_layers(self.cache))):
            yield
            return
        # Copies, not references: views of whole chunks would be held, and mlx-lm assigns into its arrays.
        before = checkpoint.take(self.cache, len(self.tokens))
        layers = self._scheme_caches
        queries = [layer.queries.final() for layer in layers]
        try:
            with stopping_between_layers(self.cache, stopped):
                yield
        except PrefillStopped:
            self.cache = replace_layers(self.cache, before.layers)
            self.drop_unfinished_step()
            for layer, seen in zip(layers, queries, strict=True):
                layer.queries = seen
            raise

    def prefill_in_chunks(
        self, tokens: Sequence[int], stopped: Callable[[], bool] | None = None
    ) -> Iterator[int]:
        """``prefill`` in chunks; yields the number of tokens read so far after each.

        Raises:
            PrefillStopped: if it was stopped before the last chunk was read; those before are in the cache.
        """
        limit = prefill_chunk_tokens(self.model, self.cache)
        step = limit if self.chunk_seconds is None else min(FIRST_CHUNK_TOKENS, limit)
        start = 0
        for layer in self._scheme_caches:
            layer.expect(len(tokens))
        try:
            while start < len(tokens):
                began = time.perf_counter()
                self.prefill(chunk := tokens[start : start + step], stopped)
                start += len(chunk)
                yield start
                if stopped is not None and start < len(tokens) and stopped():
                    raise PrefillStopped
                if self.chunk_seconds is not None:
                    speed = len(chunk) / max(time.perf_counter() - began, 1e-9)
                    step = min(limit, max(MIN_CHUNK_TOKENS, int(speed * self.chunk_seconds)))
            # No chunk follows that would pack these: a step with them raw would need a kernel of its own.
            with mx.stream(generation_stream):
                pack_together(layer for layer in self._scheme_caches if layer.packs_prompts)
        finally:
            # Any thread may get here that collects a generator, so arrays are left to ``settle``.
            for layer in self._scheme_caches:
                layer.expect(0)

    def drop_unfinished_step(self) -> None:
        """Drop what a step that failed has added to some layers; where that is impossible, read all again."""
        tokens = self.tokens
        longer = [layer for layer in flat_layers(self.cache) if getattr(layer, "offset", 0) > len(tokens)]
        if all(layer.is_trimmable() for layer in longer):
            for layer in longer:
                layer.trim(layer.offset - len(tokens))
            return
        self.clear()
        for _ in self.prefill_in_chunks(tokens):
            pass

    def evaluate(self) -> None:
        """Evaluate pending operations, before saving or converting the arrays."""
        mx.eval(
            [
                layer.take_submitted() if isinstance(layer, kv.SchemeCache) else layer.state
                for layer in flat_layers(self.cache)
                if not layer.empty()
            ]
        )

    def settle(self, certain: bool) -> None:
        """Pack and evaluate the cache after use, and clear it if it does not hold exactly ``tokens``.

        Args:
            certain: Whether the last operation completed. If not, a cache with layers that do not count their
                tokens is cleared, since it cannot be checked.
        """
        self.hold_back(False)
        try:
            self.pack_due()
            with mx.stream(generation_stream):
                for layer in self._scheme_caches:
                    layer.free_spare_room()
            self.evaluate()
            good = _holds(self.cache, len(self.tokens)) and (certain or _all_count_tokens(self.cache))
        except RuntimeError:
            good = False
        if not good:
            self.clear()
        for layer in self._scheme_caches:
            layer.release_working_arrays()
        if self.draft is not None:
            self.draft.settle(certain)

    def convert(
        self,
        scheme: str,
        stopped: Callable[[], bool] = lambda: False,
        progress: Callable[[int, int], None] = lambda done, total: None,
        backlog: int = 0,
    ) -> None:
        """Convert the cache to another scheme. An error, or ``stopped``, leaves the old cache intact.

        Args:
            backlog: See ``kv.convert_in_place``.

        Raises:
            ConversionStopped, ConversionFailed.
        """
        new = self.model.resolve_scheme(scheme)
        try:
            if self.tokens and kv.needs_queries(self.cache, new):
                kv.observe_queries(self.model.model, self.tokens, self.cache)
            checkpoints = checkpoint.convert(self.checkpoints, new)
            kv.convert_in_place(self.cache, new, stopped=stopped, progress=progress, backlog=backlog)
        except BaseException:
            kv.forget_queries(self.cache)
            raise
        self.scheme = new.name
        self.pieces, self.checkpoints = (), checkpoints
        kv.use_placeholders(self.model.model, self.cache)
        if self.draft is not None:  # its prompt is read again when it drafts
            self.draft.scheme = self.scheme
            self.draft.clear()

    def report(self) -> MemoryReport:
        """Memory report, with checkpoints, the draft model's cache and the peak since ``reset_peak``."""
        report = kv.memory_report(self.cache, self.scheme)
        peak = None
        if self._other_bytes is not None:
            peak = max(0, mx.get_peak_memory() - self._other_bytes)
        draft = self.draft.report() if self.draft is not None and self.draft.tokens else None
        checkpoints = tuple(one.report for one in self.checkpoints)
        return replace(report, checkpoints=checkpoints, peak_bytes=peak, draft=draft)


def checkpoints_kept(sizes: Sequence[int], cache_bytes: int) -> int:
    """Number of the newest checkpoints kept beside a cache.

    Args:
        sizes: Bytes of each, oldest first.
    """
    count = min(len(sizes), MAX_CHECKPOINTS)
    while count > MIN_CHECKPOINTS and sum(sizes[-count:]) > cache_bytes:
        count -= 1
    return count


def prefill_chunk_tokens(model: LoadedModel, cache: list[Any]) -> int:
    """Tokens per prefill chunk.

    On a CPU half as many if prompts are packed, since a chunk is raw while it is read. On a GPU larger chunks
    cost little memory beside the model's other arrays, and the history is decoded less often.
    """
    if not model.on_cpu:
        return 2048
    packs = any(
        layer.packs_prompts and layer.scheme.compresses
        for layer in flat_layers(cache)
        if isinstance(layer, kv.SchemeCache)
    )
    return 256 if packs else 512


def _offsets(cache: list[Any]) -> list[int]:
    return [layer.offset for layer in flat_layers(cache) if isinstance(getattr(layer, "offset", None), int)]


def _holds(cache: list[Any], tokens: int) -> bool:
    """Whether every layer that counts its tokens has counted ``tokens``, and ours hold them."""
    complete = all(layer.is_complete for layer in scheme_caches(cache))
    return complete and all(offset == tokens for offset in _offsets(cache))


def _all_count_tokens(cache: list[Any]) -> bool:
    return len(_offsets(cache)) == len(flat_layers(cache))


def _signature(layer: Any) -> Any:
    """Properties in which a saved layer must equal the model's own: class, scheme, dtype, window.

    Not its formats: they may have been allocated by an earlier profile. Nor tail and fine part, which other
    versions have shorter or longer, unless so many tokens would never be packed.
    """
    if isinstance(layer, mlx_cache.CacheList):
        return ["CacheList", *(_signature(part) for part in layer.caches)]
    scheme = layer.scheme if isinstance(layer, kv.SchemeCache) else None
    regions = None
    if scheme is not None:
        regions = scheme.name, scheme.sinks, scheme.tail + scheme.fine <= MAX_UNPACKED_TOKENS
    common = [type(layer).__name__, regions, str(getattr(layer, "dtype", None))]
    return [*common, getattr(layer, "max_size", None), getattr(layer, "keep", None)]

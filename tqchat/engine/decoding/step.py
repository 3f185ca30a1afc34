"""Steps of decoding: calls of the model over a few tokens, of one sequence or of several at once."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, TypeVar

import mlx.core as mx
from mlx_lm.generate import generation_stream
from mlx_lm.models.cache import RotatingKVCache

from tqchat import kv
from tqchat.engine.cache.prompt_cache import PromptCache
from tqchat.engine.models.token_arrays import token_array
from tqchat.kv.attention.compiled_step import logits_of
from tqchat.kv.attention.per_model import PerModel
from tqchat.kv.attention.routing import Route, route_of
from tqchat.kv.batch import BatchCache
from tqchat.kv.cache import packing_later
from tqchat.kv.prompt_cache import flat_layers, replace_layers
from tqchat.kv.window import RingRow

Yielded = TypeVar("Yielded")

TRIAL_TOKENS = 8
"""Length of the sequence that a model reads once to find out whether it batches correctly."""

TOLERANCE = 0.05
"""Largest difference of a batch's logits from those of single steps, as a share of the logits' range."""

_log = logging.getLogger(__name__)


class Step:
    """A step that a decoder is about to run. Whoever receives it may run it in a batch before.

    Attributes:
        shared: Whether other sequences that could be in a batch with this one decode at the same time.
    """

    def __init__(
        self,
        held: PromptCache,
        tokens: mx.array,
        during: Callable[[Iterable[Any]], AbstractContextManager[None]] = packing_later,
    ) -> None:
        """
        Args:
            held: The sequence's cache, without the tokens.
            tokens: ``[count]``, evaluated or not.
            during: Context of the step, given the layers of the cache. By default it leaves packing to
                ``held.pack_due``, which packs all layers at once.
        """
        self.held = held
        self.tokens = tokens
        self.shared = False
        self._during = during
        self._logits: mx.array | None = None
        self._failed = False

    def context(self) -> AbstractContextManager[None]:
        """Context manager of the model's calls."""
        return self._during(flat_layers(self.held.cache))

    def result(self) -> mx.array:
        """Logits behind each token, ``[count, vocabulary]``. Calls the model unless a batch has done so."""
        if self._failed:
            self.held.drop_unfinished_step()
        if self._logits is None:
            with mx.stream(generation_stream), self.context():
                model = self.held.model
                self._logits = logits_of(model.model, self.tokens[None], self.held.cache, model)[0]
        return self._logits

    @staticmethod
    def run_together(steps: Sequence[Step]) -> None:
        """Run the steps that can be in one call of the model; others, and all if it fails, remain to be run.

        Args:
            steps: Of different caches of the same model.
        """
        if len(steps) < 2 or len(batchable := [step for step in steps if can_batch(step.held)]) < 2:
            return
        for step in batchable:
            step.shared = True
        batch = [step for step in batchable if step.tokens.size == 1]
        if len(batch) < 2:
            return
        try:
            with mx.stream(generation_stream), ExitStack() as contexts:
                for step in batch:
                    contexts.enter_context(step.context())
                tokens = mx.concatenate([step.tokens for step in batch])
                logits = _call(batch[0].held.model.model, [step.held.cache for step in batch], tokens)
                mx.async_eval(logits)  # type: ignore[no-untyped-call]  # memory that lacks is told here
        except Exception:
            _log.exception("A batch of %d steps failed; they are run one by one", len(batch))
            for step in batch:
                step._failed = True
            return
        for row, step in enumerate(batch):
            step._logits = logits[row : row + 1]


def alone(work: Iterable[Yielded | Step]) -> Iterator[Yielded]:
    """The same without the steps, each of which is run by itself."""
    try:
        for one in work:
            if not isinstance(one, Step):
                yield one
    finally:
        if isinstance(work, Generator):
            work.close()


def can_batch(held: PromptCache) -> bool:
    """Whether steps of this cache can be batched with others of its model.

    All its layers must be caches that are batched without being copied, and the model must take a position
    per sequence: it is tried once on a few tokens, as models are not made for batches alike.
    """
    if not all(map(_has_rows, flat_layers(held.cache))):
        return False
    return _batches.get(held.model.model, lambda: _gives_the_same_in_a_batch(held))


_batches = PerModel[bool]()


def _gives_the_same_in_a_batch(held: PromptCache) -> bool:
    model, tokens = held.model.model, token_array(range(TRIAL_TOKENS))
    scheme = held.model.resolve_scheme(held.scheme)

    def read(count: int) -> tuple[list[Any], mx.array]:
        cache = kv.make_prompt_cache(model, scheme, dtype=held.model.cache_dtype)
        return cache, model(tokens[None, :count], cache=cache)[0].astype(mx.float32)

    lengths = 1, TRIAL_TOKENS // 2, TRIAL_TOKENS - 1  # as many as few models have heads
    try:
        with mx.stream(generation_stream):
            _, logits = read(TRIAL_TOKENS)
            expected = logits[mx.array(lengths)]
            caches = [read(count)[0] for count in lengths]
            difference = mx.abs(_call(model, caches, tokens[mx.array(lengths)]) - expected)
            return bool((difference.max() <= TOLERANCE * (expected.max() - expected.min())).item())
    except Exception as error:
        _log.info("The model's steps are not batched: %s", error)
        return False


def _has_rows(layer: Any) -> bool:
    is_ring = type(layer) is RotatingKVCache and not layer.keep
    return isinstance(layer, kv.SchemeCache) or is_ring


def _row(layer: Any, route: Route) -> Any:
    return layer if isinstance(layer, kv.SchemeCache) else RingRow(layer, route)


def _call(model: Any, caches: Sequence[list[Any]], tokens: mx.array) -> mx.array:
    """Logits behind one token of each sequence, ``[sequences, vocabulary]``."""
    route = route_of(model)
    layers = enumerate(zip(*(flat_layers(cache) for cache in caches), strict=True))
    batches = {index: BatchCache([_row(layer, route) for layer in parts]) for index, parts in layers}
    logits: mx.array = model(tokens[:, None], cache=replace_layers(caches[0], batches))[:, -1]
    return logits

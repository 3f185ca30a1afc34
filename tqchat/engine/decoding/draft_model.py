"""Proposals of a draft model: a small model with the same vocabulary."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

from collections.abc import Sequence

import mlx.core as mx
from mlx_lm.generate import generation_stream

from tqchat.engine.cache.prompt_cache import PromptCache
from tqchat.engine.decoding.sampling import PENALTY_WINDOW, Sampler
from tqchat.engine.failures import DraftMismatch
from tqchat.engine.models import LoadedModel
from tqchat.engine.models.token_arrays import token_array, token_ids
from tqchat.engine.sequences import common_prefix
from tqchat.kv.attention.compiled_step import logits_of

MAX_DRAFTED_TOKENS = 4
"""Most tokens that a draft model proposes at a time."""


def check_draft(model: LoadedModel, draft: LoadedModel) -> None:
    """Check that a draft model has the model's vocabulary.

    Raises:
        DraftMismatch: if it does not.
    """
    if model.tokenizer.get_vocab() != draft.tokenizer.get_vocab():
        raise DraftMismatch(
            f"{draft.info.name} cannot draft for {model.info.name}: their vocabularies differ. "
            "Choose a smaller model of the same family."
        )


class DraftModel:
    """Proposes what a draft model samples.

    It samples with the model's seeds: where the two models have the same distribution, they sample the same.
    """

    def __init__(self, cache: PromptCache, sampler: Sampler) -> None:
        """
        Args:
            cache: The draft model's cache, with any tokens.
            sampler: The model's.
        """
        self._cache = cache
        self._sampler = sampler

    def expects(self, tokens: Sequence[int]) -> bool:
        """Always."""
        return True

    def propose(self, tokens: Sequence[int], number: int, most: int) -> list[int]:
        """The draft model's next tokens, after a prefill of those it has not read."""
        count = min(most, MAX_DRAFTED_TOKENS)
        cache = self._cache
        shared = common_prefix(tokens, cache.tokens)
        cache.trim_to(min(shared, len(tokens) - 1))
        unread = list(tokens[len(cache.tokens) :])
        for _ in cache.prefill_in_chunks(unread[:-1]):
            pass
        token = token_array(unread[-1:])
        sampled: list[mx.array] = []
        before = tokens[-PENALTY_WINDOW:]
        with mx.stream(generation_stream):
            for step in range(count):
                logits = logits_of(cache.model.model, token[None], cache.cache, cache.model)[:, -1]
                ahead = mx.concatenate(sampled) if sampled else None
                token = self._sampler.sample(logits, number + step, before, ahead)
                sampled.append(token)
            proposed = token_ids(mx.concatenate(sampled))
        cache.tokens.extend(unread[-1:] + proposed[:-1])
        return proposed

    def verified(self, proposed: int, accepted: int, seconds: float) -> None:
        """A draft model proposes as many tokens whatever was accepted."""

    def stepped(self, seconds: float, read_ahead: bool) -> None:
        """A draft model proposes as many tokens however long steps take."""

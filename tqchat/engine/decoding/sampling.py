"""Sampler and penalties from the sampling settings."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

import random
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import mlx.core as mx
from mlx_lm.sample_utils import make_logits_processors, make_sampler

from tqchat.engine.commands import Sampling
from tqchat.engine.models.token_arrays import token_array

PENALTY_WINDOW = 20
"""Recent tokens that penalties apply to."""

XTC_THRESHOLD = 0.1
"""mlx-lm's default."""

SEED_BITS = 63


class Sampler(Protocol):
    """Chooses the tokens of a reply, one at a time or several; see ``TokenSampler``."""

    def sample(
        self, logits: mx.array, number: int, before: Sequence[int], pending: mx.array | None = None
    ) -> mx.array: ...

    def sample_rows(
        self, logits: mx.array, number: int, before: Sequence[int], then: Sequence[int]
    ) -> mx.array: ...


class TokenSampler:
    """Samples the tokens of a reply.

    A token depends on its logits, the tokens before it, its number in the reply and the seed, and on nothing
    else: not on how many tokens are sampled at a time, nor on how much of the prompt a cache already held.
    """

    def __init__(self, sampling: Sampling, vocabulary: int, never_excluded: Collection[int] = ()) -> None:
        """
        Args:
            sampling: From ``resolve_sampling``.
            never_excluded: End-of-turn tokens, which XTC must not exclude.
        """
        top_k = sampling.top_k or 0
        self._sample: Callable[[mx.array], mx.array] = make_sampler(
            temp=sampling.temperature or 0.0,
            top_p=sampling.top_p or 0.0,
            min_p=sampling.min_p or 0.0,
            top_k=top_k if 0 < top_k < vocabulary else 0,
            xtc_probability=sampling.xtc_probability or 0.0,
            xtc_threshold=XTC_THRESHOLD if sampling.xtc_threshold is None else sampling.xtc_threshold,
            xtc_special_tokens=sorted(never_excluded),
        )
        penalty = sampling.repetition_penalty
        self._penalties: list[Callable[[mx.array, mx.array], mx.array]] = make_logits_processors(
            repetition_penalty=None if penalty == 1 else penalty,
            repetition_context_size=PENALTY_WINDOW,
            presence_penalty=sampling.presence_penalty,
            presence_context_size=PENALTY_WINDOW,
            frequency_penalty=sampling.frequency_penalty,
            frequency_context_size=PENALTY_WINDOW,
        )
        self._is_greedy = not sampling.temperature
        self._random = random.Random(sampling.seed)
        self._seeds: list[int] = []

    def sample(
        self, logits: mx.array, number: int, before: Sequence[int], pending: mx.array | None = None
    ) -> mx.array:
        """Sample a token, shape ``[1]``; not evaluated.

        Args:
            logits: ``[1, vocabulary]``; may be changed.
            number: Of the token in the reply, from 0.
            before: The tokens before it; the last ``PENALTY_WINDOW`` suffice.
            pending: A sampled token between those and this one, ``[1]``.
        """
        if self._penalties:
            recent = token_array(before[-PENALTY_WINDOW:])
            if pending is not None:
                recent = mx.concatenate([recent, pending])
            for penalise in self._penalties:
                logits = penalise(recent, logits)
        if not self._is_greedy:
            mx.random.seed(self._seed(number))
        return self._sample(logits - mx.logsumexp(logits, axis=-1, keepdims=True))

    def sample_rows(
        self, logits: mx.array, number: int, before: Sequence[int], then: Sequence[int]
    ) -> mx.array:
        """Sample a token after ``before`` and after each of the tokens ``then``; not evaluated.

        Args:
            logits: ``[1 + len(then), vocabulary]``.
            number: Of the first token in the reply.
        """
        if self._is_greedy and not self._penalties:
            return self._sample(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        tokens = [*before[-PENALTY_WINDOW:], *then]
        first = len(tokens) - len(then)
        return mx.concatenate(
            [
                self.sample(logits[row : row + 1], number + row, tokens[: first + row])
                for row in range(len(then) + 1)
            ]
        )

    def _seed(self, number: int) -> int:
        while len(self._seeds) <= number:
            self._seeds.append(self._random.getrandbits(SEED_BITS))
        return self._seeds[number]

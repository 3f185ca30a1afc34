"""Sampler and penalties from the sampling settings."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

from collections.abc import Callable, Collection, Sequence

import mlx.core as mx
from mlx_lm.sample_utils import make_logits_processors, make_sampler

from tqchat.engine.commands import Sampling

PENALTY_WINDOW = 20
"""Recent tokens that penalties apply to."""

XTC_THRESHOLD = 0.1
"""mlx-lm's default."""

Processor = Callable[[mx.array, mx.array], mx.array]
"""Logits processor: (tokens, logits) to logits."""


def sampler_for(
    sampling: Sampling, vocabulary: int, never_excluded: Collection[int] = ()
) -> Callable[[mx.array], mx.array]:
    """A function that samples a token from log-probabilities.

    Args:
        sampling: From ``resolve_sampling``.
        never_excluded: End-of-turn tokens, which XTC must not exclude.
    """
    top_k = sampling.top_k or 0
    sampler: Callable[[mx.array], mx.array] = make_sampler(
        temp=sampling.temperature or 0.0,
        top_p=sampling.top_p or 0.0,
        min_p=sampling.min_p or 0.0,
        top_k=top_k if 0 < top_k < vocabulary else 0,
        xtc_probability=sampling.xtc_probability or 0.0,
        xtc_threshold=XTC_THRESHOLD if sampling.xtc_threshold is None else sampling.xtc_threshold,
        xtc_special_tokens=sorted(never_excluded),
    )
    return sampler


def processors_for(sampling: Sampling, prompt: Sequence[int]) -> list[Processor]:
    """The repetition, presence and frequency penalties that are set.

    mlx-lm passes a processor only the tokens that it feeds itself, which depend on how much of the prompt a
    cache already held. Penalties must not, so the end of the prompt is prepended.
    """
    penalty = sampling.repetition_penalty
    penalties = make_logits_processors(
        repetition_penalty=None if penalty == 1 else penalty,
        repetition_context_size=PENALTY_WINDOW,
        presence_penalty=sampling.presence_penalty,
        presence_context_size=PENALTY_WINDOW,
        frequency_penalty=sampling.frequency_penalty,
        frequency_context_size=PENALTY_WINDOW,
    )
    prompt_end = mx.array(list(prompt[-PENALTY_WINDOW - 1 : -1]), dtype=mx.int32)

    def with_prompt(process: Processor) -> Processor:
        return lambda tokens, logits: process(mx.concatenate([prompt_end, tokens.astype(mx.int32)]), logits)

    return [with_prompt(process) for process in penalties]

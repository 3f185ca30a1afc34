"""How tokens are sampled."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

from collections.abc import Callable, Collection, Sequence

import mlx.core as mx
from mlx_lm.sample_utils import make_logits_processors, make_sampler

from tqchat.engine.commands import Sampling

PENALTY_WINDOW = 20
"""How many recent tokens penalties look at."""

Processor = Callable[[mx.array, mx.array], mx.array]


XTC_THRESHOLD = 0.1
"""mlx-lm's own."""


def sampler_for(
    sampling: Sampling, vocabulary: int, never_excluded: Collection[int] = ()
) -> Callable[[mx.array], mx.array]:
    """What draws a token from log-probabilities, for resolved ``sampling``.

    Args:
        never_excluded: Tokens that XTC does not leave out: ends of turn.
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
    """The penalties on repetition, if there are any.

    mlx-lm shows a processor only the tokens that it feeds itself, which depends on how much of the prompt a
    cache already held. Penalties must not: they are given the prompt's end as well.
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
    before = mx.array(list(prompt[-PENALTY_WINDOW - 1 : -1]), dtype=mx.int32)

    def with_prompt(punish: Processor) -> Processor:
        return lambda tokens, logits: punish(mx.concatenate([before, tokens.astype(mx.int32)]), logits)

    return [with_prompt(punish) for punish in penalties]

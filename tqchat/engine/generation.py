"""How tokens are sampled."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

from collections.abc import Callable, Sequence

import mlx.core as mx
from mlx_lm.sample_utils import make_logits_processors, make_sampler

from tqchat.engine.commands import Sampling

PENALTY_WINDOW = 20
"""How many recent tokens a repetition penalty looks at."""

Processor = Callable[[mx.array, mx.array], mx.array]


def sampler_for(sampling: Sampling, vocabulary: int) -> Callable[[mx.array], mx.array]:
    """What draws a token from log-probabilities, for settled ``sampling``."""
    top_k = sampling.top_k or 0
    sampler: Callable[[mx.array], mx.array] = make_sampler(
        temp=sampling.temperature or 0.0,
        top_p=sampling.top_p or 0.0,
        min_p=sampling.min_p or 0.0,
        top_k=top_k if 0 < top_k < vocabulary else 0,
    )
    return sampler


def processors_for(sampling: Sampling, prompt: Sequence[int]) -> list[Processor]:
    """The repetition penalty, if there is one.

    mlx-lm shows a processor only the tokens that it feeds itself, which depends on how much of the prompt a
    cache already held. The penalty must not: it is given the prompt's end as well.
    """
    penalty = sampling.repetition_penalty
    if penalty is None or penalty in (0, 1):
        return []
    (punish,) = make_logits_processors(repetition_penalty=penalty, repetition_context_size=PENALTY_WINDOW)
    before = mx.array(list(prompt[-PENALTY_WINDOW - 1 : -1]), dtype=mx.int32)

    def with_prompt(tokens: mx.array, logits: mx.array) -> mx.array:
        return punish(mx.concatenate([before, tokens.astype(mx.int32)]), logits)

    return [with_prompt]

"""How tokens are drawn and become text."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

from collections.abc import Callable, Sequence
from typing import Any

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


class TextStream:
    """Tokens in, text out: whole characters, no special tokens, nothing past ``stop_text``."""

    def __init__(self, tokenizer: Any, stop_text: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = tokenizer.detokenizer
        self._special = frozenset(tokenizer.all_special_ids) | frozenset(tokenizer.eos_token_ids)
        self._stop_text = stop_text
        self._held = ""
        self._shown_ahead = ""
        self.text = ""
        self.ended = False
        """Whether ``stop_text`` has come."""

    def begin_after(self, tokens: Sequence[int]) -> None:
        """Go on behind text that was shown before: what follows keeps its leading space, and what was held
        back and shown at the end of that text is not shown twice.
        """
        before = TextStream(self._tokenizer)
        for token in tokens:
            before.add(token)
            self._detokenizer.add_token(token)
        before.finish()
        self._shown_ahead = before.text[len(self._detokenizer.last_segment) :]

    def add(self, token: int) -> str:
        """The text that this token completes; often a word, sometimes nothing."""
        if token in self._special or self.ended:
            return ""
        self._detokenizer.add_token(token)
        return self._release(self._detokenizer.last_segment)

    def finish(self) -> str:
        """What is still held back. Bytes of a character that was never completed are left out."""
        if self.ended:
            return ""
        try:
            self._detokenizer.finalize()
            rest = self._detokenizer.last_segment
        except KeyError:  # mlx-lm's byte-level detokenizer cannot flush added tokens with spaces in them
            rest = ""
        return self._release(rest.rstrip("\ufffd"), last=True)

    def _release(self, segment: str, last: bool = False) -> str:
        if self._shown_ahead and segment:
            segment, self._shown_ahead = segment.removeprefix(self._shown_ahead), ""
        if self._stop_text is not None and not self.ended:
            self._held += segment
            at = self._held.find(self._stop_text)
            if at >= 0:
                segment, self._held, self.ended = self._held[:at], "", True
            else:
                keep = 0 if last else _overlap(self._held, self._stop_text)
                cut = len(self._held) - keep
                segment, self._held = self._held[:cut], self._held[cut:]
        self.text += segment
        return segment


def _overlap(text: str, stop: str) -> int:
    """How long an end of ``text`` is a beginning of ``stop``."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0

"""The decode loop: one token at a time, or several that were proposed (speculative decoding)."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

import time
from collections.abc import Generator, Iterator, Sequence
from itertools import takewhile

import mlx.core as mx
from mlx_lm.generate import generation_stream
from mlx_lm.models import cache as mlx_cache

from tqchat.engine.cache.prompt_cache import PromptCache
from tqchat.engine.commands import Sampling
from tqchat.engine.decoding.draft_model import DraftModel
from tqchat.engine.decoding.logprobs import Logprobs
from tqchat.engine.decoding.prompt_lookup import PromptLookup
from tqchat.engine.decoding.proposer import Proposer
from tqchat.engine.decoding.sampling import Sampler, TokenSampler
from tqchat.engine.decoding.step import Step, alone
from tqchat.engine.models import LoadedModel
from tqchat.engine.models.token_arrays import token_array, token_ids
from tqchat.kv import checkpoint
from tqchat.kv.cache import MAX_DECODE_ROWS, verifying
from tqchat.kv.prompt_cache import scheme_caches

STEPS_PER_CLEAR = 256
"""Steps between two releases of MLX's unused buffers, as in mlx-lm."""


def can_draft(held: PromptCache) -> bool:
    """Whether proposed tokens can be trimmed: not from recurrent states, nor from full windows."""
    return not held.needs_checkpoints and checkpoint.can_trim(held.cache)


def no_draft_reason(model: LoadedModel) -> str | None:
    """A sentence if nothing can be proposed to a model, else ``None``."""
    if can_draft(PromptCache(model, "fp16")):
        return None
    return (
        f"{model.info.name} replies without drafts: its sliding windows or recurrent layers "
        "cannot take rejected tokens back."
    )


class Decoder:
    """Iterator over a reply's sampled tokens; keeps ``held`` consistent with the model's cache.

    Whenever a token is yielded, ``held.tokens`` is what the cache holds. ``steps`` yields each step of the
    model, too, before it is run, so that it can be run with those of other decoders.

    Every token is sampled from the model's own distribution, and with its own seed: proposals change when it
    comes, and nothing else. Proposals end where the cache packs, so that each token is read from the same
    storage as in single steps.

    Attributes:
        drafted: Tokens that were proposed.
        accepted: How many of them the model sampled as well.
    """

    def __init__(
        self,
        held: PromptCache,
        prompt: Sequence[int],
        sampling: Sampling,
        max_tokens: int,
        lookup: bool = False,
        sampler: Sampler | None = None,
        logprobs: Logprobs | None = None,
    ) -> None:
        """
        Args:
            held: The model's cache, with all of ``prompt`` but its last token. Its draft model proposes
                tokens, if there is one.
            sampling: From ``resolve_sampling``.
            max_tokens: The most tokens to sample.
            lookup: Whether proposals are looked up in prompt and reply, without a draft model.
            sampler: Used instead of that of ``sampling``.
            logprobs: Gets those of sampled tokens.
        """
        self._held = held
        self._sequence = list(prompt)
        self._prompt_tokens = len(prompt)
        self._tokens_left = max_tokens
        ends = held.model.reply_format.end_tokens
        self._ends = frozenset(ends)
        self._sampler: Sampler = sampler or TokenSampler(sampling, len(held.model.tokenizer), ends)
        if logprobs is not None:
            self._sampler = logprobs.watching(self._sampler)
        self._proposer: Proposer | None = None
        if can_draft(held) and held.draft is not None:
            self._proposer = DraftModel(held.draft, self._sampler)
        elif can_draft(held) and lookup:
            self._proposer = PromptLookup()
        self._paused = self._is_shared = False
        self.drafted = 0
        self.accepted = 0

    def __iter__(self) -> Iterator[int]:
        return alone(self.steps())

    def steps(self) -> Iterator[Step | int]:
        """The reply's tokens, and the steps that lead to them."""
        while self._tokens_left > 0:
            self._paused = False
            yield from self._run()

    def pause(self) -> bool:
        """End the current step, so that the cache can be replaced; ``False`` if it cannot be trimmed.

        Tokens that the step read ahead are trimmed, and read again later.
        """
        held, keep = self._held, len(self._sequence) - 1
        if held.retained_tokens(keep) != keep:
            return False
        held.evaluate()
        held.trim_to(keep)
        self._paused = True
        return True

    def force(self, tokens: Sequence[int]) -> None:
        """Append tokens to the reply as if the model had generated them.

        Works for every kind of cache: only proposed tokens are ever trimmed.
        """
        held = self._held
        held.evaluate()
        self.close()
        self._sequence += tokens
        self._tokens_left = max(0, self._tokens_left - len(tokens))
        if missing := self._sequence[len(held.tokens) : -1]:
            held.prefill(missing)
        self._paused = True

    def close(self) -> None:
        """End the reply. Proposed tokens that were accepted but not yielded are trimmed."""
        if len(self._held.tokens) > len(self._sequence):
            self._held.trim_to(len(self._sequence))

    def complete(self) -> None:
        """End the reply with its last token in the cache, which most steps have read ahead."""
        for _ in self.last_step():
            pass

    def last_step(self) -> Iterator[Step]:
        """``complete``, with the step that this takes, if any."""
        held = self._held
        self.close()
        if self._number and len(held.tokens) == len(self._sequence) - 1:
            held.pack_due()
            yield from self._submit(Step(held, token_array(self._sequence[-1:])), self._number)
            held.tokens.append(self._sequence[-1])

    @property
    def _number(self) -> int:
        """Number of the next token in the reply."""
        return len(self._sequence) - self._prompt_tokens

    @property
    def _used_proposer(self) -> Proposer | None:
        """None while steps are shared: a row of a batch costs less than one that is verified by itself."""
        return None if self._is_shared else self._proposer

    def _record(self, token: int) -> int:
        self._sequence.append(token)
        self._tokens_left -= 1
        return token

    def _run(self) -> Iterator[Step | int]:
        """Steps and tokens until the reply is complete or paused."""
        held = self._held
        pending: mx.array | None = None
        was_read_ahead, steps = False, 0
        known_at = time.perf_counter()
        while self._tokens_left > 0:
            if pending is None:
                if steps:  # the first token does not wait until the prompt is packed
                    held.pack_due()
                # Nothing is proposed for the first token: it does not wait for a draft model's prefill.
                if steps and (proposer := self._used_proposer) and (proposed := self._proposed(proposer)):
                    tokens = yield from self._verify(proposed)
                    seconds, known_at = _since(known_at)
                    self.drafted += len(proposed)
                    proposer.verified(len(proposed), len(tokens) - 1, seconds)
                    for number, token in enumerate(tokens):
                        self.accepted += number < len(tokens) - 1
                        yield self._record(token)
                        if self._paused:
                            return
                    continue
                pending = yield from self._submit(Step(held, token_array(self._sequence[-1:])), self._number)
                held.tokens.append(self._sequence[-1])
                was_read_ahead = False
            # The next step is submitted before this one's token is known, unless a proposal may follow it.
            # Not after the first token: a CPU, which queues little, would delay it by a step.
            proposer = self._used_proposer
            waits = not steps or (proposer is not None and proposer.expects(self._sequence))
            following = None
            if not waits:
                held.pack_due()
                following = yield from self._submit(Step(held, pending), self._number + 1, pending)
            (token,) = token_ids(pending)
            if following is not None:
                held.tokens.append(token)
            seconds, known_at = _since(known_at)
            if proposer is not None and steps:  # the first step ends a prefill
                proposer.stepped(seconds, was_read_ahead)
            steps += 1
            yield self._record(token)
            if self._paused:
                return
            if steps % STEPS_PER_CLEAR == 0:
                mx.clear_cache()
            pending, was_read_ahead = following, following is not None

    def _submit(
        self, step: Step, number: int, pending: mx.array | None = None
    ) -> Generator[Step, None, mx.array]:
        """Start a step over one token. Returns the token that it samples, not waited for.

        Args:
            number: Of the sampled token in the reply.
            pending: The token, if it is not known yet.
        """
        yield step
        self._is_shared = step.shared
        with mx.stream(generation_stream):
            sampled = self._sampler.sample(step.result(), number, self._sequence, pending)
            mx.async_eval(sampled)  # type: ignore[no-untyped-call]
        return sampled

    def _proposed(self, proposer: Proposer) -> list[int]:
        """Proposed tokens, as many as can be verified now; none from an end of turn on."""
        most = min(MAX_DECODE_ROWS, self._tokens_left, _steps_until_packing(self._held)) - 1
        if most <= 0:
            return []
        proposed = proposer.propose(self._sequence, self._number, most)
        return list(takewhile(lambda token: token not in self._ends, proposed))

    def _verify(self, proposed: list[int]) -> Generator[Step, None, list[int]]:
        """Read proposed tokens in one step. Returns those that the model samples, too, and one more."""
        held = self._held
        yield (step := Step(held, token_array(self._sequence[-1:] + proposed), verifying))
        self._is_shared = step.shared
        with mx.stream(generation_stream):
            rows = step.result()
            sampled = self._sampler.sample_rows(rows, self._number, self._sequence, proposed)
            found = token_ids(sampled)
        agreeing = 0
        while agreeing < len(proposed) and proposed[agreeing] == found[agreeing]:
            agreeing += 1
        if agreeing < len(proposed):
            mlx_cache.trim_prompt_cache(held.cache, len(proposed) - agreeing)
        held.tokens.extend(self._sequence[-1:] + proposed[:agreeing])
        return found[: agreeing + 1]


def _since(then: float) -> tuple[float, float]:
    """Seconds that have passed, and the time now."""
    now = time.perf_counter()
    return now - then, now


def _steps_until_packing(held: PromptCache) -> int:
    """Tokens until the cache packs next; a large number if never."""
    layers = scheme_caches(held.cache)
    return min((side.tokens_until_due for layer in layers for side in layer.sides), default=MAX_DECODE_ROWS)

"""The decode loop: one token at a time, or several with a draft model (speculative decoding)."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step, generation_stream
from mlx_lm.models import cache as mlx_cache

from tqchat.engine.cache.prompt_cache import PromptCache
from tqchat.engine.commands import Sampling
from tqchat.engine.failures import DraftMismatch
from tqchat.engine.generation import Processor, processors_for, sampler_for
from tqchat.engine.models import LoadedModel
from tqchat.engine.sequences import common_prefix
from tqchat.kv import checkpoint
from tqchat.kv.cache import SchemeCache
from tqchat.kv.prompt_cache import flat_layers

MAX_PROPOSED_TOKENS = 4
"""Most tokens that a draft model proposes at a time."""

Sampler = Callable[[mx.array], mx.array]


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


class Decoder:
    """Iterator over a reply's sampled tokens; keeps ``held`` consistent with the model's cache.

    Whenever a token is yielded, ``held.tokens`` is what the cache holds.

    Attributes:
        drafted: Tokens that the draft model proposed.
        accepted: How many of them the model sampled as well.
    """

    def __init__(
        self,
        held: PromptCache,
        prompt: Sequence[int],
        sampling: Sampling,
        max_tokens: int,
        draft: PromptCache | None = None,
    ) -> None:
        """
        Args:
            held: The model's cache, with all of ``prompt`` but its last token.
            sampling: From ``resolve_sampling``.
            max_tokens: The most tokens to sample.
            draft: The draft model's cache, with any tokens; ``None`` for plain decoding.
        """
        self._held = held
        self._sequence = list(prompt)
        self._sampling = sampling
        self._tokens_left = max_tokens
        self._draft = draft if draft is not None and _can_undo(held) and _can_undo(draft) else None
        self._sampler: Sampler = sampler_for(
            sampling, len(held.model.tokenizer), held.model.reply_format.end_tokens
        )
        self._steps: Any = None
        self._paused = False
        self.drafted = 0
        self.accepted = 0

    def __iter__(self) -> Iterator[int]:
        while self._tokens_left > 0:
            self._paused = False
            yield from self._plain() if self._draft is None else self._speculate(self._draft)

    def pause(self) -> bool:
        """End the current step, so that the cache can be replaced; ``False`` if it cannot be trimmed.

        Tokens that the step read ahead are trimmed, and read again later.
        """
        held, keep = self._held, len(self._sequence) - 1
        if held.retained_tokens(keep) != keep:
            return False
        self.close()
        held.evaluate()
        held.trim_to(keep)
        self._paused = True
        return True

    def force(self, tokens: Sequence[int]) -> None:
        """Append tokens to the reply as if the model had generated them.

        Works for every kind of cache: only tokens that a draft model proposed are ever trimmed.
        """
        held = self._held
        self.close()
        held.evaluate()
        if len(held.tokens) > len(self._sequence):
            held.trim_to(len(self._sequence))
        self._sequence += tokens
        self._tokens_left = max(0, self._tokens_left - len(tokens))
        if missing := self._sequence[len(held.tokens) : -1]:
            held.prefill(missing)
        self._paused = True

    def close(self) -> None:
        """End the current step. The cache still holds ``held.tokens``."""
        if self._steps is not None:
            self._steps.close()
            self._steps = None

    def _record(self, token: int) -> int:
        self._sequence.append(token)
        self._tokens_left -= 1
        return token

    def _plain(self) -> Iterator[int]:
        held = self._held
        self._steps = steps = generate_step(
            mx.array(self._sequence[-1:]),
            held.model.model,
            max_tokens=self._tokens_left,
            sampler=self._sampler,
            logits_processors=self._processors(),
            prompt_cache=held.cache,
        )
        last = self._sequence[-1]
        # mlx-lm starts the next step before it yields a token, so the cache holds that token, too.
        for number, (token, _) in enumerate(steps):
            held.tokens.extend([int(token)] if number else [last, int(token)])
            yield self._record(int(token))
            if self._paused:
                return

    def _processors(self) -> list[Processor]:
        return processors_for(self._sampling, self._sequence)

    def _speculate(self, draft: PromptCache) -> Iterator[int]:
        """Let the draft propose tokens and the model read them at once; those it samples too are accepted.

        Every token is sampled from the model's own distribution, so a greedy reply is the plain one. Runs end
        where the cache packs, so that each token is read from the same storage as in single steps.
        """
        held, first = self._held, True
        while self._tokens_left > 0:
            count = min(MAX_PROPOSED_TOKENS, self._tokens_left - 1, _steps_until_packing(held) - 1)
            # The first token does not wait for the draft model's prefill.
            proposed = self._propose(draft, count) if count > 0 and not first else []
            first = False
            sampled = self._sample_after(proposed)
            agreeing = 0
            while agreeing < len(proposed) and proposed[agreeing] == sampled[agreeing]:
                agreeing += 1
            self.drafted += len(proposed)
            surplus = len(proposed) - agreeing
            if surplus:
                mlx_cache.trim_prompt_cache(held.cache, surplus)
            held.tokens.extend(self._sequence[-1:] + proposed[:agreeing])
            for layer in flat_layers(held.cache):
                if isinstance(layer, SchemeCache) and layer.is_due:
                    layer.pack_due()
            for number, token in enumerate(sampled[: agreeing + 1]):
                self.accepted += number < agreeing
                yield self._record(token)
                if self._paused:
                    return

    def _propose(self, draft: PromptCache, count: int) -> list[int]:
        """The draft model's next ``count`` tokens, after a prefill of those it has not read."""
        shared = common_prefix(self._sequence, draft.tokens)
        draft.trim_to(min(shared, len(self._sequence) - 1))
        unread = self._sequence[len(draft.tokens) :]
        for _ in draft.prefill_in_chunks(unread[:-1]):
            pass
        token = mx.array(unread[-1:])
        proposed = []
        with mx.stream(generation_stream):
            for _ in range(count):
                logits = draft.model.model(token[None], cache=draft.cache)[:, -1]
                token = self._sampler(logits - mx.logsumexp(logits, axis=-1, keepdims=True)).reshape(1)
                proposed.append(token)
            mx.eval(proposed)
        found = _token_ids(proposed)
        draft.tokens.extend(unread[-1:] + found[:-1])
        return found

    def _sample_after(self, proposed: list[int]) -> list[int]:
        """Tokens that the model samples after the last token and after each proposed one."""
        tokens = mx.array(self._sequence[-1:] + proposed)
        with mx.stream(generation_stream):
            rows = self._held.model.model(tokens[None], cache=self._held.cache)[0]
            processors = self._processors()
            sampled = []
            for number in range(len(proposed) + 1):
                logits = rows[number : number + 1]
                for processor in processors:
                    logits = processor(tokens[: number + 1], logits)
                sampled.append(self._sampler(logits - mx.logsumexp(logits, axis=-1, keepdims=True)))
            mx.eval(sampled)
        return _token_ids(sampled)


def _can_undo(held: PromptCache) -> bool:
    """Whether proposed tokens can be trimmed: not from recurrent states, nor from full windows."""
    return not held.needs_checkpoints and checkpoint.can_trim(held.cache)


def _steps_until_packing(held: PromptCache) -> int:
    """Tokens until the cache packs next; a large number if never."""
    layers = [layer for layer in flat_layers(held.cache) if isinstance(layer, SchemeCache)]
    return min(
        (side.tokens_until_due for layer in layers for side in layer.sides), default=MAX_PROPOSED_TOKENS + 1
    )


def _token_ids(tokens: list[mx.array]) -> list[int]:
    ids: Any = mx.concatenate([token.reshape(1) for token in tokens]).tolist()
    return list(ids)

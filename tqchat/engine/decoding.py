"""The streaming loop: one token after another, or several at once where a draft model proposes them."""

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
from tqchat.kv import checkpoint
from tqchat.kv.cache import SchemeCache
from tqchat.kv.prompt_cache import flat_layers

PROPOSED = 4
"""Tokens that a draft model proposes at a time, at most."""

Sampler = Callable[[mx.array], mx.array]


def check_draft(model: LoadedModel, draft: LoadedModel) -> None:
    """Refuse a draft model that does not speak the model's tokens.

    Raises:
        DraftMismatch: if it does not.
    """
    if model.tokenizer.get_vocab() != draft.tokenizer.get_vocab():
        raise DraftMismatch(
            f"{draft.info.name} cannot draft for {model.info.name}: their vocabularies differ. "
            "Choose a smaller model of the same family."
        )


class Decoder:
    """Draws a reply's tokens and keeps ``held`` in step with the model's cache.

    While a token is out, ``held.tokens`` is what the cache holds.

    Attributes:
        drafted: Tokens that the draft model proposed.
        accepted: How many of them the model drew as well.
    """

    def __init__(
        self,
        held: PromptCache,
        prompt: Sequence[int],
        sampling: Sampling,
        room: int,
        draft: PromptCache | None = None,
    ) -> None:
        """
        Args:
            held: Holds all of ``prompt`` but its last token.
            sampling: Settled.
            room: The most tokens to draw.
            draft: The draft model's cache, whatever it holds; ``None`` does without.
        """
        self._held = held
        self._sequence = list(prompt)
        self._sampling = sampling
        self._left = room
        self._draft = draft if draft is not None and _can_go_back(held) and _can_go_back(draft) else None
        self._sampler: Sampler = sampler_for(
            sampling, len(held.model.tokenizer), held.model.reply_format.end_tokens
        )
        self._steps: Any = None
        self._paused = False
        self.drafted = 0
        self.accepted = 0

    def __iter__(self) -> Iterator[int]:
        while self._left > 0:
            self._paused = False
            yield from self._plain() if self._draft is None else self._speculate(self._draft)

    def pause(self) -> bool:
        """Let go of the cache between two tokens, so that it can be replaced; ``False`` if it cannot be.

        What was read ahead is taken back, and read again later.
        """
        held, keep = self._held, len(self._sequence) - 1
        if held.reach(keep) != keep:
            return False
        self.close()
        held.evaluate()
        held.trim_to(keep)
        self._paused = True
        return True

    def force(self, tokens: Sequence[int]) -> None:
        """Let the model read tokens as if it had generated them; the next one follows them.

        Works for every kind of cache: nothing is taken back but tokens that a draft model was ahead by.
        """
        held = self._held
        self.close()
        held.evaluate()
        if len(held.tokens) > len(self._sequence):
            held.trim_to(len(self._sequence))
        self._sequence += tokens
        self._left = max(0, self._left - len(tokens))
        if missing := self._sequence[len(held.tokens) : -1]:
            held.prefill(missing)
        self._paused = True

    def close(self) -> None:
        """End the step that is under way. The cache stays as ``held.tokens`` says."""
        if self._steps is not None:
            self._steps.close()
            self._steps = None

    def _drawn(self, token: int) -> int:
        self._sequence.append(token)
        self._left -= 1
        return token

    def _plain(self) -> Iterator[int]:
        held = self._held
        self._steps = steps = generate_step(
            mx.array(self._sequence[-1:]),
            held.model.model,
            max_tokens=self._left,
            sampler=self._sampler,
            logits_processors=self._processors(),
            prompt_cache=held.cache,
        )
        last = self._sequence[-1]
        # When a token comes out, the next step has begun: the cache holds that token, too.
        for number, (token, _) in enumerate(steps):
            held.tokens.extend([int(token)] if number else [last, int(token)])
            yield self._drawn(int(token))
            if self._paused:
                return

    def _processors(self) -> list[Processor]:
        return processors_for(self._sampling, self._sequence)

    def _speculate(self, draft: PromptCache) -> Iterator[int]:
        """Let the draft propose tokens and the model read them at once; what it draws as well is accepted.

        Every token comes from the model's own distribution, so a greedy reply is the plain one. Runs end
        where the cache packs, so that each token is read from the same storage as in single steps.
        """
        held, first = self._held, True
        while self._left > 0:
            # The first token is not made to wait for the draft model to read the prompt.
            count = 0 if first else min(PROPOSED, self._left - 1, _steps_until_packing(held) - 1)
            first = False
            proposed = self._proposals(draft, count) if count > 0 else []
            drawn = self._read(proposed)
            agreed = 0
            while agreed < len(proposed) and proposed[agreed] == drawn[agreed]:
                agreed += 1
            self.drafted += len(proposed)
            surplus = len(proposed) - agreed
            if surplus:
                mlx_cache.trim_prompt_cache(held.cache, surplus)
            held.tokens.extend(self._sequence[-1:] + proposed[:agreed])
            for layer in flat_layers(held.cache):
                if isinstance(layer, SchemeCache) and layer.is_due:
                    layer.pack_due()
            for number, token in enumerate(drawn[: agreed + 1]):
                self.accepted += number < agreed
                yield self._drawn(token)
                if self._paused:
                    return

    def _proposals(self, draft: PromptCache, count: int) -> list[int]:
        """What the draft model thinks comes next."""
        shared = 0
        for mine, theirs in zip(self._sequence, draft.tokens, strict=False):
            if mine != theirs:
                break
            shared += 1
        draft.trim_to(min(shared, len(self._sequence) - 1))
        behind = self._sequence[len(draft.tokens) :]
        for _ in draft.prefill_in_chunks(behind[:-1]):
            pass
        token = mx.array(behind[-1:])
        proposed = []
        with mx.stream(generation_stream):
            for _ in range(count):
                logits = draft.model.model(token[None], cache=draft.cache)[:, -1]
                token = self._sampler(logits - mx.logsumexp(logits, axis=-1, keepdims=True)).reshape(1)
                proposed.append(token)
            mx.eval(proposed)
        found = _numbers(proposed)
        draft.tokens.extend(behind[-1:] + found[:-1])
        return found

    def _read(self, proposed: list[int]) -> list[int]:
        """What the model draws behind the last token and behind each proposed one."""
        tokens = mx.array(self._sequence[-1:] + proposed)
        with mx.stream(generation_stream):
            rows = self._held.model.model(tokens[None], cache=self._held.cache)[0]
            punish = self._processors()
            drawn = []
            for number in range(len(proposed) + 1):
                logits = rows[number : number + 1]
                for processor in punish:
                    logits = processor(tokens[: number + 1], logits)
                drawn.append(self._sampler(logits - mx.logsumexp(logits, axis=-1, keepdims=True)))
            mx.eval(drawn)
        return _numbers(drawn)


def _can_go_back(held: PromptCache) -> bool:
    """Whether proposed tokens can be taken back: not from recurrent states, nor from windows once full."""
    return not held.needs_checkpoints and checkpoint.can_trim(held.cache)


def _steps_until_packing(held: PromptCache) -> int:
    """After how many more tokens the cache packs some; many if never."""
    ours = [layer for layer in flat_layers(held.cache) if isinstance(layer, SchemeCache)]
    return min((side.tokens_until_due for layer in ours for side in layer.sides), default=PROPOSED + 1)


def _numbers(tokens: list[mx.array]) -> list[int]:
    told: Any = mx.concatenate([token.reshape(1) for token in tokens]).tolist()
    return list(told)

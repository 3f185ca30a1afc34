"""A long conversation with edits and new versions of replies: does its cache get slower, or larger?"""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

import gc
import os
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median

import mlx.core as mx

from tqchat.engine import backend
from tqchat.engine.commands import ChatMessage, Sampling
from tqchat.engine.events import Done, Failed
from tqchat.engine.models import LoadedModel
from tqchat.engine.session import Session
from tqchat.errors import TqchatError
from tqchat.lab.api_bench.footprint import resident
from tqchat.lab.bench import timing
from tqchat.lab.bench.results import BenchRow
from tqchat.lab.candidates import Candidate

TURN_TOKENS = 50
"""Tokens of a turn on average, message and reply: 400 turns for 20,000 tokens."""

REPLY_TOKENS = 32
WORDS = 20
"""Words of a message."""

EDITED, REGENERATED = 0.1, 0.1
"""Shares of turns that edit an earlier message, and that ask for another reply to the last one."""

FULL = 0.7
"""Share of the context limit at which an early message is edited."""


class ReplyFailed(TqchatError):
    """A reply of the conversation failed."""


class Chat:
    """A person's side of a conversation, and its session."""

    def __init__(self, model: LoadedModel, scheme: str, words: Sequence[str]) -> None:
        self.session = Session(model, scheme)
        self.messages: list[ChatMessage] = []
        self.tokens = 0
        """Tokens read and generated so far."""
        self._words = words
        self._rng = random.Random(1)

    def turn(self) -> None:
        """Ask something, edit an earlier message, or ask for another reply."""
        limit = self.session.model.context_limit
        users = [i for i, message in enumerate(self.messages) if message.role == "user"]
        chance = self._rng.random()
        if limit is not None and len(self.session.tokens) > FULL * limit:
            del self.messages[users[len(users) // 3] :]
        elif users and chance < EDITED:
            del self.messages[self._rng.choice(users) :]
        elif users and chance < EDITED + REGENERATED:
            del self.messages[users[-1] + 1 :]
        if not self.messages or self.messages[-1].role == "assistant":
            self.messages.append(self.question())
        done = reply(self.session, self.messages, self._rng.randrange(2**31))
        self.tokens += done.counts.prefilled + done.counts.generated
        if done.text.strip():
            self.messages.append(ChatMessage("assistant", done.text))
        else:
            self.messages.pop()

    def question(self) -> ChatMessage:
        """Some words of the text."""
        start = self._rng.randrange(max(1, len(self._words) - WORDS))
        return ChatMessage("user", " ".join(self._words[start : start + WORDS]))


def reply(session: Session, messages: Sequence[ChatMessage], seed: int) -> Done:
    """Have a transcript answered.

    Raises:
        ReplyFailed: if that fails.
    """
    sampling = Sampling(max_tokens=REPLY_TOKENS, temperature=1.0, seed=seed)
    *_, last = session.send(messages, sampling)
    if isinstance(last, Failed):
        raise ReplyFailed(last.message)
    assert isinstance(last, Done)
    return last


def day(
    model: LoadedModel,
    candidates: Sequence[Candidate],
    contexts: Sequence[int],
    text: str,
    rounds: int,
    tell: Callable[[str], None],
) -> Iterator[BenchRow]:
    """Chat for as many tokens as each of ``contexts`` says, under each of tqchat's schemes.

    Then the same question is answered by the conversation's session and by one that has read the transcript
    afresh, in turns.
    """
    for candidate in candidates:
        if candidate.name == candidate.scheme.name:
            for context in contexts:
                yield _row(model, candidate.name, context, text.split(), rounds, tell)


def _row(
    model: LoadedModel,
    scheme: str,
    tokens: int,
    words: Sequence[str],
    rounds: int,
    tell: Callable[[str], None],
) -> BenchRow:
    chat, turns = Chat(model, scheme, words), 1
    chat.turn()
    _release_unused()
    before = _resident() - chat.session.memory().bytes
    while chat.tokens < tokens or turns < tokens // TURN_TOKENS:
        chat.turn()
        turns += 1
        if turns % 10 == 0:
            tell(f"{scheme}: {turns} turns, {chat.tokens:,} tokens")
    _release_unused()
    weights = model.info.weight_bytes
    expected = weights + chat.session.memory().bytes
    memory_ratio = mx.get_active_memory() / expected
    # On a card of its own memory the weights and the cache are no part of the process's.
    on_card = backend.prepare().name == "cuda"
    resident_ratio = None if on_card else (_resident() - before + weights) / expected
    messages = [*chat.messages, chat.question()]
    sessions = {"day": chat.session, "fresh": Session(model, scheme)}
    seeds = {name: iter(range(rounds + timing.WARM_UP_ROUNDS)) for name in sessions}

    def seconds_per_token(name: str) -> float:
        return 1 / reply(sessions[name], messages, next(seeds[name])).decode_tokens_per_second

    times = timing.time_interleaved(
        {name: partial(seconds_per_token, name) for name in sessions},
        rounds,
        lambda name: tell(f"{scheme}: {name}"),
    )
    own = times["day"]
    return BenchRow(
        "day",
        scheme,
        len(chat.session.tokens),
        median(own),
        timing.spread(own),
        1 / median(own),
        ratio_fresh=timing.ratio(times["fresh"], own),
        memory_ratio=memory_ratio,
        resident_ratio=resident_ratio,
    )


def _release_unused() -> None:
    gc.collect()
    mx.clear_cache()


def _resident() -> int:
    """Resident bytes of this process."""
    return resident(os.getpid())[0] or 0

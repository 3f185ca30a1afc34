"""Time of replies with proposals from the conversation (prompt lookup) beside plain decoding.

Replies are dictated: the model computes every step, but what it says is given, so that a small model edits a
file as well as a large one would, and all runs say the same.
"""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import mlx.core as mx

from tqchat.engine.cache.prompt_cache import PromptCache
from tqchat.engine.commands import Sampling
from tqchat.engine.decoding import Decoder
from tqchat.engine.models import LoadedModel
from tqchat.kv import cache as edited_module
from tqchat.lab import reading
from tqchat.lab.bench import timing
from tqchat.lab.bench.results import BenchRow

REPLY_TOKENS = 160
"""Length of the timed replies."""

RENAMED = "tokens", "entries"
"""What the edit changes in the file: a name that stands in many of its lines."""


@dataclass(frozen=True)
class Task:
    """A prompt and the reply to it, as token ids."""

    name: str
    prompt: list[int]
    reply: list[int]


class Dictation:
    """Says the given tokens, each once the model has computed its logits."""

    def __init__(self, reply: Sequence[int]) -> None:
        self._reply = reply

    def sample(
        self, logits: mx.array, number: int, before: Sequence[int], pending: mx.array | None = None
    ) -> mx.array:
        """The reply's token ``number``."""
        return self.sample_rows(logits, number, before, ())

    def sample_rows(
        self, logits: mx.array, number: int, before: Sequence[int], then: Sequence[int]
    ) -> mx.array:
        """The reply's tokens from ``number`` on, whatever was proposed."""
        said = [self._reply[(number + row) % len(self._reply)] for row in range(len(then) + 1)]
        return mx.maximum(mx.array(said), mx.minimum(mx.argmax(logits, axis=-1), 0))


def tasks(model: LoadedModel, context: int) -> list[Task]:
    """Editing a file of ``context`` tokens, and prose behind as much prose as there is."""
    source = Path(edited_module.__file__).read_text(encoding="utf-8")
    file = reading.encode(model, source)
    while len(file) < context + REPLY_TOKENS:
        file += reading.encode(model, source)
    edited = reading.encode(model, source.replace(*RENAMED))[:REPLY_TOKENS]
    prose = reading.encode(model, reading.read_text(Path(reading.__file__).with_name("text.txt")))
    begin = max(0, len(prose) - REPLY_TOKENS - context)
    return [
        Task("edit", file[:context], edited),
        Task("prose", prose[begin:-REPLY_TOKENS], prose[-REPLY_TOKENS:]),
    ]


def drafting(
    model: LoadedModel,
    schemes: Sequence[str],
    contexts: Sequence[int],
    rounds: int,
    tell: Callable[[str], None],
) -> Iterator[BenchRow]:
    """Time both tasks with and without proposals, after a prompt of ``contexts`` tokens."""
    for context in contexts:
        for scheme in schemes:
            for task in tasks(model, context):
                tell(f"{task.name} after {len(task.prompt):,} tokens, {scheme}")
                cache = PromptCache(model, scheme)
                for _ in cache.prefill_in_chunks(task.prompt[:-1]):
                    pass
                runs = {
                    name: partial(_time_reply, cache, task, lookup)
                    for name, lookup in (("plain", False), ("prompt", True))
                }
                times = timing.time_interleaved(runs, rounds, tell)
                for name, own in times.items():
                    seconds = median(own)
                    yield BenchRow(
                        "drafting",
                        f"{scheme} {task.name} {name}",
                        len(task.prompt),
                        seconds,
                        timing.spread(own),
                        1 / seconds,
                        ratio_plain=timing.ratio(times["plain"], own),
                    )


def _time_reply(cache: PromptCache, task: Task, lookup: bool) -> float:
    """Seconds per token of the reply, the first not counted; then the cache is as before."""
    began = ended = 0.0
    sampling = Sampling(temperature=0.0)
    decoder = Decoder(cache, task.prompt, sampling, len(task.reply), lookup, Dictation(task.reply))
    for number, _ in enumerate(decoder):
        ended = time.perf_counter()
        if number == 0:
            began = ended
    decoder.close()
    cache.evaluate()
    cache.trim_to(len(task.prompt) - 1)
    return (ended - began) / (len(task.reply) - 1)

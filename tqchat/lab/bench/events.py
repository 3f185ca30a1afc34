"""Time of the engine's bookkeeping during a reply: text decoding, memory report, budget check."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median

from tqchat.engine.cache.memory_budget import MemoryBudget
from tqchat.engine.cache.prompt_cache import PromptCache
from tqchat.engine.commands import Limits
from tqchat.engine.models import LoadedModel
from tqchat.engine.reasoning import ReplyStream
from tqchat.lab.bench import kv_caches, timing
from tqchat.lab.bench.results import BenchRow
from tqchat.lab.contestants import Contestant

CALLS_PER_ROUND = 50


def events(
    model: LoadedModel, contestants: Sequence[Contestant], context: int, text: Sequence[int], rounds: int
) -> Iterator[BenchRow]:
    """Time each alone, for a cache of ``context`` tokens under the first scheme that packs.

    In a chat, text is decoded every token, the budget checked every 16 tokens, and a report made at most
    four times a second.
    """
    contestant = next((c for c in contestants if c.scheme.compresses), contestants[0])
    held = PromptCache(model, contestant.scheme.name)
    held.cache = kv_caches.make_cache(contestant, kv_caches.prefilled(model, text[:context]), model)
    held.reset_peak()
    room, stream = MemoryBudget(Limits()), ReplyStream(model.reply_format)
    tokens = iter(list(text) * (CALLS_PER_ROUND * (rounds + 2) // len(text) + 1))
    runs: dict[str, Callable[[], object]] = {
        "piece of text": lambda: stream.add(next(tokens)),
        "memory report": held.report,
        "look at the budget": lambda: room.exceeded(held),
    }
    times = timing.time_interleaved({name: _seconds_per_call(call) for name, call in runs.items()}, rounds)
    for name, own in times.items():
        yield BenchRow("events", name, context, median(own), timing.spread(own))


def _seconds_per_call(call: Callable[[], object]) -> Callable[[], float]:
    def run() -> float:
        began = time.perf_counter()
        for _ in range(CALLS_PER_ROUND):
            call()
        return (time.perf_counter() - began) / CALLS_PER_ROUND

    return run

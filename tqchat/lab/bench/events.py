"""Time of the engine's bookkeeping during a reply: detokenising, memory report, budget check."""

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
from tqchat.lab.candidates import Candidate

CALLS_PER_ROUND = 50
"""One call is too short to time alone."""


def events(
    model: LoadedModel, candidates: Sequence[Candidate], context: int, text: Sequence[int], rounds: int
) -> Iterator[BenchRow]:
    """Time each operation alone, for a cache of ``context`` tokens under the first scheme that packs.

    In a chat, every token is detokenised, the budget is checked every 16 tokens, and a report is made at
    most four times a second.
    """
    candidate = next((c for c in candidates if c.scheme.compresses), candidates[0])
    prompt_cache = PromptCache(model, candidate.scheme.name)
    prompt_cache.cache = kv_caches.make_cache(candidate, kv_caches.prefilled(model, text[:context]), model)
    prompt_cache.reset_peak()
    budget, stream = MemoryBudget(Limits()), ReplyStream(model.reply_format)
    tokens = iter(list(text) * (CALLS_PER_ROUND * (rounds + 2) // len(text) + 1))
    runs: dict[str, Callable[[], object]] = {
        "piece of text": lambda: stream.add(next(tokens)),
        "memory report": prompt_cache.report,
        "look at the budget": lambda: budget.exceeded(prompt_cache),
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

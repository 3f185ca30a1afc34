"""What telling costs: the pieces of text, the gauge's report, the look at the memory budget."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median

from tqchat.engine.cache.memory_budget import MemoryBudget
from tqchat.engine.cache.prompt_cache import PromptCache
from tqchat.engine.commands import Limits
from tqchat.engine.generation import TextStream
from tqchat.engine.models import LoadedModel
from tqchat.lab.bench import subjects, timing
from tqchat.lab.bench.results import BenchRow
from tqchat.lab.contestants import Contestant

CALLS = 50


def events(
    model: LoadedModel, contestants: Sequence[Contestant], context: int, text: Sequence[int], rounds: int
) -> Iterator[BenchRow]:
    """Each of the three alone, for a cache of ``context`` tokens under the first scheme that packs.

    A report is made four times a second at most, a look taken every 16 tokens, a piece with every token.
    """
    chosen = next((c for c in contestants if c.scheme.compresses), contestants[0])
    held = PromptCache(model, chosen.scheme.name)
    held.cache = subjects.subject(chosen, subjects.read(model, text[:context]), model)
    held.reset_peak()
    room, stream = MemoryBudget(Limits()), TextStream(model.tokenizer)
    tokens = iter(list(text) * (CALLS * (rounds + 2) // len(text) + 1))
    runs: dict[str, Callable[[], object]] = {
        "piece of text": lambda: stream.add(next(tokens)),
        "memory report": held.report,
        "look at the budget": lambda: room.exceeded(held),
    }
    times = timing.take_turns({name: _timed(call) for name, call in runs.items()}, rounds)
    for name, own in times.items():
        yield BenchRow("events", name, context, median(own), timing.spread(own))


def _timed(call: Callable[[], object]) -> Callable[[], float]:
    def run() -> float:
        began = time.perf_counter()
        for _ in range(CALLS):
            call()
        return (time.perf_counter() - began) / CALLS

    return run

"""Times changes of a live cache's scheme: from 16 bits to a scheme, back, and to the scheme again."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median

from tqchat import kv
from tqchat.engine.cache.memory_budget import MemoryBudget
from tqchat.engine.cache.prompt_cache import PromptCache
from tqchat.engine.commands import Limits
from tqchat.engine.models import LoadedModel
from tqchat.kv.scheme import FP16
from tqchat.lab.bench import kv_caches, timing
from tqchat.lab.bench.results import BenchRow


def convert(
    model: LoadedModel,
    schemes: Sequence[str],
    contexts: Sequence[int],
    text: Sequence[int] | None,
    rounds: int,
    tell: Callable[[str], None],
) -> Iterator[BenchRow]:
    """One row for each change: the first packs all tokens, the others take them back as they were.

    Args:
        text: Tokens to read first; without them the history is random.
    """
    for context in contexts:
        tell(f"reading {context:,} tokens")
        tokens = [1] * context if text is None else list(text[:context])
        base = kv_caches.filled(model, text, context)
        for scheme in schemes:
            if scheme == FP16.name:
                continue
            tell(f"changing to {scheme}")
            steps = ((scheme, ""), (FP16.name, ""), (scheme, ", again"))
            times: dict[str, list[float]] = {}
            for _ in range(rounds):
                held = PromptCache(model, FP16.name)
                held.cache, held.tokens = list(base), list(tokens)
                kv.forget_queries(held.cache)  # of the round before
                for target, how in steps:
                    change = f"{held.scheme} to {target}{how}"
                    began = time.perf_counter()
                    held.convert(target, backlog=MemoryBudget(Limits()).spare_bytes(held, target))
                    times.setdefault(change, []).append(time.perf_counter() - began)
            for change, own in times.items():
                seconds = median(own)
                yield BenchRow("convert", change, context, seconds, timing.spread(own), context / seconds)

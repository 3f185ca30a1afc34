"""Time of reading a new message after a history that is packed already."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import mlx.core as mx

from tqchat.engine.cache.prompt_cache import PromptCache
from tqchat.engine.models import LoadedModel
from tqchat.lab.bench import kv_caches, timing
from tqchat.lab.bench.decode import LeaveOut, bench_rows
from tqchat.lab.bench.results import BenchRow
from tqchat.lab.candidates import Candidate, CannotTakePart, may_drop_out

TURN_TOKENS = 512
"""Length of the message that is read."""


def turn(
    model: LoadedModel,
    candidates: Sequence[Candidate],
    contexts: Sequence[int],
    text: Sequence[int] | None,
    rounds: int,
    tell: Callable[[str], None],
    leave_out: LeaveOut,
) -> Iterator[BenchRow]:
    """Time a prefill of ``TURN_TOKENS`` tokens in the chat's chunks, after ``contexts`` tokens.

    Of mlx-lm's caches only the 16-bit one takes part. The message is trimmed again after each round.

    Args:
        text: At least ``TURN_TOKENS`` more tokens than the longest context. Without it the history is random.
    """
    chosen = [one for one in candidates if one.mlx_bits is None]
    for context in contexts:
        tell(f"reading {context:,} tokens")
        tokens = [1] * (context + TURN_TOKENS) if text is None else text
        base = kv_caches.filled(model, text, context)
        held: dict[str, PromptCache] = {}
        for candidate in chosen:
            one = held[candidate.name] = PromptCache(model, candidate.scheme.name)
            one.cache = kv_caches.make_cache(candidate, base, model)
            one.tokens = list(tokens[:context])
        del base
        message = tokens[context : context + TURN_TOKENS]
        peaks = dict.fromkeys(held, 0)
        runs = {one.name: partial(_time_turn, one, held[one.name], message, peaks) for one in chosen}
        note = partial(_tell, tell, context)
        times = timing.time_interleaved(runs, rounds, note, leave_out)
        yield from bench_rows("turn", context, times, chosen, peaks, {}, len(message))


def _tell(tell: Callable[[str], None], context: int, name: str) -> None:
    tell(f"a turn after {context:,}, {name}")


def _time_turn(
    candidate: Candidate, held: PromptCache, message: Sequence[int], peaks: dict[str, int]
) -> float:
    """Seconds for a message; then the cache is as before. Its peak is beyond the cache."""
    context = len(held.tokens)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    began = time.perf_counter()
    with may_drop_out(candidate):
        for _ in held.prefill_in_chunks(message):
            pass
    seconds = time.perf_counter() - began
    peaks[candidate.name] = max(peaks[candidate.name], mx.get_peak_memory() - before)
    held.trim_to(context)
    if len(held.tokens) != context:
        raise CannotTakePart("its cache cannot be trimmed")
    held.evaluate()
    return seconds

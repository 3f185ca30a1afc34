"""What one token costs, and a whole prompt, under each kind of cache."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step

from tqchat import kv
from tqchat.engine import backend
from tqchat.engine.cache.prompt_cache import PromptCache
from tqchat.engine.models import LoadedModel
from tqchat.kv.scheme import FP16
from tqchat.lab.bench import subjects, timing
from tqchat.lab.bench.results import BenchRow
from tqchat.lab.contestants import Contestant
from tqchat.lab.evaluation import Peer, Unsupported

DECODED = 32
"""Tokens decoded in a round: tiles are packed in every one."""

MEMORY_SHARE = 0.5
"""The share of free memory that caches timed side by side may take."""

Tell = Callable[[str], None]


def decode(
    model: LoadedModel,
    contestants: Sequence[Contestant],
    contexts: Sequence[int],
    text: Sequence[int] | None,
    rounds: int,
    tell: Tell,
) -> Iterator[BenchRow]:
    """Decode behind ``contexts`` tokens, as the chat does: no step waits for the one before it.

    Caches grow from round to round, all by the same. Without ``text`` they hold random vectors.

    Args:
        text: Tokens to read first, at least as many as the longest context.
    """
    for context in contexts:
        tell(f"reading {context:,} tokens")
        base = subjects.filled(model, context) if text is None else subjects.read(model, text[:context])
        for group in _groups(contestants, base):
            yield from _decode_group(model, group, base, context, rounds, tell)


def _decode_group(
    model: LoadedModel, group: Sequence[Contestant], base: list[Any], context: int, rounds: int, tell: Tell
) -> Iterator[BenchRow]:
    caches: dict[str, list[Any]] = {}
    for contestant in group:
        try:
            caches[contestant.name] = subjects.subject(contestant, base, model)
        except Unsupported as error:
            tell(f"{contestant.name} cannot: {error}")
    peaks = dict.fromkeys(caches, 0)

    def run(name: str) -> float:
        cache = caches[name]
        own, before = subjects.cache_bytes(cache), mx.get_active_memory()
        mx.reset_peak_memory()
        seconds = _decoded(model, cache)
        peaks[name] = max(peaks[name], mx.get_peak_memory() - before + own)
        return seconds

    runs = {name: partial(run, name) for name in caches}
    times = timing.take_turns(runs, rounds, lambda name: tell(f"decode at {context:,}, {name}"))
    weights = model.info.weight_bytes
    reads = {name: subjects.cache_bytes(cache) + weights for name, cache in caches.items()}
    yield from rows("decode", context, times, group, peaks, reads, 1)


def _decoded(model: LoadedModel, cache: list[Any]) -> float:
    """Seconds a token, over some tokens behind a first one."""
    began = ended = 0.0
    # Typed for language models of any kind, so that mypy cannot see into it.
    steps: Any = generate_step(mx.array([1]), model.model, max_tokens=DECODED + 1, prompt_cache=cache)
    for number, _ in enumerate(steps):
        ended = time.perf_counter()
        if number == 0:
            began = ended
    subjects.evaluate(cache)
    mx.clear_cache()
    return (ended - began) / DECODED


def prefill(
    model: LoadedModel,
    contestants: Sequence[Contestant],
    contexts: Sequence[int],
    text: Sequence[int] | None,
    rounds: int,
    tell: Tell,
) -> Iterator[BenchRow]:
    """Read a prompt in the chat's chunks, up to the answer's first token; and packed while it is read."""
    for context in contexts:
        prompt = [1] * context if text is None else list(text[:context])
        # Under a name of its own each: all of them take turns.
        packing = [
            replace(c, name=f"{c.name} packed as read")
            for c in contestants
            if c not in subjects.FOREIGN and c.scheme.compresses
        ]
        everybody = [*contestants, *packing]
        peaks = dict.fromkeys((c.name for c in everybody), 0)
        runs = {c.name: partial(_prefilled, model, c, c in packing, prompt, peaks) for c in everybody}
        times = timing.take_turns(runs, rounds, partial(_tell_of, tell, context))
        yield from rows("prefill", context, times, everybody, peaks, {}, context)


def _tell_of(tell: Tell, context: int, name: str) -> None:
    tell(f"prefill of {context:,}, {name}")


def _prefilled(
    model: LoadedModel, contestant: Contestant, packs: bool, prompt: list[int], peaks: dict[str, int]
) -> float:
    """Seconds for a prompt, up to its last token, which is the first to be packed behind."""
    held = PromptCache(model, contestant.scheme.name)
    held.pack_prompts(packs)
    if contestant in subjects.FOREIGN:
        held.cache = _fresh(model, contestant)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    began = time.perf_counter()
    for _ in held.prefill_in_chunks(prompt[:-1]):
        pass
    held.prefill(prompt[-1:])
    seconds = time.perf_counter() - began
    peaks[contestant.name] = max(peaks[contestant.name], mx.get_peak_memory() - before)
    return seconds


def _fresh(model: LoadedModel, contestant: Contestant) -> list[Any]:
    """mlx-lm's own caches, empty."""
    dtype = model.cache_dtype or mx.float16
    made: list[Any] = []
    for layer in kv.make_prompt_cache(model.model, FP16, dtype=model.cache_dtype):
        if not isinstance(layer, kv.SchemeCache):
            made.append(layer)
        elif contestant.peer_bits is None:
            made.append(subjects.HalfCache(dtype))
        else:
            made.append(Peer(64, contestant.peer_bits, dtype))
    return made


def rows(
    what: str,
    context: int,
    times: dict[str, list[float]],
    contestants: Sequence[Contestant],
    peaks: dict[str, int],
    reads: dict[str, int],
    tokens: int,
) -> Iterator[BenchRow]:
    """The rows for what took turns.

    Args:
        peaks: Most bytes allocated, by name, where that was counted.
        reads: Bytes that each must read, where that says something.
        tokens: How many a time stands for.
    """
    reference = times.get(subjects.REFERENCE)
    for contestant in contestants:
        if contestant.name not in times:
            continue
        own = times[contestant.name]
        middle = median(own)
        read = reads.get(contestant.name)
        yield BenchRow(
            what=what,
            scheme=contestant.name,
            context=context,
            median_s=middle,
            spread_s=timing.spread(own),
            tok_s=tokens / middle,
            ratio_fp16=timing.ratio(reference, own),
            ratio_mlx=timing.ratio(times.get(subjects.rival(contestant)), own),
            peak_bytes=peaks.get(contestant.name),
            read_bytes=read,
            read_bytes_s=None if read is None else read / middle,
        )


def _groups(contestants: Sequence[Contestant], base: list[Any]) -> Iterator[list[Contestant]]:
    """As many at a time as fit into memory beside each other, the reference among them every time."""
    size = max(1, subjects.cache_bytes(base))
    room = min(backend.available_memory(), backend.prepare().memory_bytes) * MEMORY_SHARE
    # One for the base, one for the reference, one for what is in the making.
    side_by_side = max(1, int(room / size) - 3)
    references = [c for c in contestants if c.name == subjects.REFERENCE]
    others = [c for c in contestants if c.name != subjects.REFERENCE]
    for start in range(0, max(len(others), 1), side_by_side):
        yield references + others[start : start + side_by_side]

"""Time and memory of decoding, and of a prefill, under each kind of cache."""

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
from tqchat.kv.attention.compiled_step import logits_of
from tqchat.kv.cache import packing_later
from tqchat.kv.prompt_cache import pack_together, scheme_caches
from tqchat.kv.scheme import FP16
from tqchat.lab.bench import kv_caches, timing
from tqchat.lab.bench.results import BenchRow
from tqchat.lab.candidates import Candidate, CannotTakePart, may_drop_out
from tqchat.lab.evaluation import MlxQuantizedCache

DECODED_TOKENS = 32
"""Tokens decoded in a round, enough that every round includes packing."""

MEMORY_SHARE = 0.5
"""Share of free memory that the caches of one group may take."""

Tell = Callable[[str], None]
LeaveOut = Callable[[str, Exception], None]
"""Called with the name of what cannot be measured here, and the reason."""


def decode(
    model: LoadedModel,
    candidates: Sequence[Candidate],
    contexts: Sequence[int],
    text: Sequence[int] | None,
    rounds: int,
    tell: Tell,
    leave_out: LeaveOut,
) -> Iterator[BenchRow]:
    """Time decoding after ``contexts`` tokens with mlx-lm's asynchronous ``generate_step``, as the chat does.

    Caches grow by the same number of tokens each round. Without ``text`` they hold random vectors.

    Args:
        text: Tokens to read first, at least as many as the longest context.
    """
    for context in contexts:
        tell(f"reading {context:,} tokens")
        base = kv_caches.filled(model, text, context)
        for group in _memory_groups(candidates, base):
            yield from _decode_group(model, group, base, context, rounds, tell, leave_out)


def _decode_group(
    model: LoadedModel,
    group: Sequence[Candidate],
    base: list[Any],
    context: int,
    rounds: int,
    tell: Tell,
    leave_out: LeaveOut,
) -> Iterator[BenchRow]:
    caches: dict[str, list[Any]] = {}
    for candidate in group:
        try:
            with may_drop_out(candidate):
                caches[candidate.name] = kv_caches.make_cache(candidate, base, model)
        except CannotTakePart as error:
            leave_out(candidate.name, error)
    peaks = dict.fromkeys(caches, 0)

    def run(candidate: Candidate) -> float:
        name, cache = candidate.name, caches[candidate.name]
        own, before = kv_caches.cache_bytes(cache), mx.get_active_memory()
        mx.reset_peak_memory()
        with may_drop_out(candidate):
            seconds = _time_decode(model, cache)
        peaks[name] = max(peaks[name], mx.get_peak_memory() - before + own)
        return seconds

    runs = {one.name: partial(run, one) for one in group if one.name in caches}
    times = timing.time_interleaved(
        runs, rounds, lambda name: tell(f"decode at {context:,}, {name}"), leave_out
    )
    weights = model.info.weight_bytes
    reads = {name: kv_caches.cache_bytes(cache) + weights for name, cache in caches.items()}
    yield from bench_rows("decode", context, times, group, peaks, reads, 1)


def _time_decode(model: LoadedModel, cache: list[Any]) -> float:
    """Seconds per token over ``DECODED_TOKENS`` steps, the first step not counted.

    Caches pack between steps, all layers together, as in the chat.
    """
    began = ended = 0.0
    ours = scheme_caches(cache)

    def call(tokens: mx.array, *, cache: list[Any]) -> mx.array:
        return logits_of(model.model, tokens, cache)

    # Any: the stub covers models of every kind.
    steps: Any = generate_step(mx.array([1]), call, max_tokens=DECODED_TOKENS + 1, prompt_cache=cache)
    with packing_later(ours):
        for number, _ in enumerate(steps):
            ended = time.perf_counter()
            if number == 0:
                began = ended
            pack_together(ours)
    kv_caches.eval_cache(cache)
    mx.clear_cache()
    return (ended - began) / DECODED_TOKENS


def prefill(
    model: LoadedModel,
    candidates: Sequence[Candidate],
    contexts: Sequence[int],
    text: Sequence[int] | None,
    rounds: int,
    tell: Tell,
    leave_out: LeaveOut,
) -> Iterator[BenchRow]:
    """Time a prefill in the chat's chunks, with packing after the prompt and while it is read."""
    for context in contexts:
        prompt = [1] * context if text is None else list(text[:context])
        # A second candidate per scheme, so that both variants are timed in the same rounds.
        packing = [
            replace(c, name=f"{c.name} packed as read")
            for c in candidates
            if c not in kv_caches.MLX_CACHES and c.scheme.compresses
        ]
        variants = [*candidates, *packing]
        peaks = dict.fromkeys((c.name for c in variants), 0)
        runs = {c.name: partial(_time_prefill, model, c, c in packing, prompt, peaks) for c in variants}
        times = timing.time_interleaved(runs, rounds, partial(_tell_prefill, tell, context), leave_out)
        yield from bench_rows("prefill", context, times, variants, peaks, {}, context)


def _tell_prefill(tell: Tell, context: int, name: str) -> None:
    tell(f"prefill of {context:,}, {name}")


def _time_prefill(
    model: LoadedModel, candidate: Candidate, packs: bool, prompt: list[int], peaks: dict[str, int]
) -> float:
    """Seconds for a prompt whose last token is fed alone, and for packing what is raw then."""
    held = PromptCache(model, candidate.scheme.name)
    held.pack_prompts(packs)
    if candidate in kv_caches.MLX_CACHES:
        held.cache = _empty_mlx_caches(model, candidate)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    began = time.perf_counter()
    with may_drop_out(candidate):
        for _ in held.prefill_in_chunks(prompt[:-1]):
            pass
        with packing_later(held.cache):
            held.prefill(prompt[-1:])
        held.pack_due()
        held.evaluate()
    seconds = time.perf_counter() - began
    peaks[candidate.name] = max(peaks[candidate.name], mx.get_peak_memory() - before)
    return seconds


def _empty_mlx_caches(model: LoadedModel, candidate: Candidate) -> list[Any]:
    """Empty mlx-lm caches of the candidate's bits."""
    dtype = model.cache_dtype or mx.float16
    made: list[Any] = []
    for layer in kv.make_prompt_cache(model.model, FP16, dtype=model.cache_dtype):
        if not isinstance(layer, kv.SchemeCache):
            made.append(layer)
        elif candidate.mlx_bits is None:
            made.append(kv_caches.Mlx16Cache(dtype))
        else:
            made.append(MlxQuantizedCache(64, candidate.mlx_bits, dtype))
    return made


def bench_rows(
    what: str,
    context: int,
    times: dict[str, list[float]],
    candidates: Sequence[Candidate],
    peaks: dict[str, int],
    reads: dict[str, int],
    tokens: int,
) -> Iterator[BenchRow]:
    """One row for each candidate that was timed.

    Args:
        peaks: Peak bytes allocated, by name, if measured.
        reads: Bytes that one run reads, by name, if meaningful.
        tokens: Tokens processed in one timed run.
    """
    reference = times.get(kv_caches.REFERENCE)
    for candidate in candidates:
        if candidate.name not in times:
            continue
        own = times[candidate.name]
        middle = median(own)
        read = reads.get(candidate.name)
        yield BenchRow(
            what=what,
            scheme=candidate.name,
            context=context,
            median_s=middle,
            spread_s=timing.spread(own),
            tok_s=tokens / middle,
            ratio_fp16=timing.ratio(reference, own),
            ratio_mlx=timing.ratio(times.get(kv_caches.mlx_counterpart(candidate)), own),
            peak_bytes=peaks.get(candidate.name),
            read_bytes=read,
            read_bytes_s=None if read is None else read / middle,
        )


def _memory_groups(candidates: Sequence[Candidate], base: list[Any]) -> Iterator[list[Candidate]]:
    """Split candidates into groups whose caches fit into memory together, each with the reference."""
    size = max(1, kv_caches.cache_bytes(base))
    budget = min(backend.available_memory(), backend.prepare().memory_bytes) * MEMORY_SHARE
    # Three more of the same size: the base, the reference and a conversion in progress.
    side_by_side = max(1, int(budget / size) - 3)
    references = [c for c in candidates if c.name == kv_caches.REFERENCE]
    others = [c for c in candidates if c.name != kv_caches.REFERENCE]
    for start in range(0, max(len(others), 1), side_by_side):
        yield references + others[start : start + side_by_side]

"""Teacher-forced evaluation of schemes against the FP16 cache on the same text.

The first part is read as a prompt, raw; the rest is fed as in decoding, through the chat's caches and
attention, packing tokens that leave the tail. Distributions are compared block by block, so that no array of
tokens x vocabulary is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import QuantizedKVCache

from tqchat import kv
from tqchat.engine import backend
from tqchat.engine.cache.prompt_cache import prefill_chunk_tokens
from tqchat.engine.models import LoadedModel
from tqchat.errors import TqchatError
from tqchat.kv.cache import MAX_DECODE_ROWS, SchemeCache
from tqchat.kv.prompt_cache import flat_layers
from tqchat.kv.scheme import FP16
from tqchat.lab.candidates import Candidate, CannotTakePart, decode_runs, may_drop_out
from tqchat.lab.contestants import ContestantCache, to_contestant
from tqchat.lab.results import Row, Tally

BLOCK_TOKENS = 64
"""Tokens compared at a time."""

MEMORY_SHARE = 0.3
"""Share of free memory that caches measured in the same pass may take."""

Progress = Callable[[str, int, int], None]
"""Called with the current activity, tokens done and tokens in total."""


class NotEnoughText(TqchatError):
    """The text is too short to measure anything."""


class NotFinite(TqchatError):
    """The model itself computes NaN or infinity."""


@dataclass(frozen=True)
class Dropped:
    """A candidate that could not be measured, and why."""

    name: str
    reason: str


class Runner:
    """A model that reads a text with one candidate's cache."""

    def __init__(
        self, model: LoadedModel, candidate: Candidate, one_by_one: bool, pack_prompts: bool = False
    ) -> None:
        self.candidate = candidate
        self.tally = Tally()
        self._model = model
        self.cache = kv.make_prompt_cache(model.model, candidate.scheme, dtype=model.cache_dtype)
        for layer in flat_layers(self.cache):
            if isinstance(layer, SchemeCache):
                layer.packs_prompts = pack_prompts
        # Sliding windows pack and drop tokens at other steps than decode_runs assumes.
        windows = any(layer.kind == "sliding" for layer in kv.memory_report(self.cache).layers)
        self._longest = 1 if one_by_one or windows else MAX_DECODE_ROWS
        self._held = 0
        self._decoding = False

    def read(self, tokens: Sequence[int]) -> None:
        """Prefill a prompt, in the chat's chunks."""
        step = prefill_chunk_tokens(self._model, self.cache)
        for start in range(0, len(tokens), step):
            self._forward(tokens[start : start + step])
            mx.eval([layer.state for layer in self.cache if not layer.empty()])
            mx.clear_cache()
        if self.candidate.mlx_bits is not None:
            self.cache = [
                to_mlx_quantized(layer, self.candidate.mlx_bits, self._model) for layer in self.cache
            ]
        if self.candidate.contestant is not None:
            self.cache = [
                to_contestant(layer, self.candidate.contestant, index, len(self.cache))
                for index, layer in enumerate(self.cache)
            ]

    def decode(self, tokens: Sequence[int]) -> mx.array:
        """Feed tokens as in decoding.

        Returns:
            Log-probabilities of the token after each, float32 ``[tokens, vocabulary]``.
        """
        outputs = []
        done = 0
        if not self._decoding:
            outputs.append(self._forward(tokens[:1]))
            self._decoding, done = True, 1
        begin = self._held - done
        runs = decode_runs(self.candidate.scheme, self._held, begin + len(tokens), self._longest)
        for start, stop in runs:
            outputs.append(self._forward(tokens[start - begin : stop - begin]))
            mx.eval(outputs[-1])
        logits = mx.concatenate(outputs, axis=0).astype(mx.float32)
        return logits - mx.logsumexp(logits, axis=-1, keepdims=True)

    def sizes(self) -> tuple[int, int]:
        """Cache bytes at rest, counted from the live arrays, and bytes of the same tokens at FP16."""
        for layer in flat_layers(self.cache):
            if isinstance(layer, SchemeCache):
                layer.release_working_arrays()
        others = [c for c in self.cache if isinstance(c, (QuantizedKVCache, ContestantCache))]
        report = kv.memory_report([c for c in self.cache if c not in others])
        sizes = [c.sizes() if isinstance(c, ContestantCache) else _mlx_sizes(c) for c in others]
        return report.bytes + sum(s for s, _ in sizes), report.fp16_bytes + sum(s for _, s in sizes)

    def row(self) -> Row:
        """Results so far."""
        return self.tally.row(self.candidate.name, *self.sizes())

    def _forward(self, tokens: Sequence[int]) -> mx.array:
        """Logits ``[tokens, vocabulary]``."""
        self._held += len(tokens)
        inputs = mx.array(list(tokens))[None]
        logits: mx.array = self._model.model(inputs, cache=self.cache)[0]
        return logits


def evaluate(
    model: LoadedModel,
    candidates: Sequence[Candidate],
    tokens: Sequence[int],
    prefill: int,
    *,
    one_by_one: bool | None = None,
    pack_prompts: bool = False,
    progress: Progress | None = None,
) -> tuple[list[Row], list[Dropped]]:
    """Measure schemes against the FP16 cache on a text.

    Args:
        tokens: The text. The last token is predicted but not fed.
        prefill: Number of tokens read as the prompt.
        one_by_one: Feed every token by itself. Default: only on an accelerator; on a CPU tokens between two
            packing steps are fed together, which changes only the order of sums.
        pack_prompts: Pack prompts while they are read.
        progress: Called for every block.

    Returns:
        A row for each candidate, in order, and the candidates that could not be measured.

    Raises:
        NotEnoughText: if no tokens remain after the prefill.
        NotFinite: if the model computes NaN with the FP16 cache.
    """
    if not 0 < prefill < len(tokens) - 1:
        raise NotEnoughText(
            f"The text has {len(tokens):,} tokens: nothing is left to measure after a prompt of {prefill:,}."
        )
    one_by_one = not model.on_cpu if one_by_one is None else one_by_one
    rows: dict[str, Row] = {}
    dropped: list[Dropped] = []
    remaining = list(candidates)
    done, total = 0, 0
    tell = progress or (lambda *_: None)
    while remaining:
        reference = Runner(model, Candidate("fp16", FP16), one_by_one)
        tell("reading the prompt", done, total or 1)
        reference.read(tokens[:prefill])
        group = remaining[: _caches_per_pass(reference, prefill, len(tokens))]
        remaining = remaining[len(group) :]
        total = total or len(candidates) * (len(tokens) - 1)
        runners: list[Runner] = []
        for candidate in group:
            runner = Runner(model, candidate, one_by_one, pack_prompts)
            tell(f"{candidate.name} reads the prompt", done, total)
            try:
                with may_drop_out(candidate):
                    runner.read(tokens[:prefill])
            except CannotTakePart as error:
                dropped.append(Dropped(candidate.name, str(error)))
                done += len(tokens) - 1
                continue
            runners.append(runner)
            done += prefill
        for start in range(prefill, len(tokens) - 1, BLOCK_TOKENS):
            block = tokens[start : min(start + BLOCK_TOKENS, len(tokens) - 1)]
            targets = mx.array(list(tokens[start + 1 : start + 1 + len(block)]))
            reference_logprobs = reference.decode(block)
            mx.eval(reference_logprobs)
            for runner in list(runners):
                tell(runner.candidate.name, done, total)
                if (reason := _compare(runner, block, targets, reference_logprobs, start)) is not None:
                    dropped.append(Dropped(runner.candidate.name, reason))
                    runners.remove(runner)
                done += len(block)
            mx.clear_cache()
        rows |= {runner.candidate.name: runner.row() for runner in runners}
    tell("done", total, total)
    return [rows[c.name] for c in candidates if c.name in rows], dropped


def _compare(
    runner: Runner, block: Sequence[int], targets: mx.array, reference_logprobs: mx.array, start: int
) -> str | None:
    """Feed a block and add its divergences to the tally; the reason if the candidate cannot continue."""
    try:
        with may_drop_out(runner.candidate):
            logprobs = runner.decode(block)
            mx.eval(logprobs)
    except CannotTakePart as error:
        return str(error)
    # Tokens of probability 0 under the reference add nothing (some models mask part of the vocabulary).
    share = mx.exp(reference_logprobs)
    klds = mx.where(share > 0, share * (reference_logprobs - logprobs), 0).sum(axis=-1)
    top1_matches = (reference_logprobs.argmax(axis=-1) == logprobs.argmax(axis=-1)).sum()
    nll_sum = -mx.take_along_axis(logprobs, targets[:, None], axis=-1).sum()
    if not mx.isfinite(reference_logprobs).any(axis=-1).all().item():
        raise NotFinite(f"The model computes NaN at token {start:,}, so there is nothing to compare with.")
    if not (mx.isfinite(klds).all().item() and mx.isfinite(nll_sum).item()):
        return f"its distributions are not finite from token {start:,} on"
    block_klds: Any = klds.tolist()
    counted: Any = (top1_matches.item(), nll_sum.item())
    runner.tally.add(block_klds, *counted)
    return None


def _caches_per_pass(reference: Runner, held: int, tokens: int) -> int:
    """Number of caches that fit into memory together at the end of the text."""
    _, fp16_size = reference.sizes()
    budget = min(backend.available_memory(), backend.prepare().memory_bytes) * MEMORY_SHARE
    return max(1, int(budget * held / (max(fp16_size, 1) * tokens)))


class MlxQuantizedCache(QuantizedKVCache):  # type: ignore[misc, unused-ignore]
    """mlx-lm's ``QuantizedKVCache`` that casts to ``dtype`` first: on a CPU models compute in float32."""

    def __init__(self, group_size: int, bits: int, dtype: mx.Dtype) -> None:
        super().__init__(group_size, bits)
        self._dtype = dtype

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
        """Append tokens; all keys and values, quantised."""
        return super().update_and_fetch(  # type: ignore[no-untyped-call]
            keys.astype(self._dtype), values.astype(self._dtype)
        )


def to_mlx_quantized(layer: Any, bits: int, model: LoadedModel) -> Any:
    """Convert a layer's cache as mlx-lm does after the prompt (``KVCache.to_quantized``).

    Raises:
        CannotTakePart: if no group size divides the head dimension.
    """
    if not isinstance(layer, SchemeCache) or layer.empty():
        return layer
    keys, values = layer.decoded()
    if model.cache_dtype is not None:
        # Scales get the vectors' dtype: 16 bits, as in a model that computes at 16 bits.
        keys, values = keys.astype(model.cache_dtype), values.astype(model.cache_dtype)
    for group in (64, 32):
        if keys.shape[-1] % group == 0 and values.shape[-1] % group == 0:
            break
    else:
        raise CannotTakePart(f"mlx-lm cannot quantise heads of {keys.shape[-1]}")
    converted: Any = MlxQuantizedCache(group, bits, keys.dtype)
    converted.offset = layer.offset
    converted.keys, converted.values = mx.quantize(keys, group, bits), mx.quantize(values, group, bits)
    return converted


def _mlx_sizes(layer: Any) -> tuple[int, int]:
    size = fp16_size = 0
    for words, scales, biases in (layer.keys, layer.values):
        capacity = words.shape[2]
        size += sum(a.nbytes for a in (words, scales, biases)) // capacity * layer.offset
        vectors = words.shape[0] * words.shape[1] * layer.offset
        fp16_size += 2 * vectors * words.shape[-1] * 32 // layer.bits
    return int(size), int(fp16_size)

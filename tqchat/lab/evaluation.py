"""Teacher-forced evaluation: every scheme reads the same text as the FP16 cache, step by step beside it.

The first part is read as a prompt, raw; then tokens are fed as in decoding, through the caches and the
attention of the chat, packing what leaves the tail. After each block the schemes' distributions are held
against the reference's, which is then forgotten: nothing of the size of tokens x vocabulary is ever kept."""

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
from tqchat.lab.contestants import Contestant, decode_runs
from tqchat.lab.results import Row, Tally

BLOCK = 64
"""Tokens between two comparisons."""

MEMORY_SHARE = 0.3
"""The share of free memory that the caches of schemes measured side by side may take."""

Progress = Callable[[str, int, int], None]
"""Told what is going on, and how many of how many tokens are done."""


class NotEnoughText(TqchatError):
    """The text is too short to measure anything."""


class NotFinite(TqchatError):
    """The model itself computes NaN or infinity."""


@dataclass(frozen=True)
class Dropped:
    """A contestant that could not go on, and why."""

    name: str
    reason: str


class Runner:
    """A model reading a text under one contestant's cache."""

    def __init__(
        self, model: LoadedModel, contestant: Contestant, one_by_one: bool, pack_prompts: bool = False
    ) -> None:
        self.contestant = contestant
        self.tally = Tally()
        self._model = model
        self.cache = kv.make_prompt_cache(model.model, contestant.scheme, dtype=model.cache_dtype)
        for layer in flat_layers(self.cache):
            if isinstance(layer, SchemeCache):
                layer.packs_prompts = pack_prompts
        # Windows pack, and let go of tokens, at steps of their own.
        windows = any(layer.kind == "sliding" for layer in kv.memory_report(self.cache).layers)
        self._longest = 1 if one_by_one or windows else MAX_DECODE_ROWS
        self._held = 0
        self._decoding = False

    def read(self, tokens: Sequence[int]) -> None:
        """Take in a prompt, as the chat does."""
        step = prefill_chunk_tokens(self._model, self.cache)
        for start in range(0, len(tokens), step):
            self._forward(tokens[start : start + step])
            mx.eval([layer.state for layer in self.cache if not layer.empty()])
            mx.clear_cache()
        if self.contestant.peer_bits is not None:
            self.cache = [quantised(layer, self.contestant.peer_bits, self._model) for layer in self.cache]

    def decode(self, tokens: Sequence[int]) -> mx.array:
        """Feed tokens as decoding does; what follows each.

        Returns:
            Log-probabilities, float32 ``[tokens, vocabulary]``.
        """
        outputs = []
        done = 0
        if not self._decoding:
            outputs.append(self._forward(tokens[:1]))
            self._decoding, done = True, 1
        begin = self._held - done
        runs = decode_runs(self.contestant.scheme, self._held, begin + len(tokens), self._longest)
        for start, stop in runs:
            outputs.append(self._forward(tokens[start - begin : stop - begin]))
            mx.eval(outputs[-1])
        logits = mx.concatenate(outputs, axis=0).astype(mx.float32)
        return logits - mx.logsumexp(logits, axis=-1, keepdims=True)

    def sizes(self) -> tuple[int, int]:
        """Bytes of the tokens held, counted from the live arrays; and what they would take at FP16."""
        report = kv.memory_report([c for c in self.cache if not isinstance(c, QuantizedKVCache)])
        size, fp16_size = report.bytes, report.fp16_bytes
        for layer in self.cache:
            if isinstance(layer, QuantizedKVCache):
                taken, plain = _peer_sizes(layer)
                size, fp16_size = size + taken, fp16_size + plain
        return size, fp16_size

    def row(self) -> Row:
        """The figures so far."""
        return self.tally.row(self.contestant.name, *self.sizes())

    def _forward(self, tokens: Sequence[int]) -> mx.array:
        """Logits ``[tokens, vocabulary]``."""
        self._held += len(tokens)
        inputs = mx.array(list(tokens))[None]
        logits: mx.array = self._model.model(inputs, cache=self.cache)[0]
        return logits


def evaluate(
    model: LoadedModel,
    contestants: Sequence[Contestant],
    tokens: Sequence[int],
    prefill: int,
    *,
    one_by_one: bool | None = None,
    pack_prompts: bool = False,
    progress: Progress | None = None,
) -> tuple[list[Row], list[Dropped]]:
    """Measure schemes against the FP16 cache on a text.

    Args:
        tokens: The text; the caches end up holding all but the last, which is only predicted.
        prefill: How many of them are read as the prompt.
        one_by_one: Whether every token is fed by itself. By default so on an accelerator; on a CPU tokens
            between two packings go in together, which changes no more than the order of sums.
        pack_prompts: Whether prompts are packed while they are read.
        progress: Hears of every block.

    Returns:
        A row for each contestant, in their order, and those that could not be measured.

    Raises:
        NotEnoughText: if nothing is left to measure after the prefill.
        NotFinite: if the model under the FP16 cache computes NaN.
    """
    if not 0 < prefill < len(tokens) - 1:
        raise NotEnoughText(
            f"The text has {len(tokens):,} tokens: nothing is left to measure behind a prompt of {prefill:,}."
        )
    one_by_one = not model.on_cpu if one_by_one is None else one_by_one
    rows: dict[str, Row] = {}
    dropped: list[Dropped] = []
    waiting = list(contestants)
    done, total = 0, 0
    tell = progress or (lambda *_: None)
    while waiting:
        reference = Runner(model, Contestant("fp16", FP16), one_by_one)
        tell("reading the prompt", done, total or 1)
        reference.read(tokens[:prefill])
        group = waiting[: _side_by_side(reference, prefill, len(tokens))]
        waiting = waiting[len(group) :]
        total = total or len(contestants) * (len(tokens) - 1)
        runners: list[Runner] = []
        for contestant in group:
            runner = Runner(model, contestant, one_by_one, pack_prompts)
            tell(f"{contestant.name} reads the prompt", done, total)
            try:
                runner.read(tokens[:prefill])
            except Unsupported as error:
                dropped.append(Dropped(contestant.name, str(error)))
                done += len(tokens) - 1
                continue
            runners.append(runner)
            done += prefill
        for start in range(prefill, len(tokens) - 1, BLOCK):
            fed = tokens[start : min(start + BLOCK, len(tokens) - 1)]
            targets = mx.array(list(tokens[start + 1 : start + 1 + len(fed)]))
            truth = reference.decode(fed)
            mx.eval(truth)
            for runner in list(runners):
                tell(runner.contestant.name, done, total)
                if (reason := _compare(runner, fed, targets, truth, start)) is not None:
                    dropped.append(Dropped(runner.contestant.name, reason))
                    runners.remove(runner)
                done += len(fed)
            mx.clear_cache()
        rows |= {runner.contestant.name: runner.row() for runner in runners}
    tell("done", total, total)
    return [rows[c.name] for c in contestants if c.name in rows], dropped


def _compare(
    runner: Runner, fed: Sequence[int], targets: mx.array, truth: mx.array, start: int
) -> str | None:
    """Let a contestant read a block and count it; why it cannot go on, ``None`` if it can."""
    try:
        found = runner.decode(fed)
        mx.eval(found)
    except (ValueError, RuntimeError) as error:
        if runner.contestant.peer_bits is None:
            raise
        return f"mlx-lm cannot: {str(error).rstrip('.')}"
    # Where the reference gives nothing, nothing can be missed (some models forbid part of the vocabulary).
    share = mx.exp(truth)
    klds = mx.where(share > 0, share * (truth - found), 0).sum(axis=-1)
    agreed = (truth.argmax(axis=-1) == found.argmax(axis=-1)).sum()
    surprise = -mx.take_along_axis(found, targets[:, None], axis=-1).sum()
    if not mx.isfinite(truth).any(axis=-1).all().item():
        raise NotFinite(f"The model computes NaN at token {start:,}, so there is nothing to compare with.")
    if not (mx.isfinite(klds).all().item() and mx.isfinite(surprise).item()):
        return f"its distributions are not finite from token {start:,} on"
    told: Any = klds.tolist()
    counted: Any = (agreed.item(), surprise.item())
    runner.tally.add(told, *counted)
    return None


def _side_by_side(reference: Runner, held: int, tokens: int) -> int:
    """How many schemes' caches fit beside each other, at the text's end."""
    _, fp16_size = reference.sizes()
    room = min(backend.available_memory(), backend.prepare().memory_bytes) * MEMORY_SHARE
    return max(1, int(room * held / (max(fp16_size, 1) * tokens)))


class Unsupported(Exception):
    """mlx-lm's quantised cache cannot hold this model's vectors."""


class Peer(QuantizedKVCache):  # type: ignore[misc, unused-ignore]
    """mlx-lm's own quantised cache, given 16-bit vectors as its 16-bit models give it."""

    def __init__(self, group_size: int, bits: int, dtype: mx.Dtype) -> None:
        super().__init__(group_size, bits)
        self._dtype = dtype

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
        """Add tokens; all of them come back quantised."""
        return super().update_and_fetch(  # type: ignore[no-untyped-call]
            keys.astype(self._dtype), values.astype(self._dtype)
        )


def quantised(layer: Any, bits: int, model: LoadedModel) -> Any:
    """What mlx-lm converts a layer's cache to after the prompt: ``KVCache.to_quantized``."""
    if not isinstance(layer, SchemeCache) or layer.empty():
        return layer
    keys, values = layer.decoded()
    if model.cache_dtype is not None:
        # Scales take the vectors' dtype: 16 bits, as in a model that computes in them.
        keys, values = keys.astype(model.cache_dtype), values.astype(model.cache_dtype)
    for group in (64, 32):
        if keys.shape[-1] % group == 0 and values.shape[-1] % group == 0:
            break
    else:
        raise Unsupported(f"mlx-lm cannot quantise heads of {keys.shape[-1]}")
    peer: Any = Peer(group, bits, keys.dtype)
    peer.offset = layer.offset
    peer.keys, peer.values = mx.quantize(keys, group, bits), mx.quantize(values, group, bits)
    return peer


def _peer_sizes(layer: Any) -> tuple[int, int]:
    taken = plain = 0
    for words, scales, biases in (layer.keys, layer.values):
        capacity = words.shape[2]
        taken += sum(a.nbytes for a in (words, scales, biases)) // capacity * layer.offset
        vectors = words.shape[0] * words.shape[1] * layer.offset
        plain += 2 * vectors * words.shape[-1] * 32 // layer.bits
    return int(taken), int(plain)

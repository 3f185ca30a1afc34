"""Caches of several sequences that a model reads at once, in the protocol of ``BatchKVCache``."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import mlx.core as mx
from mlx_lm.models import cache as mlx_cache
from mlx_lm.models.base import create_causal_mask

from tqchat.kv.cache import SchemeCache
from tqchat.kv.scheme import FP16
from tqchat.kv.storage.placeholders import placeholders_for

Attention = Callable[..., mx.array]
Span = tuple[int, int]
"""First and end position of a sequence's tokens in a step; the other positions are padding."""


class _Step(NamedTuple):
    """The last step: its tokens with padding, and what each sequence held before."""

    keys: mx.array
    values: mx.array
    spans: list[Span]
    held: list[int]


class _RowMask(NamedTuple):
    """A mask as each sequence would get it by itself."""

    array: weakref.ref[mx.array]
    rows: list[Any]


_row_masks: dict[int, _RowMask] = {}


class BatchCache:
    """One cache per sequence, as if each were read alone.

    Padding is not stored: every sequence has its own tokens, positions, fit and packed tokens, and attends by
    itself. Attention that is not routed gets all of them decoded, right-aligned in one array.

    Attributes:
        rows: The cache of each sequence: a ``SchemeCache``, or a ``RingRow`` where every step is of one token
            and attention is routed.
    """

    def __init__(self, rows: Sequence[Any]) -> None:
        self.rows = list(rows)
        self._left_padding = [0] * len(self.rows)
        self._tokens_left: list[int] | None = None
        self._step: _Step | None = None
        self._row_fetches: list[Any] = []
        self._fetched: tuple[weakref.ref[mx.array], weakref.ref[mx.array]] | None = None

    @classmethod
    def merge(cls, caches: Sequence[Any]) -> Self:
        """A batch of copies of these caches, mlx-lm's own included."""
        return cls([_as_row(cache) for cache in caches])

    def prepare(
        self,
        *,
        left_padding: Sequence[int] | None = None,
        lengths: Sequence[int] | None = None,
        right_padding: Sequence[int] | None = None,
    ) -> None:
        """Tell which positions of the next steps are padding.

        Args:
            left_padding: Positions before each sequence's first token.
            lengths: Tokens of each sequence until ``finalize``; ``right_padding`` positions follow them.
        """
        if left_padding is not None:
            self._left_padding = [int(n) for n in left_padding]
        if lengths is not None and right_padding is not None and max(right_padding) > 0:
            self._tokens_left = [int(n) for n in lengths]

    def finalize(self) -> None:
        """End the right padding."""
        self._tokens_left = None

    def _spans(self, count: int) -> list[Span]:
        spans = []
        for index, skipped in enumerate(self._left_padding):
            start = min(skipped, count)
            left = count if self._tokens_left is None else self._tokens_left[index]
            spans.append((start, min(count, start + left)))
        return spans

    @property
    def offset(self) -> mx.array:
        """Position of the next step's first column in each sequence."""
        pairs = zip(self.rows, self._left_padding, strict=True)
        return mx.array([row.offset - skipped for row, skipped in pairs])

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append each sequence's tokens and return all of them, right-aligned.

        Args:
            keys: ``[sequences, heads, tokens, key_dim]``; ``values`` likewise.
        """
        count = keys.shape[2]
        spans = self._spans(count)
        self._step = _Step(keys, values, spans, [row.tokens_before_append for row in self.rows])
        for index, (row, (start, end)) in enumerate(zip(self.rows, spans, strict=True)):
            if end > start:
                one = slice(index, index + 1)
                row.append(keys[one, :, start:end], values[one, :, start:end])
            self._left_padding[index] -= start
            if self._tokens_left is not None:
                self._tokens_left[index] -= end - start
        return self.keys_and_values()

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """What the last step returned."""
        step = self._step
        assert step is not None, "nothing was read yet"
        fetches = [
            row.keys_and_values() if row.offset else (step.keys[:1, :, :0], step.values[:1, :, :0])
            for row in self.rows
        ]
        # Kept until attention: a row lets go of what it packed once they are freed.
        self._row_fetches = fetches if all(row.is_routed for row in self.rows) else []
        if self._row_fetches and all(row.uses_placeholders for row in self.rows):
            _, heads, count, key_dim = step.keys.shape
            placeholders = placeholders_for(
                (len(self.rows), heads),
                (key_dim, step.values.shape[3]),
                (step.keys.dtype, step.values.dtype),
            )
            fetched = placeholders.of_length(max(step.held) + count)
        else:
            fetched = (
                self._right_aligned([keys for keys, _ in fetches], step.keys),
                self._right_aligned([values for _, values in fetches], step.values),
            )
        self._fetched = weakref.ref(fetched[0]), weakref.ref(fetched[1])
        return fetched

    def _right_aligned(self, fetched: Sequence[mx.array], new: mx.array) -> mx.array:
        """What each sequence held, padded on the left to the longest, and the last step's tokens."""
        step = self._step
        assert step is not None
        longest = max(step.held)
        rows = []
        for index, (array, held) in enumerate(zip(fetched, step.held, strict=True)):
            if step.spans[index] != (0, new.shape[2]):  # behind what it held there is padding
                array = mx.concatenate([array[:, :, :held].astype(new.dtype), new[index : index + 1]], axis=2)
            if held < longest:
                array = mx.pad(array, [(0, 0), (0, 0), (longest - held, 0), (0, 0)])
            rows.append(array)
        return mx.concatenate(rows, axis=0)

    def is_last_fetch(self, keys: mx.array, values: mx.array) -> bool:
        """Whether these are the arrays of the last fetch, to be attended to by ``attend``."""
        fetched = self._fetched
        if fetched is None or not self._row_fetches:
            return False
        return fetched[0]() is keys and fetched[1]() is values

    def attend(
        self,
        attention: Attention,
        queries: mx.array,
        scale: float,
        mask: mx.array | str | None,
        sink_logits: mx.array | None = None,
    ) -> mx.array:
        """Attention of each sequence to its own cache; zero where a position is padding.

        Args:
            attention: The routed attention, for one sequence.
            queries: ``[sequences, query_heads, tokens, key_dim]``.
        """
        step = self._step
        assert step is not None
        outputs = []
        width = step.values.shape[3]
        for index, (row, (start, end)) in enumerate(zip(self.rows, step.spans, strict=True)):
            parts = []
            if start or end == start:
                before = start if end > start else queries.shape[2]
                parts.append(mx.zeros((1, queries.shape[1], before, width), queries.dtype))
            if end > start:
                keys, values = self._row_fetches[index]
                parts.append(
                    attention(
                        queries[index : index + 1, :, start:end],
                        keys,
                        values,
                        row,
                        scale,
                        self._mask_of_row(mask, index),
                        sink_logits,
                    )
                )
                if after := queries.shape[2] - end:
                    parts.append(mx.zeros((1, queries.shape[1], after, width), queries.dtype))
            outputs.append(mx.concatenate(parts, axis=2) if len(parts) > 1 else parts[0])
        return mx.concatenate(outputs, axis=0)

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> mx.array:
        """The mask for ``N`` new tokens of each sequence, ``[sequences, 1, N, tokens]``."""
        spans, held = self._spans(N), [row.tokens_before_append for row in self.rows]
        longest = max(held)
        window = window_size or min((getattr(row, "max_size", 0) for row in self.rows), default=0) or None
        hidden = [longest - n + start for n, (start, _) in zip(held, spans, strict=True)]
        mask: mx.array = create_causal_mask(N, longest, window_size=window, left_padding=mx.array(hidden))
        rows = [
            row.make_mask(end - start, window_size=window_size) if end > start else None
            for row, (start, end) in zip(self.rows, spans, strict=True)
        ]
        number = id(mask)
        _row_masks[number] = _RowMask(weakref.ref(mask, lambda _: _row_masks.pop(number, None)), rows)
        return mask

    def _mask_of_row(self, mask: mx.array | str | None, index: int) -> Any:
        """The part of a mask that one sequence needs."""
        if not isinstance(mask, mx.array):
            return mask
        known = _row_masks.get(id(mask))
        if known is not None and known.array() is mask:
            return known.rows[index]
        assert self._step is not None
        start, end = self._step.spans[index]
        longest, held = max(self._step.held), self._step.held[index]
        if mask.ndim == 4 and mask.shape[0] > 1:
            mask = mask[index : index + 1]
        if mask.shape[-2] > 1:
            mask = mask[..., start:end, :]
        new = mask[..., longest + start : longest + end]
        return mx.concatenate([mask[..., longest - held : longest], new], axis=-1)

    def filter(self, batch_indices: Any) -> None:
        """Keep these sequences only."""
        listed: Any = batch_indices.tolist() if isinstance(batch_indices, mx.array) else batch_indices
        kept = [int(index) for index in listed]
        self.rows = [self.rows[index] for index in kept]
        self._left_padding = [self._left_padding[index] for index in kept]
        if self._tokens_left is not None:
            self._tokens_left = [self._tokens_left[index] for index in kept]
        self._forget_step()

    def extend(self, other: Any) -> None:
        """Append the sequences of another batch, mlx-lm's own included."""
        if isinstance(other, BatchCache):
            self.rows += other.rows
            self._left_padding += other._left_padding
        else:
            count = other.offset.shape[0]
            self.rows += [_as_row(other.extract(index)) for index in range(count)]
            self._left_padding += [0] * count
        self._forget_step()

    def extract(self, idx: int) -> SchemeCache:
        """A copy of one sequence's cache."""
        row: SchemeCache = copy.deepcopy(self.rows[idx])
        return row

    def _forget_step(self) -> None:
        self._step = self._fetched = None
        self._row_fetches = []

    def is_trimmable(self) -> bool:
        return all(row.is_trimmable() for row in self.rows)

    def trim(self, n: int) -> int:
        """Drop the last ``n`` tokens of every sequence; returns the most that were dropped."""
        self._forget_step()
        return max([row.trim(n) for row in self.rows], default=0)

    def size(self) -> int:
        return max((row.size() for row in self.rows), default=0)

    def empty(self) -> bool:
        return all(row.empty() for row in self.rows)

    @property
    def nbytes(self) -> int:
        return sum(row.nbytes for row in self.rows)

    @property
    def state(self) -> list[Any]:
        """The states of the sequences, for ``mx.eval``; sequences are saved by themselves (``extract``)."""
        return [row.state for row in self.rows]

    def to_quantized(self, group_size: int = 64, bits: int = 4) -> Any:
        return self.rows[0].to_quantized(group_size, bits)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied = type(self)(copy.deepcopy(self.rows, memo))
        copied._left_padding = list(self._left_padding)
        copied._tokens_left = None if self._tokens_left is None else list(self._tokens_left)
        return copied


def _as_row(cache: Any) -> SchemeCache:
    """A copy of one sequence's cache.

    Raises:
        ValueError: if it is of a kind that cannot be in a batch with ours.
    """
    if isinstance(cache, SchemeCache):
        return copy.deepcopy(cache)
    if type(cache) is not mlx_cache.KVCache:
        raise ValueError(
            f"A {type(cache).__name__} cannot be in one batch with a compressed cache. "
            "Make the cache of every sequence with tqchat.kv.make_prompt_cache."
        )
    own: Any = cache
    row = SchemeCache(FP16)
    if not own.empty():
        row.append(*own.keys_and_values())
    return row

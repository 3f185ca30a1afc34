"""Statistics of a layer's queries, collected until its keys are fitted to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

import mlx.core as mx


class _Step(NamedTuple):
    """The last step, if its last tokens may be trimmed: the energy after each token, float32 ``[batch, heads,
    tokens, head_dim]``; queries per token and head; tokens after those that were not observed.
    """

    energies: mx.array
    queries_per_token: int
    left_out: int


@dataclass(frozen=True)
class ObservedQueries:
    """Sums over the queries that were observed.

    Attributes:
        energy: Sum of squares of each coordinate, float32 ``[batch, heads, 1, head_dim]``; ``None`` without
            queries.
        count: Number of queries per key head.
    """

    energy: mx.array | None = None
    count: int = 0
    _step: _Step | None = None

    @property
    def mean_energy(self) -> mx.array | None:
        """Mean square of each coordinate, of the shape of ``energy``."""
        return None if self.energy is None else self.energy / self.count

    @property
    def nbytes(self) -> int:
        return 0 if self.energy is None else int(self.energy.nbytes)

    def add(self, queries: mx.array, heads: int, left_out: int = 0, may_be_trimmed: bool = False) -> Self:
        """With the queries of a step.

        Args:
            queries: ``[batch, query_heads, tokens, head_dim]``. Queries that are not finite count as zero.
            heads: Key heads.
            left_out: Last tokens that are not observed.
            may_be_trimmed: Whether ``without_last`` may follow.
        """
        batch, _, tokens, head_dim = queries.shape
        if (observed := tokens - left_out) <= 0:
            return self
        rows = queries[:, :, :observed].astype(mx.float32).reshape(batch, heads, -1, head_dim)
        squares = rows.square()
        squares = mx.where(mx.isfinite(squares.sum(axis=-1, keepdims=True)), squares, 0)
        count, step = int(rows.shape[2]), None
        if may_be_trimmed:
            by_token = squares.reshape(batch, heads, -1, observed, head_dim).sum(axis=2)
            if self.energy is not None:
                by_token = mx.concatenate([self.energy, by_token], axis=2)
            by_token = mx.cumsum(by_token, axis=2)
            step = _Step(by_token, count // observed, left_out)
            energy = by_token[:, :, -1:]
        else:
            energy = squares.sum(axis=2, keepdims=True)
            energy = energy if self.energy is None else self.energy + energy
        return self._evaluating(energy, self.count + count, step)

    def without_last(self, tokens: int) -> Self:
        """Without the last tokens of the last step, if that was added as one that may be trimmed."""
        if self._step is None or tokens <= 0:
            return self.final()
        energies, per_token, left_out = self._step
        tokens = max(0, tokens - left_out)
        kept = energies.shape[2] - tokens
        return self._evaluating(energies[:, :, kept - 1 : kept], self.count - per_token * tokens, None)

    def final(self) -> Self:
        """Without the means to take tokens of the last step back."""
        return self if self._step is None else type(self)(self.energy, self.count)

    def _evaluating(self, energy: mx.array, count: int, step: _Step | None) -> Self:
        # No output of the step depends on it, and the next step may run on another thread.
        mx.async_eval(energy)  # type: ignore[no-untyped-call]
        return type(self)(energy, count, step)


NO_QUERIES = ObservedQueries()

"""Turbo format: rotation and a Lloyd-Max codebook (TurboQuant)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Literal, NamedTuple

import mlx.core as mx

from tqchat.kv.codec.base import Block, FittedFormat, Format, concatenate
from tqchat.kv.codec.centres import Centres, cluster, index_of, join_gain, one_hot, store_centres
from tqchat.kv.codec.fitting import FLOAT16_MAX, QueryStatistics, fit_keys
from tqchat.kv.codec.quantiser import FINE_QUANTISER, Quantiser
from tqchat.kv.codec.rotation import Rotation

_MAX_TRANSPOSED_ROWS = 4
"""Query rows up to which a CPU's BLAS is up to twice as fast with the long history as left operand."""


@lru_cache(maxsize=1)
def _value_stream() -> mx.ThreadLocalStream:
    """CPU stream that dequantises values while scores are computed, at the cost of holding both dequantised.

    Thread-local: each attending thread gets its own.
    """
    return mx.new_thread_local_stream(mx.cpu)


MAX_LAUNCHES = 16
"""Most functions in ``TurboFormat.launches``."""


class Prepared(NamedTuple):
    """Encoded vectors prepared for products: packed ones, then fine ones, at least one of either.

    Attributes:
        gain: As stored, float16 ``[batch, heads, tokens, 1]``.
        centre: Its index, uint8 of the same shape.
        parts: The codes of each, with the quantiser that looks them up.
    """

    gain: mx.array
    centre: mx.array
    parts: tuple[tuple[Quantiser, tuple[mx.array, ...]], ...]

    @property
    def copied_bytes(self) -> int:
        """Bytes of the arrays that are not views of stored ones."""
        joined = self.gain.nbytes if len(self.parts) > 1 else 0
        return joined + self.centre.nbytes

    @property
    def factors(self) -> mx.array:
        """The gains, float32."""
        return mx.abs(self.gain).astype(mx.float32)


def _columns(rows: mx.array) -> mx.array:
    """Rows ``[batch, heads, rows, dim]`` transposed and contiguous, as BLAS needs them."""
    if rows.shape[2] == 1:
        return rows.reshape(*rows.shape[:2], -1, 1)
    return mx.contiguous(rows.swapaxes(-1, -2))


@dataclass(frozen=True)
class TurboFormat(FittedFormat):
    """TurboQuant: rotate, divide by the norm, quantise each coordinate with a Lloyd-Max codebook.

    A block is packed codes ``uint32 [batch, heads, tokens, words]`` and gains ``float16 [batch, heads,
    tokens, 1]``, the factor of a vector's centroids. Lloyd-Max centroids shrink a vector; the gain restores
    its own component, so that neither scores nor sums shrink on average.

    ``fit`` sets the centres: a vector is encoded relative to its nearest one, whose index is in the sign and
    the low bits of the gain. One centre is zero for values and the mean for keys. For keys, ``fit`` also sets
    ``balance`` and ``metric``, the cost of an error in each balanced channel, float16 of the same shape. Keys
    are rounded so that errors fall where queries are weak. A key's gain preserves its component under the
    metric, in which queries that attend to a key are aligned with it. The gain of an unfitted key preserves
    its length.

    A non-finite vector decodes to NaN, as from a raw cache, and is left out of the fit, so that other vectors
    are unaffected and nothing of it remains once it is trimmed.

    Source: TurboQuant (arXiv 2504.19874), algorithm 1, without the residual stage; gain as in EDEN (arXiv
    2108.08842); rounding in ``rounding``.
    """

    quantiser: Quantiser
    rotation: Rotation
    role: Literal["key", "value"]
    centres: Centres | None = None
    balance: mx.array | None = None
    metric: mx.array | None = None

    @property
    def mean(self) -> mx.array | None:
        return (
            None if self.centres is None else self.unfold(self.centres.vectors[:, :, :1]).astype(mx.float16)
        )

    @property
    def shared(self) -> dict[str, mx.array]:
        return {"rotation": self.rotation.array}

    @cached_property
    def launches(self) -> dict[object, Any]:
        """Functions that launch kernels for the format, by the arrays that they are for."""
        return {}

    def keep_launch(self, key: object, launch: Any) -> None:
        """Add to ``launches``; those of prompts, which have any length, are forgotten now and then."""
        if len(self.launches) >= MAX_LAUNCHES:
            self.launches.clear()
        self.launches[key] = launch

    @cached_property
    def fitted(self) -> dict[str, mx.array]:
        arrays = {"metric": self.metric}
        if self.centres is not None:
            arrays |= {"centres": self.centres.codes, "centre_scales": self.centres.scales}
        return super().fitted | {name: array for name, array in arrays.items() if array is not None}

    def fit(self, x: mx.array, statistics: QueryStatistics) -> TurboFormat:
        if self.role == "value":
            centres = cluster(x.astype(mx.float32), mx.zeros((*x.shape[:2], 1, x.shape[3])))
            return replace(self, centres=store_centres(self.rotation.rotate(centres)))
        fitted = fit_keys(x, statistics)
        return replace(
            self,
            centres=store_centres(self.rotation.rotate(fitted.centres)),
            balance=fitted.balance,
            metric=fitted.metric,
        )

    def with_fit_of(self, other: Format) -> TurboFormat:
        if not isinstance(other, TurboFormat):
            return self
        centres = other.centres
        if centres is not None and other.rotation is not self.rotation:
            centres = store_centres(self.rotation.rotate(other.rotation.unrotate(centres.vectors)))
        return replace(self, centres=centres, balance=other.balance, metric=other.metric)

    @property
    def length_keeping(self) -> TurboFormat:
        return replace(self, role="key", metric=None)

    def encode(self, x: mx.array) -> Block:
        x = self._balanced(x)
        y = self.rotation.rotate(x)
        index = None
        if self.centres is not None:
            index = self.centres.nearest(y)
            y = y - self.centres.of(index)
            x = self.rotation.unrotate(y)
        norm = mx.linalg.norm(y, axis=-1, keepdims=True)
        unit = y * (self.rotation.head_dim**0.5 / mx.maximum(norm, 1e-20))
        shaped = self.metric is not None and self.rotation.is_hadamard
        words, centroids = self.quantiser.quantise(
            unit, self.metric.astype(mx.float32) if self.metric is not None and shaped else None
        )
        if self.role == "value":
            gain = norm.square() / mx.maximum((y * centroids).sum(axis=-1, keepdims=True), 1e-20)
        elif self.metric is None:
            gain = norm / mx.linalg.norm(centroids, axis=-1, keepdims=True)
        else:
            weighted = x * self.metric
            component = (weighted * self.rotation.unrotate(centroids)).sum(axis=-1, keepdims=True)
            gain = (weighted * x).sum(axis=-1, keepdims=True) / mx.maximum(component, 1e-20)
        gain = mx.where(mx.isfinite(norm), mx.minimum(gain, FLOAT16_MAX), mx.nan)
        return words, gain.astype(mx.float16) if index is None else join_gain(gain, index)

    def prepare(self, block: Block, fine: Block = ()) -> Prepared:
        parts = [(self.quantiser, block), (FINE_QUANTISER, fine)]
        gain = concatenate([part[1] for _, part in parts if part], axis=2)
        dim = self.rotation.head_dim
        codes = tuple((quantiser, quantiser.prepare(part[0], dim)) for quantiser, part in parts if part)
        return Prepared(gain, index_of(gain), codes)

    @cached_property
    def _fold_signs(self) -> mx.array:
        """Hadamard signs divided by the balance, computed once."""
        assert self.balance is not None
        signs = self.rotation.array / self.balance.astype(mx.float32)
        mx.async_eval(signs)  # type: ignore[no-untyped-call]
        return signs

    def release_working_arrays(self) -> None:
        vars(self).pop("_fold_signs", None)

    def fold(self, queries: mx.array) -> mx.array:
        if self.balance is None or not self.rotation.is_hadamard:
            return super().fold(queries)
        return mx.hadamard_transform(queries * self._fold_signs)

    def multiply(self, folded: mx.array, prepared: Prepared) -> mx.array:
        if folded.shape[2] > self.rotation.head_dim:  # fewer values to scale than scores
            return folded @ self._dequantise(prepared).swapaxes(-1, -2)
        _, index, parts = prepared
        gain = prepared.factors
        if folded.shape[2] > _MAX_TRANSPOSED_ROWS or mx.default_device() != mx.cpu:
            products = [
                quantiser.arrange(folded) @ self._lookup(quantiser, codes).swapaxes(-1, -2)
                for quantiser, codes in parts
            ]
            scores = concatenate(products, axis=-1) * gain.swapaxes(-1, -2)
        else:
            products = [
                self._lookup(quantiser, codes) @ _columns(quantiser.arrange(folded))
                for quantiser, codes in parts
            ]
            scores = (concatenate(products, axis=2) * gain).swapaxes(-1, -2)
        if self.centres is None:
            return scores
        of_centres = folded @ self.centres.vectors.swapaxes(-1, -2)
        return scores + mx.take_along_axis(
            of_centres, mx.broadcast_to(index.swapaxes(-1, -2), scores.shape), axis=-1
        )

    def sum(self, weights: mx.array, prepared: Prepared, depends_on: mx.array | None = None) -> mx.array:
        if weights.shape[2] > self.rotation.head_dim:
            return weights @ self._dequantise(prepared)
        _, index, parts = prepared
        scaled = weights * prepared.factors.swapaxes(-1, -2)
        total, end = None, 0
        for quantiser, codes in parts:
            start, end = end, end + codes[0].shape[2]
            if depends_on is None or mx.default_device() != mx.cpu:
                stored = self._lookup(quantiser, codes)
            else:
                with mx.stream(_value_stream()):
                    stored = self._lookup(quantiser, mx.depends(list(codes), [depends_on]))
            share = quantiser.restore(scaled[..., start:end] @ stored, self.rotation.head_dim)
            total = share if total is None else total + share
        assert total is not None
        if self.centres is None:
            return total
        return total + (weights @ one_hot(index).swapaxes(-1, -2)) @ self.centres.vectors

    def _to_stored(self, x: mx.array) -> mx.array:
        return self.rotation.rotate(x)

    def _from_stored(self, x: mx.array) -> mx.array:
        return self.rotation.unrotate(x)

    def _dequantise(self, prepared: Prepared) -> mx.array:
        _, index, parts = prepared
        dim = self.rotation.head_dim
        stored = concatenate([q.restore(self._lookup(q, codes), dim) for q, codes in parts], axis=2)
        stored = stored * prepared.factors
        return stored if self.centres is None else stored + self.centres.of(index)

    def _lookup(self, quantiser: Quantiser, codes: Sequence[mx.array]) -> mx.array:
        return quantiser.lookup(codes, self.rotation.head_dim)

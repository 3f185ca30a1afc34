"""Storage formats of one side of a cache (keys or values): raw, affine and turbo.

Every array of an encoded block is ``[batch, heads, tokens, ...]``, so that storage can append, trim and slice
along the token axis without knowing the format. ``multiply`` and ``sum`` are attention's two products with
stored vectors. Rotation and balance are applied to queries (``fold``) and undone on sums (``unfold``); the
caller adds the contribution of the mean to scores and sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Literal, Protocol, Self

import mlx.core as mx

from tqchat.kv.codec.codebook import quantise
from tqchat.kv.codec.fitting import FLOAT16_MAX, QueryStatistics, fit_keys, fit_mean
from tqchat.kv.codec.packing import byte_planes, code_floats, lookup, pack
from tqchat.kv.codec.rotation import KEY_SEED, VALUE_SEED, Rotation, draw_rotation, restore_rotation
from tqchat.kv.codec.rounding import quantise_shaped
from tqchat.kv.scheme import FormatSpec

Block = tuple[mx.array, ...]
"""Encoded vectors: arrays ``[batch, heads, tokens, ...]``."""


class Format(Protocol):
    """Encoder and decoder of vectors, and attention's products with encoded ones."""

    @property
    def mean(self) -> mx.array | None:
        """Vector subtracted before encoding, not part of ``multiply`` and ``sum``: float16 ``[batch, heads,
        1, head_dim]``.
        """
        ...

    @property
    def shared(self) -> dict[str, mx.array]:
        """Arrays that decoding needs and all layers share, by name."""
        ...

    @property
    def fitted(self) -> dict[str, mx.array]:
        """Arrays that decoding needs and ``fit`` made for this layer, by name."""
        ...

    def fit(self, x: mx.array, statistics: QueryStatistics) -> Format:
        """This format fitted to vectors, before the first of them is encoded.

        Args:
            x: ``[batch, heads, tokens, head_dim]``.
        """
        ...

    def encode(self, x: mx.array) -> Block:
        """Encode vectors ``[batch, heads, tokens, head_dim]``."""
        ...

    def decode(self, block: Block) -> mx.array:
        """The vectors of a block, float32 ``[batch, heads, tokens, head_dim]``."""
        ...

    def prepare(self, block: Block) -> Block:
        """Arguments of ``multiply`` and ``sum`` for a block, reusable: views of its arrays."""
        ...

    def fold(self, queries: mx.array) -> mx.array:
        """Map queries to the space of stored vectors.

        ``queries @ decode(block)^T == folded @ stored^T + queries @ mean^T``, where ``stored`` is centroids
        times gain (turbo) or the dequantised groups (affine).

        Args:
            queries: float32 ``[batch, heads, rows, head_dim]``.

        Returns:
            float32 ``[batch, heads, rows, stored_dim]``.
        """
        ...

    def unfold(self, total: mx.array) -> mx.array:
        """Map sums of stored vectors back to the space of values, without the mean.

        Args:
            total: Weighted sums of stored vectors, float32 ``[batch, heads, rows, stored_dim]``.

        Returns:
            float32 ``[batch, heads, rows, head_dim]``.
        """
        ...

    def multiply(self, folded: mx.array, prepared: Block) -> mx.array:
        """Dot products of folded queries with stored vectors.

        Args:
            folded: float32 ``[batch, heads, rows, stored_dim]``.
            prepared: A block from ``prepare``.

        Returns:
            float32 ``[batch, heads, rows, tokens]``.
        """
        ...

    def sum(self, weights: mx.array, prepared: Block, depends_on: mx.array | None = None) -> mx.array:
        """Weighted sums of stored vectors.

        Args:
            weights: float32 ``[batch, heads, rows, tokens]``.
            prepared: A block from ``prepare``.
            depends_on: An array evaluated before the weights; dequantising may start once it is there, in
                parallel with computing the weights.

        Returns:
            float32 ``[batch, heads, rows, stored_dim]``.
        """
        ...


class _FittedFormat:
    """Common part of the formats: mean and balance.

    ``mean`` is subtracted from vectors and restored exactly in scores and sums; it absorbs large key biases.
    ``balance`` (keys only) multiplies each channel and divides the queries': sqrt(rms of queries / rms of
    keys) minimises the error of their product among diagonal maps, and makes the codec independent of how a
    model scales its channels. Both are float16 ``[batch, heads, 1, head_dim]``, and fixed once the first
    vector is encoded.
    """

    mean: mx.array | None = None
    balance: mx.array | None = None

    @property
    def shared(self) -> dict[str, mx.array]:
        return {}

    @property
    def fitted(self) -> dict[str, mx.array]:
        named = {"mean": self.mean, "balance": self.balance}
        return {name: array for name, array in named.items() if array is not None}

    def fold(self, queries: mx.array) -> mx.array:
        return self._to_stored(queries if self.balance is None else queries / self.balance)

    def unfold(self, total: mx.array) -> mx.array:
        total = self._from_stored(total)
        return total if self.balance is None else total / self.balance

    def decode(self, block: Block) -> mx.array:
        vectors = self.unfold(self._dequantise(self.prepare(block)))
        return vectors if self.mean is None else vectors + self.mean

    def prepare(self, block: Block) -> Block:
        return block

    def _centre_and_balance(self, x: mx.array) -> mx.array:
        """Vectors as they are rotated and quantised: float32, mean subtracted, balanced."""
        x = x.astype(mx.float32)
        if self.mean is not None:
            x = x - self.mean
        return x if self.balance is None else x * self.balance

    def _to_stored(self, x: mx.array) -> mx.array:
        raise NotImplementedError

    def _from_stored(self, x: mx.array) -> mx.array:
        raise NotImplementedError

    def _dequantise(self, prepared: Block) -> mx.array:
        raise NotImplementedError


class RawFormat(_FittedFormat):
    """Vectors unchanged."""

    def fit(self, x: mx.array, statistics: QueryStatistics) -> Self:
        return self

    def encode(self, x: mx.array) -> Block:
        return (x,)

    def multiply(self, folded: mx.array, prepared: Block) -> mx.array:
        return folded @ self._dequantise(prepared).swapaxes(-1, -2)

    def sum(self, weights: mx.array, prepared: Block, depends_on: mx.array | None = None) -> mx.array:
        return weights @ self._dequantise(prepared)

    def _to_stored(self, x: mx.array) -> mx.array:
        return x

    def _from_stored(self, x: mx.array) -> mx.array:
        return x

    def _dequantise(self, prepared: Block) -> mx.array:
        return prepared[0].astype(mx.float32)


def _has_quantised_matmul() -> bool:
    """Whether ``mx.quantized_matmul`` accepts slices of growing storage; on CUDA (MLX 0.32.4) it does not."""
    return mx.default_device() == mx.cpu or mx.metal.is_available()


_MAX_GROUPWISE_ROWS = 16
"""Query rows up to which a CPU multiplies affine codes first and scales the products."""


@lru_cache(maxsize=8)
def _group_mask(groups: int) -> mx.array:
    """Mask that selects each group's part of a query: float32 ``[groups, 1, groups, 1]``."""
    mask = mx.eye(groups).reshape(groups, 1, groups, 1)
    mx.eval(mask)
    return mask


@dataclass(frozen=True)
class AffineFormat(_FittedFormat):
    """MLX's group quantisation. Head dims that groups do not divide are padded with zeros.

    Keys are fitted as in ``TurboFormat``, since one outlier channel would determine the scale of its group.
    """

    spec: FormatSpec
    head_dim: int
    role: Literal["key", "value"] = "value"
    mean: mx.array | None = None
    balance: mx.array | None = None

    def fit(self, x: mx.array, statistics: QueryStatistics) -> AffineFormat:
        if self.role == "value":
            return self
        fitted = fit_keys(x, statistics)
        return replace(self, mean=fitted.mean, balance=fitted.balance)

    @property
    def _group(self) -> int:
        return self.spec.group_size(self.head_dim)

    def encode(self, x: mx.array) -> Block:
        # MLX gives scales the dtype of its input; they are to have the dtype of raw tokens.
        prepared = self._to_stored(self._centre_and_balance(x)).astype(x.dtype)
        words, scales, biases = mx.quantize(prepared, self._group, self.spec.bits)
        return words, scales, biases

    def _to_stored(self, x: mx.array) -> mx.array:
        padding = self.spec.padded_dim(self.head_dim) - self.head_dim
        return mx.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, padding)]) if padding else x

    def _from_stored(self, x: mx.array) -> mx.array:
        return x[..., : self.head_dim]

    def multiply(self, folded: mx.array, prepared: Block) -> mx.array:
        if folded.shape[2] <= _MAX_GROUPWISE_ROWS and mx.default_device() == mx.cpu:
            return self._multiply_codes(folded, prepared)
        return self._matmul(folded, prepared, transpose=True)

    def _multiply_codes(self, x: mx.array, block: Block) -> mx.array:
        """``multiply`` on bare codes, scaled per group afterwards: fastest on a CPU for few rows."""
        scales, biases = (array.swapaxes(-1, -2) for array in block[1:])
        groups = scales.shape[2]
        codes = code_floats(block[0], self.spec.bits).swapaxes(-1, -2)
        parts = x.reshape(*x.shape[:3], groups, -1)
        expanded = (parts[:, :, None] * _group_mask(groups)).reshape(*x.shape[:2], -1, x.shape[3])
        products = (expanded @ codes).reshape(*x.shape[:2], groups, x.shape[2], -1)
        scaled = (products * scales.astype(mx.float32)[:, :, :, None]).sum(axis=2)
        return scaled + parts.sum(axis=-1) @ biases.astype(mx.float32)

    def sum(self, weights: mx.array, prepared: Block, depends_on: mx.array | None = None) -> mx.array:
        return self._matmul(weights, prepared, transpose=False)

    def _dequantise(self, prepared: Block) -> mx.array:
        # float32: 16-bit arithmetic would round scale times code once more.
        words, scales, biases = prepared
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        return mx.dequantize(words, scales, biases, self._group, self.spec.bits)

    def _matmul(self, x: mx.array, block: Block, transpose: bool) -> mx.array:
        if not _has_quantised_matmul():
            stored = self._dequantise(block)
            return x @ (stored.swapaxes(-1, -2) if transpose else stored)
        words, scales, biases = block
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        return mx.quantized_matmul(x, words, scales, biases, transpose, self._group, self.spec.bits)


_MAX_TRANSPOSED_ROWS = 4
"""Query rows up to which a CPU's BLAS is up to twice as fast with the long history as left operand."""


@lru_cache(maxsize=1)
def _value_stream() -> mx.ThreadLocalStream:
    """CPU stream that dequantises values while scores are computed, at the cost of holding both dequantised.

    Thread-local: each attending thread gets its own.
    """
    return mx.new_thread_local_stream(mx.cpu)


def _columns(rows: mx.array) -> mx.array:
    """Rows ``[batch, heads, rows, dim]`` transposed and contiguous, as BLAS needs them."""
    if rows.shape[2] == 1:
        return rows.reshape(*rows.shape[:2], -1, 1)
    return mx.contiguous(rows.swapaxes(-1, -2))


@dataclass(frozen=True)
class TurboFormat(_FittedFormat):
    """TurboQuant: rotate, divide by the norm, quantise each coordinate with a Lloyd-Max codebook.

    A block is packed codes ``uint32 [batch, heads, tokens, words]`` and gains ``float16 [batch, heads,
    tokens, 1]``, the factor of a vector's centroids. Lloyd-Max centroids shrink a vector; the gain restores
    its own component, so that neither scores nor sums shrink on average.

    ``fit`` sets ``mean`` and, for keys, ``balance`` and ``metric``, the cost of an error in each balanced
    channel, float16 of the same shape. Keys are rounded so that errors fall where queries are weak, and their
    gain preserves the component in that metric, because queries that attend to a key are aligned with it in
    that metric. The gain of an unfitted key preserves its length.

    A non-finite vector decodes to NaN, as from a raw cache, and is left out of the fit, so that other vectors
    are unaffected and nothing of it remains once it is trimmed.

    Source: TurboQuant (arXiv 2504.19874), algorithm 1, without the residual stage; gain as in EDEN (arXiv
    2108.08842); rounding in ``rounding``.
    """

    bits: int
    rotation: Rotation
    role: Literal["key", "value"]
    mean: mx.array | None = None
    balance: mx.array | None = None
    metric: mx.array | None = None

    @property
    def shared(self) -> dict[str, mx.array]:
        return {"rotation": self.rotation.array}

    @property
    def fitted(self) -> dict[str, mx.array]:
        return super().fitted | ({} if self.metric is None else {"metric": self.metric})

    def fit(self, x: mx.array, statistics: QueryStatistics) -> TurboFormat:
        if self.role == "value":
            return replace(self, mean=fit_mean(x))
        fitted = fit_keys(x, statistics)
        return replace(self, mean=fitted.mean, balance=fitted.balance, metric=fitted.metric)

    def encode(self, x: mx.array) -> Block:
        x = self._centre_and_balance(x)
        y = self.rotation.rotate(x)
        norm = mx.linalg.norm(y, axis=-1, keepdims=True)
        unit = y * (self.rotation.head_dim**0.5 / mx.maximum(norm, 1e-20))
        if self.metric is not None and self.rotation.is_hadamard:
            codes, centroids = quantise_shaped(unit, self.metric.astype(mx.float32), self.bits)
        else:
            codes, centroids = quantise(unit, self.bits)
        if self.role == "value":
            gain = norm.square() / mx.maximum((y * centroids).sum(axis=-1, keepdims=True), 1e-20)
        elif self.metric is None:
            gain = norm / mx.linalg.norm(centroids, axis=-1, keepdims=True)
        else:
            weighted = x * self.metric
            component = (weighted * self.rotation.unrotate(centroids)).sum(axis=-1, keepdims=True)
            gain = (weighted * x).sum(axis=-1, keepdims=True) / mx.maximum(component, 1e-20)
        gain = mx.where(mx.isfinite(norm), mx.minimum(gain, FLOAT16_MAX), mx.nan)
        return pack(codes, self.bits), gain.astype(mx.float16)

    def prepare(self, block: Block) -> Block:
        words, gain = block
        return gain, *byte_planes(words, self.bits, self.rotation.head_dim)

    @cached_property
    def _fold_signs(self) -> mx.array:
        """Hadamard signs divided by the balance, computed once."""
        assert self.balance is not None
        signs = self.rotation.array / self.balance.astype(mx.float32)
        mx.async_eval(signs)  # type: ignore[no-untyped-call]
        return signs

    def fold(self, queries: mx.array) -> mx.array:
        if self.balance is None or not self.rotation.is_hadamard:
            return super().fold(queries)
        return mx.hadamard_transform(queries * self._fold_signs)

    def multiply(self, folded: mx.array, prepared: Block) -> mx.array:
        gain, *codes = prepared
        gain = gain.astype(mx.float32)
        if folded.shape[2] > self.rotation.head_dim:  # fewer values to scale than scores
            return folded @ (self._lookup(codes) * gain).swapaxes(-1, -2)
        if folded.shape[2] > _MAX_TRANSPOSED_ROWS or mx.default_device() != mx.cpu:
            return (folded @ self._lookup(codes).swapaxes(-1, -2)) * gain.swapaxes(-1, -2)
        return ((self._lookup(codes) @ _columns(folded)) * gain).swapaxes(-1, -2)

    def sum(self, weights: mx.array, prepared: Block, depends_on: mx.array | None = None) -> mx.array:
        gain, *codes = prepared
        gain = gain.astype(mx.float32)
        if depends_on is None or mx.default_device() != mx.cpu:
            stored = self._lookup(codes)
        else:
            with mx.stream(_value_stream()):
                stored = self._lookup(mx.depends(codes, [depends_on]))
        if weights.shape[2] > self.rotation.head_dim:
            return weights @ (stored * gain)
        return (weights * gain.swapaxes(-1, -2)) @ stored

    def _to_stored(self, x: mx.array) -> mx.array:
        return self.rotation.rotate(x)

    def _from_stored(self, x: mx.array) -> mx.array:
        return self.rotation.unrotate(x)

    def _dequantise(self, prepared: Block) -> mx.array:
        gain, *codes = prepared
        return self._lookup(codes) * gain.astype(mx.float32)

    def _lookup(self, codes: Sequence[mx.array]) -> mx.array:
        return lookup(codes, self.bits, self.rotation.head_dim)


def make_format(
    spec: FormatSpec,
    head_dim: int,
    role: Literal["key", "value"],
    shared: dict[str, mx.array] | None = None,
    fitted: dict[str, mx.array] | None = None,
) -> Format:
    """The format of ``spec`` for vectors of ``head_dim``.

    Args:
        shared: ``Format.shared`` of a saved format of the same spec; drawn anew if ``None``.
        fitted: ``Format.fitted`` of that format.

    Raises:
        UnsupportedHeadDim: if a turbo format has no rotation of this size.
    """
    if spec.kind == "raw":
        return RawFormat()
    if spec.kind == "affine":
        return AffineFormat(spec, head_dim, role, **(fitted or {}))
    drawn = draw_rotation(head_dim, KEY_SEED if role == "key" else VALUE_SEED)
    rotation = restore_rotation(shared["rotation"], drawn) if shared else drawn
    return TurboFormat(spec.bits, rotation, role, **(fitted or {}))

"""How one side of a cache, keys or values, is written down: raw, affine or turbo.

Every array of an encoded block is ``[batch, heads, tokens, ...]``, so that storage can grow, trim and slice
it along the token axis without knowing what it means. ``scores`` and ``combine`` are attention's two products
against an encoded block. What a block stores is multiplied as it is, by a kernel or by plain operations; all
that a format does to vectors before it writes them down is undone on the queries (``fold``) and on the sums
(``unfold``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol, Self

import mlx.core as mx

from tqchat.kv.codebook import quantise
from tqchat.kv.fitting import LARGEST, Seen, fit_keys, fit_mean
from tqchat.kv.packing import code_floats, lookup, pack
from tqchat.kv.rotation import KEY_SEED, VALUE_SEED, Rotation, draw_rotation, restored_rotation
from tqchat.kv.rounding import quantise_shaped
from tqchat.kv.scheme import FormatSpec

Block = tuple[mx.array, ...]


class Format(Protocol):
    """One way of writing vectors down."""

    @property
    def shared(self) -> dict[str, mx.array]:
        """Arrays that decoding needs beside the blocks and that every layer shares, by name."""
        ...

    @property
    def fitted(self) -> dict[str, mx.array]:
        """Arrays that decoding needs and that ``fit`` took from this layer's own vectors, by name."""
        ...

    def fit(self, x: mx.array, seen: Seen) -> Format:
        """This format, fitted to vectors like ``x``, ``[batch, heads, tokens, head_dim]``, before the first
        of them is encoded.
        """
        ...

    def encode(self, x: mx.array) -> Block:
        """Write down vectors ``[batch, heads, tokens, head_dim]``."""
        ...

    def decode(self, block: Block) -> mx.array:
        """The vectors that a block stands for, float32 ``[batch, heads, tokens, head_dim]``."""
        ...

    def fold(self, queries: mx.array) -> tuple[mx.array, mx.array | None]:
        """Queries as stored vectors are to be multiplied with, and what every score gets besides.

        ``queries @ decode(block)^T`` is ``folded @ stored^T + constant``, ``stored`` being the centroids of a
        block times their gain (turbo), or what MLX dequantises it to (affine).

        Args:
            queries: float32 ``[batch, heads, rows, head_dim]``.

        Returns:
            ``folded``, float32 ``[batch, heads, rows, stored_dim]``; and ``constant``, float32
            ``[batch, heads, rows, 1]``, or ``None`` where there is nothing to add.
        """
        ...

    def unfold(self, total: mx.array, weight_sum: mx.array) -> mx.array:
        """Sums of vectors from sums of stored ones.

        Args:
            total: Weighted sums of stored vectors, float32 ``[batch, heads, rows, stored_dim]``.
            weight_sum: The weights of each sum added up, float32 ``[batch, heads, rows, 1]``.

        Returns:
            float32 ``[batch, heads, rows, head_dim]``.
        """
        ...

    def scores(self, queries: mx.array, block: Block) -> mx.array:
        """Dot products of queries with a block.

        Args:
            queries: float32 ``[batch, heads, rows, head_dim]``.

        Returns:
            float32 ``[batch, heads, rows, tokens]``.
        """
        ...

    def combine(self, weights: mx.array, block: Block) -> mx.array:
        """Weighted sums of a block's vectors.

        Args:
            weights: float32 ``[batch, heads, rows, tokens]``.

        Returns:
            float32 ``[batch, heads, rows, head_dim]``.
        """
        ...


class _Folding:
    """Attention's products from those with stored vectors (``_multiply``, ``_sum``) between ``fold`` and
    ``unfold``.

    ``mean`` is subtracted from vectors and given back exactly, in the scores and in the sums: it is where
    large key biases go. ``balance`` (keys) multiplies every channel, and divides the queries': sqrt(rms of
    queries / rms of keys) makes the error of their product the least that a diagonal map can, and the codec
    indifferent to how a model scales its channels. Both are float16 ``[batch, heads, 1, head_dim]``, taken
    from the layer's own vectors before the first is encoded, and stay fixed from then on.
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

    def fold(self, queries: mx.array) -> tuple[mx.array, mx.array | None]:
        balanced = queries if self.balance is None else queries / self.balance
        # Softmax would ignore the mean's share if every token were packed; beside raw ones it must be there.
        constant = None if self.mean is None else (queries * self.mean).sum(axis=-1, keepdims=True)
        return self._into_stored(balanced), constant

    def unfold(self, total: mx.array, weight_sum: mx.array) -> mx.array:
        total = self._out_of_stored(total)
        if self.balance is not None:
            total = total / self.balance
        return total if self.mean is None else total + weight_sum * self.mean

    def decode(self, block: Block) -> mx.array:
        stored = self._stored(block)
        return self.unfold(stored, mx.ones((*stored.shape[:-1], 1)))

    def scores(self, queries: mx.array, block: Block) -> mx.array:
        folded, constant = self.fold(queries)
        products = self._multiply(folded, block)
        return products if constant is None else products + constant

    def combine(self, weights: mx.array, block: Block) -> mx.array:
        return self.unfold(self._sum(weights, block), weights.sum(axis=-1, keepdims=True))

    def _removed(self, x: mx.array) -> mx.array:
        """Vectors as they are encoded: float32, without mean, balanced."""
        x = x.astype(mx.float32)
        if self.mean is not None:
            x = x - self.mean
        return x if self.balance is None else x * self.balance

    def _into_stored(self, x: mx.array) -> mx.array:
        raise NotImplementedError

    def _out_of_stored(self, x: mx.array) -> mx.array:
        raise NotImplementedError

    def _stored(self, block: Block) -> mx.array:
        raise NotImplementedError

    def _multiply(self, folded: mx.array, block: Block) -> mx.array:
        raise NotImplementedError

    def _sum(self, weights: mx.array, block: Block) -> mx.array:
        raise NotImplementedError


class RawFormat(_Folding):
    """Vectors as they are."""

    def fit(self, x: mx.array, seen: Seen) -> Self:
        return self

    def encode(self, x: mx.array) -> Block:
        return (x,)

    def _into_stored(self, x: mx.array) -> mx.array:
        return x

    def _out_of_stored(self, x: mx.array) -> mx.array:
        return x

    def _stored(self, block: Block) -> mx.array:
        return block[0].astype(mx.float32)

    def _multiply(self, folded: mx.array, block: Block) -> mx.array:
        return folded @ self._stored(block).swapaxes(-1, -2)

    def _sum(self, weights: mx.array, block: Block) -> mx.array:
        return weights @ self._stored(block)


def _has_quantised_matmul() -> bool:
    """Whether ``mx.quantized_matmul`` takes slices of growing storage: on CUDA (MLX 0.32.4) it refuses
    them.
    """
    return mx.default_device() == mx.cpu or mx.metal.is_available()


_FEW_ROWS = 16


@dataclass(frozen=True)
class AffineFormat(_Folding):
    """MLX's group quantisation. A head dim that its groups do not divide is padded with zeros.

    Keys are fitted as in ``TurboFormat``: one loud channel would take the scale of its group.
    """

    spec: FormatSpec
    head_dim: int
    role: Literal["key", "value"] = "value"
    mean: mx.array | None = None
    balance: mx.array | None = None

    def fit(self, x: mx.array, seen: Seen) -> AffineFormat:
        if self.role == "value":
            return self
        fit = fit_keys(x, seen)
        return replace(self, mean=fit.mean, balance=fit.balance)

    @property
    def _group(self) -> int:
        return self.spec.group_size(self.head_dim)

    def encode(self, x: mx.array) -> Block:
        # In the dtype of raw tokens: MLX gives scales the dtype of what it quantises.
        prepared = self._into_stored(self._removed(x)).astype(x.dtype)
        words, scales, biases = mx.quantize(prepared, self._group, self.spec.bits)
        return words, scales, biases

    def _into_stored(self, x: mx.array) -> mx.array:
        missing = self.spec.padded_dim(self.head_dim) - self.head_dim
        return mx.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing else x

    def _out_of_stored(self, x: mx.array) -> mx.array:
        return x[..., : self.head_dim]

    def _multiply(self, folded: mx.array, block: Block) -> mx.array:
        if folded.shape[2] <= _FEW_ROWS and mx.default_device() == mx.cpu:
            return self._multiply_codes(folded, block)
        return self._matmul(folded, block, transpose=True)

    def _multiply_codes(self, x: mx.array, block: Block) -> mx.array:
        """The same from the bare codes, scaled afterwards group by group: what a CPU does fastest for few
        rows.
        """
        scales, biases = (array.swapaxes(-1, -2) for array in block[1:])
        groups = scales.shape[2]
        codes = code_floats(block[0], self.spec.bits).swapaxes(-1, -2)
        own = mx.eye(groups).reshape(groups, 1, groups, 1)  # each group's queries, zero elsewhere
        parts = x.reshape(*x.shape[:3], groups, -1)
        spread = (parts[:, :, None] * own).reshape(*x.shape[:2], -1, x.shape[3])
        products = (spread @ codes).reshape(*x.shape[:2], groups, x.shape[2], -1)
        scaled = (products * scales.astype(mx.float32)[:, :, :, None]).sum(axis=2)
        return scaled + parts.sum(axis=-1) @ biases.astype(mx.float32)

    def _sum(self, weights: mx.array, block: Block) -> mx.array:
        return self._matmul(weights, block, transpose=False)

    def _stored(self, block: Block) -> mx.array:
        # In float32 throughout: 16-bit arithmetic would round what the scales and codes stand for once more.
        words, scales, biases = block
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        return mx.dequantize(words, scales, biases, self._group, self.spec.bits)

    def _matmul(self, x: mx.array, block: Block, transpose: bool) -> mx.array:
        if not _has_quantised_matmul():
            stored = self._stored(block)
            return x @ (stored.swapaxes(-1, -2) if transpose else stored)
        words, scales, biases = block
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        return mx.quantized_matmul(x, words, scales, biases, transpose, self._group, self.spec.bits)


@dataclass(frozen=True)
class TurboFormat(_Folding):
    """TurboQuant: rotate, divide by the norm, quantise each coordinate against a Lloyd-Max codebook.

    A block is packed codes ``uint32 [batch, heads, tokens, words]`` and gains ``float16 [batch, heads,
    tokens, 1]``, what a vector's centroids are multiplied by. Gains are chosen so that the shrinkage of
    Lloyd-Max centroids does not bias attention: a vector keeps its own component, so that on average neither
    a score nor a sum shrinks.

    Before the first vector is encoded the format is fitted: ``mean`` and, for keys, ``balance`` as told
    above, and ``metric``, how much an error in each (balanced) channel of a key costs: float16, of their
    shape. Keys are rounded so that errors fall where queries are weak, and keep their component in that
    metric: queries that attend to a key lie along the key as the metric sees it. A key that was not fitted
    keeps its length.

    A vector that is not finite decodes to NaN, as a raw cache would give it back, and has no part in the fit:
    its neighbours are none the worse, and once it is trimmed or leaves the window nothing is left of it.

    Source: TurboQuant (arXiv 2504.19874), algorithm 1, without the residual stage; the gain as in EDEN (arXiv
    2108.08842); the rounding in ``rounding``.
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

    def fit(self, x: mx.array, seen: Seen) -> TurboFormat:
        if self.role == "value":
            return replace(self, mean=fit_mean(x))
        fit = fit_keys(x, seen)
        return replace(self, mean=fit.mean, balance=fit.balance, metric=fit.metric)

    def encode(self, x: mx.array) -> Block:
        x = self._removed(x)
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
            own = (weighted * self.rotation.unrotate(centroids)).sum(axis=-1, keepdims=True)
            gain = (weighted * x).sum(axis=-1, keepdims=True) / mx.maximum(own, 1e-20)
        gain = mx.where(mx.isfinite(norm), mx.minimum(gain, LARGEST), mx.nan)
        return pack(codes, self.bits), gain.astype(mx.float16)

    def _into_stored(self, x: mx.array) -> mx.array:
        return self.rotation.rotate(x)

    def _out_of_stored(self, x: mx.array) -> mx.array:
        return self.rotation.unrotate(x)

    def _stored(self, block: Block) -> mx.array:
        words, gain = block
        return self._lookup(words) * gain.astype(mx.float32)

    def _multiply(self, folded: mx.array, block: Block) -> mx.array:
        words, gain = block
        gain = gain.astype(mx.float32)
        if folded.shape[2] > self.rotation.head_dim:  # fewer numbers to scale than there are products
            return folded @ (self._lookup(words) * gain).swapaxes(-1, -2)
        return (folded @ self._lookup(words).swapaxes(-1, -2)) * gain.swapaxes(-1, -2)

    def _sum(self, weights: mx.array, block: Block) -> mx.array:
        words, gain = block
        gain = gain.astype(mx.float32)
        if weights.shape[2] > self.rotation.head_dim:
            return weights @ (self._lookup(words) * gain)
        return (weights * gain.swapaxes(-1, -2)) @ self._lookup(words)

    def _lookup(self, words: mx.array) -> mx.array:
        return lookup(words, self.bits, self.rotation.head_dim)


def make_format(
    spec: FormatSpec,
    head_dim: int,
    role: Literal["key", "value"],
    shared: dict[str, mx.array] | None = None,
    fitted: dict[str, mx.array] | None = None,
) -> Format:
    """The format that ``spec`` names, for vectors of ``head_dim``.

    Args:
        shared: Arrays of an earlier format of the same spec, restored from disk; without them they are drawn.
        fitted: What the earlier format was fitted to.
    """
    if spec.kind == "raw":
        return RawFormat()
    if spec.kind == "affine":
        return AffineFormat(spec, head_dim, role, **(fitted or {}))
    drawn = draw_rotation(head_dim, KEY_SEED if role == "key" else VALUE_SEED)
    rotation = restored_rotation(shared["rotation"], drawn) if shared else drawn
    return TurboFormat(spec.bits, rotation, role, **(fitted or {}))

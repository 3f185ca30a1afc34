"""How one side of a cache, keys or values, is written down: raw, affine or turbo.

Every array of an encoded block is ``[batch, heads, tokens, ...]``, so that storage can grow, trim and slice
it along the token axis without knowing what it means. ``multiply`` and ``sum`` are attention's two products
with what a block stores, as it is. All that a format does to vectors before it writes them down is undone on
the queries (``fold``) and on the sums (``unfold``); but for the mean, which whoever adds up products with
packed and raw vectors gives its share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Literal, Protocol, Self

import mlx.core as mx

from tqchat.kv.codec.codebook import quantise
from tqchat.kv.codec.fitting import LARGEST, Seen, fit_keys, fit_mean
from tqchat.kv.codec.packing import byte_planes, code_floats, lookup, pack
from tqchat.kv.codec.rotation import KEY_SEED, VALUE_SEED, Rotation, draw_rotation, restored_rotation
from tqchat.kv.codec.rounding import quantise_shaped
from tqchat.kv.scheme import FormatSpec

Block = tuple[mx.array, ...]


class Format(Protocol):
    """One way of writing vectors down."""

    @property
    def mean(self) -> mx.array | None:
        """What is subtracted from vectors before they are written down, and is in no product with stored
        ones: float16 ``[batch, heads, 1, head_dim]``.
        """
        ...

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

    def open(self, block: Block) -> Block:
        """What products with a block read, to be made once for many of them: its arrays seen otherwise."""
        ...

    def fold(self, queries: mx.array) -> mx.array:
        """Queries as stored vectors are to be multiplied with.

        ``queries @ decode(block)^T`` is ``folded @ stored^T + queries @ mean^T``, ``stored`` being the
        centroids of a block times their gain (turbo), or what MLX dequantises it to (affine).

        Args:
            queries: float32 ``[batch, heads, rows, head_dim]``.

        Returns:
            float32 ``[batch, heads, rows, stored_dim]``.
        """
        ...

    def unfold(self, total: mx.array) -> mx.array:
        """Sums of vectors without their mean, from sums of stored ones.

        Args:
            total: Weighted sums of stored vectors, float32 ``[batch, heads, rows, stored_dim]``.

        Returns:
            float32 ``[batch, heads, rows, head_dim]``.
        """
        ...

    def multiply(self, folded: mx.array, opened: Block) -> mx.array:
        """Dot products of folded queries with stored vectors.

        Args:
            folded: float32 ``[batch, heads, rows, stored_dim]``.
            opened: What ``open`` made of a block.

        Returns:
            float32 ``[batch, heads, rows, tokens]``.
        """
        ...

    def sum(self, weights: mx.array, opened: Block, after: mx.array | None = None) -> mx.array:
        """Weighted sums of stored vectors.

        Args:
            weights: float32 ``[batch, heads, rows, tokens]``.
            opened: What ``open`` made of a block.
            after: What is there some time before the weights are: from then on what is stored may be decoded,
                beside the work on the weights.

        Returns:
            float32 ``[batch, heads, rows, stored_dim]``.
        """
        ...


class _Fitted:
    """What formats that are fitted have in common.

    ``mean`` is subtracted from vectors and given back, in the scores and in the sums: it is where large
    key biases go. ``balance`` (keys) multiplies every channel, and divides the queries': sqrt(rms of
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

    def fold(self, queries: mx.array) -> mx.array:
        return self._into_stored(queries if self.balance is None else queries / self.balance)

    def unfold(self, total: mx.array) -> mx.array:
        total = self._out_of_stored(total)
        return total if self.balance is None else total / self.balance

    def decode(self, block: Block) -> mx.array:
        vectors = self.unfold(self._stored(self.open(block)))
        return vectors if self.mean is None else vectors + self.mean

    def open(self, block: Block) -> Block:
        return block

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

    def _stored(self, opened: Block) -> mx.array:
        raise NotImplementedError


class RawFormat(_Fitted):
    """Vectors as they are."""

    def fit(self, x: mx.array, seen: Seen) -> Self:
        return self

    def encode(self, x: mx.array) -> Block:
        return (x,)

    def multiply(self, folded: mx.array, opened: Block) -> mx.array:
        return folded @ self._stored(opened).swapaxes(-1, -2)

    def sum(self, weights: mx.array, opened: Block, after: mx.array | None = None) -> mx.array:
        return weights @ self._stored(opened)

    def _into_stored(self, x: mx.array) -> mx.array:
        return x

    def _out_of_stored(self, x: mx.array) -> mx.array:
        return x

    def _stored(self, opened: Block) -> mx.array:
        return opened[0].astype(mx.float32)


def _has_quantised_matmul() -> bool:
    """Whether ``mx.quantized_matmul`` takes slices of growing storage: on CUDA (MLX 0.32.4) it refuses
    them.
    """
    return mx.default_device() == mx.cpu or mx.metal.is_available()


_FEW_ROWS = 16


@lru_cache(maxsize=8)
def _own_group(groups: int) -> mx.array:
    """Keeps each group's queries, zero elsewhere: float32 ``[groups, 1, groups, 1]``."""
    own = mx.eye(groups).reshape(groups, 1, groups, 1)
    mx.eval(own)
    return own


@dataclass(frozen=True)
class AffineFormat(_Fitted):
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

    def multiply(self, folded: mx.array, opened: Block) -> mx.array:
        if folded.shape[2] <= _FEW_ROWS and mx.default_device() == mx.cpu:
            return self._multiply_codes(folded, opened)
        return self._matmul(folded, opened, transpose=True)

    def _multiply_codes(self, x: mx.array, block: Block) -> mx.array:
        """The same from the bare codes, scaled afterwards group by group: what a CPU does fastest for few
        rows.
        """
        scales, biases = (array.swapaxes(-1, -2) for array in block[1:])
        groups = scales.shape[2]
        codes = code_floats(block[0], self.spec.bits).swapaxes(-1, -2)
        parts = x.reshape(*x.shape[:3], groups, -1)
        spread = (parts[:, :, None] * _own_group(groups)).reshape(*x.shape[:2], -1, x.shape[3])
        products = (spread @ codes).reshape(*x.shape[:2], groups, x.shape[2], -1)
        scaled = (products * scales.astype(mx.float32)[:, :, :, None]).sum(axis=2)
        return scaled + parts.sum(axis=-1) @ biases.astype(mx.float32)

    def sum(self, weights: mx.array, opened: Block, after: mx.array | None = None) -> mx.array:
        return self._matmul(weights, opened, transpose=False)

    def _stored(self, opened: Block) -> mx.array:
        # In float32 throughout: 16-bit arithmetic would round what the scales and codes stand for once more.
        words, scales, biases = opened
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        return mx.dequantize(words, scales, biases, self._group, self.spec.bits)

    def _matmul(self, x: mx.array, block: Block, transpose: bool) -> mx.array:
        if not _has_quantised_matmul():
            stored = self._stored(block)
            return x @ (stored.swapaxes(-1, -2) if transpose else stored)
        words, scales, biases = block
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        return mx.quantized_matmul(x, words, scales, biases, transpose, self._group, self.spec.bits)


_VERY_FEW_ROWS = 4
"""So few that a CPU's BLAS is up to twice as fast if a long history comes first in the product."""


@lru_cache(maxsize=1)
def _beside() -> mx.ThreadLocalStream:
    """Where a CPU decodes values while it computes scores, at the price of both being decoded at a time: a
    stream is one thread to it, another one for each thread that attends.
    """
    return mx.new_thread_local_stream(mx.cpu)


def _columns(rows: mx.array) -> mx.array:
    """Rows as columns, laid out as BLAS likes them."""
    if rows.shape[2] == 1:
        return rows.reshape(*rows.shape[:2], -1, 1)
    return mx.contiguous(rows.swapaxes(-1, -2))


@dataclass(frozen=True)
class TurboFormat(_Fitted):
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

    def open(self, block: Block) -> Block:
        words, gain = block
        return gain, *byte_planes(words, self.bits, self.rotation.head_dim)

    @cached_property
    def _fold_signs(self) -> mx.array:
        """The Hadamard transform's signs through the balance, made once: every step needs them."""
        assert self.balance is not None
        signs = self.rotation.array / self.balance.astype(mx.float32)
        mx.async_eval(signs)  # type: ignore[no-untyped-call]
        return signs

    def fold(self, queries: mx.array) -> mx.array:
        if self.balance is None or not self.rotation.is_hadamard:
            return super().fold(queries)
        return mx.hadamard_transform(queries * self._fold_signs)

    def multiply(self, folded: mx.array, opened: Block) -> mx.array:
        gain, *codes = opened
        gain = gain.astype(mx.float32)
        if folded.shape[2] > self.rotation.head_dim:  # fewer numbers to scale than there are products
            return folded @ (self._lookup(codes) * gain).swapaxes(-1, -2)
        if folded.shape[2] > _VERY_FEW_ROWS or mx.default_device() != mx.cpu:
            return (folded @ self._lookup(codes).swapaxes(-1, -2)) * gain.swapaxes(-1, -2)
        return ((self._lookup(codes) @ _columns(folded)) * gain).swapaxes(-1, -2)

    def sum(self, weights: mx.array, opened: Block, after: mx.array | None = None) -> mx.array:
        gain, *codes = opened
        gain = gain.astype(mx.float32)
        if after is None or mx.default_device() != mx.cpu:
            stored = self._lookup(codes)
        else:
            with mx.stream(_beside()):
                stored = self._lookup(mx.depends(codes, [after]))
        if weights.shape[2] > self.rotation.head_dim:
            return weights @ (stored * gain)
        return (weights * gain.swapaxes(-1, -2)) @ stored

    def _into_stored(self, x: mx.array) -> mx.array:
        return self.rotation.rotate(x)

    def _out_of_stored(self, x: mx.array) -> mx.array:
        return self.rotation.unrotate(x)

    def _stored(self, opened: Block) -> mx.array:
        gain, *codes = opened
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

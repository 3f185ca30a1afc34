"""How one side of a cache, keys or values, is written down: raw, affine or turbo.

Every array of an encoded block is ``[batch, heads, tokens, ...]``, so that storage can grow, trim and slice
it along the token axis without knowing what it means. ``scores`` and ``combine`` are attention's two products
against an encoded block. What a block stores is multiplied as it is, by a kernel or by plain operations; all
that a format does to vectors before it writes them down is undone on the queries (``fold``) and on the sums
(``unfold``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, Protocol, Self

import mlx.core as mx

from tqchat.kv.codebook import quantise
from tqchat.kv.packing import code_floats, lookup, pack
from tqchat.kv.rotation import KEY_SEED, VALUE_SEED, Rotation, draw_rotation, restored_rotation
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

    def fit(self, x: mx.array, query_energy: mx.array | None) -> Format:
        """This format, fitted to vectors like ``x`` before the first of them is encoded.

        Args:
            x: ``[batch, heads, tokens, head_dim]``.
            query_energy: Mean square of the queries' coordinates, float32 ``[batch, heads, 1, head_dim]``,
                where ``x`` are keys and queries were seen.
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
    """Attention's products from those with stored vectors (``_multiply``, ``_sum``) between a format's
    ``fold`` and ``unfold``.
    """

    def fold(self, queries: mx.array) -> tuple[mx.array, mx.array | None]:
        return queries, None

    def unfold(self, total: mx.array, weight_sum: mx.array) -> mx.array:
        return total

    def scores(self, queries: mx.array, block: Block) -> mx.array:
        folded, constant = self.fold(queries)
        products = self._multiply(folded, block)
        return products if constant is None else products + constant

    def combine(self, weights: mx.array, block: Block) -> mx.array:
        return self.unfold(self._sum(weights, block), weights.sum(axis=-1, keepdims=True))

    def _multiply(self, folded: mx.array, block: Block) -> mx.array:
        raise NotImplementedError

    def _sum(self, weights: mx.array, block: Block) -> mx.array:
        raise NotImplementedError


class _DataFree(_Folding):
    """A format that is the same whatever the vectors."""

    @property
    def shared(self) -> dict[str, mx.array]:
        return {}

    @property
    def fitted(self) -> dict[str, mx.array]:
        return {}

    def fit(self, x: mx.array, query_energy: mx.array | None) -> Self:
        return self


class RawFormat(_DataFree):
    """Vectors as they are."""

    def encode(self, x: mx.array) -> Block:
        return (x,)

    def decode(self, block: Block) -> mx.array:
        return block[0].astype(mx.float32)

    def _multiply(self, folded: mx.array, block: Block) -> mx.array:
        return folded @ block[0].astype(mx.float32).swapaxes(-1, -2)

    def _sum(self, weights: mx.array, block: Block) -> mx.array:
        return weights @ block[0].astype(mx.float32)


def _has_quantised_matmul() -> bool:
    """Whether ``mx.quantized_matmul`` takes slices of growing storage: on CUDA (MLX 0.32.4) it refuses
    them.
    """
    return mx.default_device() == mx.cpu or mx.metal.is_available()


_FEW_ROWS = 16


@dataclass(frozen=True)
class AffineFormat(_DataFree):
    """MLX's group quantisation. A head dim that its groups do not divide is padded with zeros."""

    spec: FormatSpec
    head_dim: int

    @property
    def _group(self) -> int:
        return self.spec.group_size(self.head_dim)

    def _pad(self, x: mx.array) -> mx.array:
        missing = self.spec.padded_dim(self.head_dim) - self.head_dim
        return mx.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing else x

    def encode(self, x: mx.array) -> Block:
        words, scales, biases = mx.quantize(self._pad(x), self._group, self.spec.bits)
        return words, scales, biases

    def decode(self, block: Block) -> mx.array:
        return self._stored(block)[..., : self.head_dim]

    def fold(self, queries: mx.array) -> tuple[mx.array, mx.array | None]:
        return self._pad(queries), None

    def unfold(self, total: mx.array, weight_sum: mx.array) -> mx.array:
        return total[..., : self.head_dim]

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
    Lloyd-Max centroids does not bias attention: for keys the decoded vector has the vector's own length (its
    effect on a score stays what it was), for values its own component along the vector (its effect on a sum
    does).

    Before the first vector is encoded the format is fitted, where there is something to fit to:

    - ``mean`` is subtracted and given back exactly, in the scores and in the sums. It is where large key
      biases go.
    - ``balance`` (keys) multiplies every channel, and divides the queries': sqrt(rms of queries / rms of
    keys)
      makes the error of their product the least that a diagonal map can, and the codec indifferent to how a
      model scales its channels.

    Both are float16 ``[batch, heads, 1, head_dim]`` and stay fixed from then on.

    A vector that is not finite decodes to NaN, as a raw cache would give it back, and has no part in the fit:
    its neighbours are none the worse, and once it is trimmed or leaves the window nothing is left of it.

    Source: TurboQuant (arXiv 2504.19874), algorithm 1, without the residual stage; the gain for values as in
    EDEN (arXiv 2108.08842).
    """

    bits: int
    rotation: Rotation
    role: Literal["key", "value"]
    mean: mx.array | None = None
    balance: mx.array | None = None

    @property
    def shared(self) -> dict[str, mx.array]:
        return {"rotation": self.rotation.array}

    @property
    def fitted(self) -> dict[str, mx.array]:
        named = {"mean": self.mean, "balance": self.balance}
        return {name: array for name, array in named.items() if array is not None}

    def fit(self, x: mx.array, query_energy: mx.array | None) -> TurboFormat:
        x = x.astype(mx.float32)
        sound = mx.isfinite(x.square().sum(axis=-1, keepdims=True))
        count = mx.maximum(sound.sum(axis=2, keepdims=True), 1)
        mean = mx.where(sound, x, 0).sum(axis=2, keepdims=True) / count
        mean = mx.clip(mean, -_LARGEST, _LARGEST).astype(mx.float16)
        balance = None
        if self.role == "key":
            energy = mx.where(sound, x - mean, 0).square().sum(axis=2, keepdims=True) / count
            # Without a query seen, queries are taken to be as the keys: every channel keeps its scale.
            balance = _balance(energy if query_energy is None else query_energy, energy)
        return replace(self, mean=mean, balance=balance)

    def encode(self, x: mx.array) -> Block:
        x = x.astype(mx.float32)
        if self.mean is not None:
            x = x - self.mean
        if self.balance is not None:
            x = x * self.balance
        y = self.rotation.rotate(x)
        norm = mx.linalg.norm(y, axis=-1, keepdims=True)
        unit = y * (self.rotation.head_dim**0.5 / mx.maximum(norm, 1e-20))
        words = pack(quantise(unit, self.bits), self.bits)
        centroids = self._lookup(words)
        if self.role == "key":
            gain = norm / mx.linalg.norm(centroids, axis=-1, keepdims=True)
        else:
            gain = norm.square() / mx.maximum((y * centroids).sum(axis=-1, keepdims=True), 1e-20)
        gain = mx.where(mx.isfinite(norm), mx.minimum(gain, _LARGEST), mx.nan)
        return words, gain.astype(mx.float16)

    def decode(self, block: Block) -> mx.array:
        words, gain = block
        stored = self._lookup(words) * gain.astype(mx.float32)
        return self.unfold(stored, mx.ones((*stored.shape[:-1], 1)))

    def fold(self, queries: mx.array) -> tuple[mx.array, mx.array | None]:
        balanced = queries if self.balance is None else queries / self.balance
        # Softmax would ignore the mean's share if every token were packed; beside raw ones it must be there.
        constant = None if self.mean is None else (queries * self.mean).sum(axis=-1, keepdims=True)
        return self.rotation.rotate(balanced), constant

    def unfold(self, total: mx.array, weight_sum: mx.array) -> mx.array:
        total = self.rotation.unrotate(total)
        if self.balance is not None:
            total = total / self.balance
        return total if self.mean is None else total + weight_sum * self.mean

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


_LARGEST = 65504.0
"""The largest float16. A vector longer than such a gain can scale is shortened rather than made infinite."""

_LARGEST_BALANCE = 64.0
"""How far one channel may be scaled against the typical one; real outliers measured up to some 30."""


def _balance(query_energy: mx.array, key_energy: mx.array) -> mx.array:
    """The diagonal map that makes the error of query . key least, ``sqrt(rms_query / rms_key)``, of geometric
    mean 1.

    The rotation spreads the error evenly, so its effect is sum(q^2 / w^2) * sum(k^2 w^2): least, by
    Cauchy-Schwarz, at this w. A channel that one side never uses says nothing, and is left near the typical
    scale.
    """
    q, k = (mx.log(e + 1e-6 * e.mean(axis=-1, keepdims=True) + 1e-30) for e in (query_energy, key_energy))
    log = (q - k) / 4
    log = log - log.mean(axis=-1, keepdims=True)
    limit = math.log(_LARGEST_BALANCE)
    return mx.exp(mx.clip(log, -limit, limit)).astype(mx.float16)


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
        return AffineFormat(spec, head_dim)
    drawn = draw_rotation(head_dim, KEY_SEED if role == "key" else VALUE_SEED)
    rotation = restored_rotation(shared["rotation"], drawn) if shared else drawn
    return TurboFormat(spec.bits, rotation, role, **(fitted or {}))

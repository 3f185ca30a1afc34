"""How one side of a cache, keys or values, is written down: raw, affine or turbo.

Every array of an encoded block is ``[batch, heads, tokens, ...]``, so that storage can grow, trim and slice
it along the token axis without knowing what it means. ``scores`` and ``combine`` are attention's two products
against an encoded block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx

from tqchat.kv.codebook import quantise
from tqchat.kv.packing import lookup, pack
from tqchat.kv.rotation import Rotation, draw_rotation, restored_rotation
from tqchat.kv.scheme import FormatSpec

Block = tuple[mx.array, ...]


class Format(Protocol):
    """One way of writing vectors down."""

    @property
    def constants(self) -> dict[str, mx.array]:
        """Arrays that decoding needs beside the blocks, by name."""
        ...

    def encode(self, x: mx.array) -> Block:
        """Write down vectors ``[batch, heads, tokens, head_dim]``."""
        ...

    def decode(self, block: Block) -> mx.array:
        """The vectors that a block stands for, float32 ``[batch, heads, tokens, head_dim]``."""
        ...

    def scores(self, queries: mx.array, block: Block) -> mx.array:
        """Dot products of ``queries`` float32 ``[batch, heads, rows, head_dim]`` with a block:

        ``[batch, heads, rows, tokens]``.
        """
        ...

    def combine(self, weights: mx.array, block: Block) -> mx.array:
        """Sums of a block's vectors under ``weights`` float32 ``[batch, heads, rows, tokens]``:

        ``[batch, heads, rows, head_dim]``.
        """
        ...


class RawFormat:
    """Vectors as they are."""

    @property
    def constants(self) -> dict[str, mx.array]:
        return {}

    def encode(self, x: mx.array) -> Block:
        return (x,)

    def decode(self, block: Block) -> mx.array:
        return block[0].astype(mx.float32)

    def scores(self, queries: mx.array, block: Block) -> mx.array:
        return queries @ block[0].astype(mx.float32).swapaxes(-1, -2)

    def combine(self, weights: mx.array, block: Block) -> mx.array:
        return weights @ block[0].astype(mx.float32)


@dataclass(frozen=True)
class AffineFormat:
    """MLX's group quantisation. A head dim that its groups do not divide is padded with zeros."""

    spec: FormatSpec
    head_dim: int

    @property
    def constants(self) -> dict[str, mx.array]:
        return {}

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
        # In float32 throughout: 16-bit arithmetic would round what the scales and codes stand for once more.
        words, scales, biases = block
        x = mx.dequantize(
            words, scales.astype(mx.float32), biases.astype(mx.float32), self._group, self.spec.bits
        )
        return x[..., : self.head_dim]

    def scores(self, queries: mx.array, block: Block) -> mx.array:
        return self._matmul(self._pad(queries), block, transpose=True)

    def combine(self, weights: mx.array, block: Block) -> mx.array:
        return self._matmul(weights, block, transpose=False)[..., : self.head_dim]

    def _matmul(self, x: mx.array, block: Block, transpose: bool) -> mx.array:
        words, scales, biases = block
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        return mx.quantized_matmul(x, words, scales, biases, transpose, self._group, self.spec.bits)


@dataclass(frozen=True)
class TurboFormat:
    """TurboQuant: rotate, divide by the norm, quantise each coordinate against a Lloyd-Max codebook.

    A block is packed codes ``uint32 [batch, heads, tokens, words]`` and gains ``float16 [batch, heads,
    tokens, 1]``. A gain is what a vector's centroids must be multiplied by to have the vector's own norm
    ("matched norm"): it takes the shrinkage of Lloyd-Max centroids out of the dot products, which measured
    better than storing the norm itself.

    Source: TurboQuant (arXiv 2504.19874), algorithm 1, without the residual stage.
    """

    bits: int
    rotation: Rotation

    @property
    def constants(self) -> dict[str, mx.array]:
        return {"rotation": self.rotation.array}

    def encode(self, x: mx.array) -> Block:
        y = self.rotation.rotate(x.astype(mx.float32))
        norm = mx.linalg.norm(y, axis=-1, keepdims=True)
        unit = y * (self.rotation.head_dim**0.5 / mx.maximum(norm, 1e-20))
        words = pack(quantise(unit, self.bits), self.bits)
        centroids = lookup(words, self.bits, self.rotation.head_dim)
        gain = norm / mx.linalg.norm(centroids, axis=-1, keepdims=True)
        return words, mx.minimum(gain, 65504.0).astype(mx.float16)

    def decode(self, block: Block) -> mx.array:
        words, gain = block
        return self.rotation.unrotate(
            lookup(words, self.bits, self.rotation.head_dim) * gain.astype(mx.float32)
        )

    def scores(self, queries: mx.array, block: Block) -> mx.array:
        words, gain = block
        centroids = lookup(words, self.bits, self.rotation.head_dim)
        products = self.rotation.rotate(queries) @ centroids.swapaxes(-1, -2)
        return products * gain.astype(mx.float32).swapaxes(-1, -2)

    def combine(self, weights: mx.array, block: Block) -> mx.array:
        words, gain = block
        centroids = lookup(words, self.bits, self.rotation.head_dim)
        return self.rotation.unrotate((weights * gain.astype(mx.float32).swapaxes(-1, -2)) @ centroids)


def make_format(
    spec: FormatSpec, head_dim: int, seed: int, constants: dict[str, mx.array] | None = None
) -> Format:
    """The format that ``spec`` names, for vectors of ``head_dim``.

    Args:
        seed: Tells the rotation of keys from that of values.
        constants: Arrays of an earlier format of the same spec, restored from disk; without them they are
            drawn.
    """
    if spec.kind == "raw":
        return RawFormat()
    if spec.kind == "affine":
        return AffineFormat(spec, head_dim)
    rotation = restored_rotation(constants["rotation"], seed) if constants else draw_rotation(head_dim, seed)
    return TurboFormat(spec.bits, rotation)

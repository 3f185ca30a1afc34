"""Affine format: MLX's group quantisation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import mlx.core as mx

from tqchat.kv.codec.base import Block, FittedFormat, Format
from tqchat.kv.codec.fitting import QueryStatistics, fit_keys
from tqchat.kv.codec.packing import code_floats
from tqchat.kv.scheme import FormatSpec


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
class AffineFormat(FittedFormat):
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

    def with_fit_of(self, other: Format) -> AffineFormat:
        if self.role == "value" or not isinstance(other, FittedFormat):
            return self
        return replace(self, mean=other.mean, balance=other.balance)

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

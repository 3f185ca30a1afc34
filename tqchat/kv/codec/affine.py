"""Affine format: MLX's group quantisation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
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

_MAX_QUANTISED_ROWS = 32
"""Query rows up to which a CPU multiplies quantised vectors; it decodes them once per row."""


@lru_cache(maxsize=8)
def _group_mask(groups: int) -> mx.array:
    """Mask that selects each group's part of a query: float32 ``[groups, 1, groups, 1]``."""
    number = mx.arange(groups)
    mask = (number[:, None] == number).astype(mx.float32).reshape(groups, 1, groups, 1)
    mx.eval(mask)
    return mask


@dataclass(frozen=True)
class AffineFormat(FittedFormat):
    """MLX's group quantisation. Head dims that groups do not divide are padded with zeros.

    Keys are balanced as in ``TurboFormat``, since one outlier channel would determine the scale of its group,
    and their mean, float16 ``[batch, heads, 1, head_dim]``, is subtracted and restored exactly in scores.
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
    def fitted(self) -> dict[str, mx.array]:
        return super().fitted | ({} if self.mean is None else {"mean": self.mean})

    @cached_property
    def _stored_mean(self) -> mx.array:
        """The mean in the space of stored vectors, float32 ``[batch, heads, 1, stored_dim]``."""
        assert self.mean is not None
        mean = self._to_stored(self._balanced(self.mean))
        mx.async_eval(mean)  # type: ignore[no-untyped-call]  # lazy arrays of one thread cannot be evaluated by another
        return mean

    def release_working_arrays(self) -> None:
        vars(self).pop("_stored_mean", None)

    @property
    def _group(self) -> int:
        return self.spec.group_size(self.head_dim)

    def encode(self, x: mx.array) -> Block:
        # MLX gives scales the dtype of its input; they are to have the dtype of raw tokens.
        centred = x if self.mean is None else x.astype(mx.float32) - self.mean
        prepared = self._to_stored(self._balanced(centred)).astype(x.dtype)
        words, scales, biases = mx.quantize(prepared, self._group, self.spec.bits)
        return words, scales, biases

    def _to_stored(self, x: mx.array) -> mx.array:
        padding = self.spec.padded_dim(self.head_dim) - self.head_dim
        return mx.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, padding)]) if padding else x

    def _from_stored(self, x: mx.array) -> mx.array:
        return x[..., : self.head_dim]

    def multiply(self, folded: mx.array, prepared: Block) -> mx.array:
        if folded.shape[2] <= _MAX_GROUPWISE_ROWS and mx.default_device() == mx.cpu:
            products = self._multiply_codes(folded, prepared)
        else:
            products = self._matmul(folded, prepared, transpose=True)
        return products if self.mean is None else products + folded @ self._stored_mean.swapaxes(-1, -2)

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
        total = self._matmul(weights, prepared, transpose=False)
        return total if self.mean is None else total + weights.sum(axis=-1, keepdims=True) * self._stored_mean

    def _dequantise(self, prepared: Block) -> mx.array:
        stored = self._dequantise_groups(prepared)
        return stored if self.mean is None else stored + self._stored_mean

    def _dequantise_groups(self, prepared: Block) -> mx.array:
        # float32: 16-bit arithmetic would round scale times code once more.
        words, scales, biases = prepared
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        return mx.dequantize(words, scales, biases, self._group, self.spec.bits)

    def _matmul(self, x: mx.array, block: Block, transpose: bool) -> mx.array:
        many = x.shape[2] > _MAX_QUANTISED_ROWS and mx.default_device() == mx.cpu
        if many or not _has_quantised_matmul():
            stored = self._dequantise_groups(block)
            return x @ (stored.swapaxes(-1, -2) if transpose else stored)
        words, scales, biases = block
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        return mx.quantized_matmul(x, words, scales, biases, transpose, self._group, self.spec.bits)

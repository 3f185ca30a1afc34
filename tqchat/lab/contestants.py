"""Published KV-cache codecs, rebuilt for comparison: sinks and raw tail as in our schemes, all bytes counted.

They measure quality only. A cache holds the decoded vectors at 16 bits and counts the bytes that the codes
would take, so it is neither small nor fast.

- ``kvarn<b>``: KVarN (arXiv 2606.03458). Rotation, Sinkhorn normalisation of the variances of tokens and
  channels over tiles of 128 tokens, affine codes of b bits: keys per channel, values per token.
- ``swift<b>``: mlx-swift-lm's ``TurboQuantKVCache`` (pull request 232) with its calibration of keys. Unit
  vectors, rotation, Lloyd-Max codes, one float32 norm; the first and last two layers affine at 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
from mlx_lm.models.cache import KVCache

from tqchat.kv.cache import SchemeCache
from tqchat.kv.codec.codebook import quantise
from tqchat.kv.codec.rotation import KEY_SEED, VALUE_SEED, draw_rotation

SINKS, TAIL = 4, 64
"""As in our schemes with packed keys."""

SINKHORN_ITERATIONS = 8
BOUNDARY_LAYERS = 2
CALIBRATION_RANGE = (0.25, 4.0)


class Codec(Protocol):
    """A codec of one side of a layer.

    Attributes:
        tile: Tokens packed together.
    """

    tile: int

    def fit(self, x: mx.array) -> None:
        """Calibrate on the prompt's vectors, float32 ``[batch, heads, tokens, head_dim]``."""

    def round_trip(self, x: mx.array) -> mx.array:
        """A tile of vectors, float32 ``[batch, heads, tile, head_dim]``, encoded and decoded."""

    def tile_bytes(self, head_dim: int) -> int:
        """Bytes of one head's tile."""


@dataclass
class Kvarn:
    """KVarN. ``per_channel``: scales and biases per channel of a tile (keys), else per token (values)."""

    bits: int
    per_channel: bool
    tile: int = 128

    def fit(self, x: mx.array) -> None:
        """Nothing: KVarN needs no calibration."""

    def round_trip(self, x: mx.array) -> mx.array:
        rotation = draw_rotation(x.shape[-1], KEY_SEED if self.per_channel else VALUE_SEED)
        y = rotation.rotate(x)
        tokens, channels = mx.zeros((*y.shape[:3], 1)), mx.zeros((*y.shape[:2], 1, y.shape[3]))
        for _ in range(SINKHORN_ITERATIONS):
            tokens = tokens + _log_deviation(y * mx.exp(-tokens - channels), axis=3)
            channels = channels + _log_deviation(y * mx.exp(-tokens - channels), axis=2)
        z = _affine(y * mx.exp(-tokens - channels), self.bits, axis=2 if self.per_channel else 3)
        return rotation.unrotate(z * mx.exp(tokens + channels))

    def tile_bytes(self, head_dim: int) -> int:
        codes = -(-self.tile * head_dim * self.bits // 8)
        # Scale and bias of the coded axis, which absorb its normalisation, and a factor of the other axis.
        coded, other = (head_dim, self.tile) if self.per_channel else (self.tile, head_dim)
        return codes + 4 * coded + 2 * other


class Swift:
    """mlx-swift-lm's turbo codec. ``is_key``: calibrated, and the norm matched to the quantised vector."""

    tile = 16

    def __init__(self, bits: int, is_key: bool) -> None:
        self.bits, self.is_key = bits, is_key
        self._deviation: mx.array | None = None

    def _rotated(self, x: mx.array) -> tuple[mx.array, mx.array]:
        norm = mx.maximum(mx.linalg.norm(x, axis=-1, keepdims=True), 1e-20)
        rotation = draw_rotation(x.shape[-1], KEY_SEED if self.is_key else VALUE_SEED)
        return rotation.rotate(x / norm) * x.shape[-1] ** 0.5, norm

    def fit(self, x: mx.array) -> None:
        if self.is_key:
            unit, _ = self._rotated(x)
            deviation = mx.std(unit, axis=(0, 1, 2), keepdims=True)
            self._deviation = mx.clip(deviation / deviation.mean(), *CALIBRATION_RANGE)

    def round_trip(self, x: mx.array) -> mx.array:
        unit, norm = self._rotated(x)
        scale = mx.array(1.0) if self._deviation is None else self._deviation
        _, centroids = quantise(unit / scale, self.bits)
        y = centroids * scale
        length = mx.linalg.norm(y, axis=-1, keepdims=True) if self.is_key else x.shape[-1] ** 0.5
        rotation = draw_rotation(x.shape[-1], KEY_SEED if self.is_key else VALUE_SEED)
        return rotation.unrotate(y) * (norm / length)

    def tile_bytes(self, head_dim: int) -> int:
        return self.tile * (-(-head_dim * self.bits // 8) + 4)


class Affine8:
    """MLX's affine quantisation at 8 bits in groups of 64."""

    tile = 16

    def fit(self, x: mx.array) -> None:
        """Nothing."""

    def round_trip(self, x: mx.array) -> mx.array:
        group = 64 if x.shape[-1] % 64 == 0 else 32
        return mx.dequantize(*mx.quantize(x, group, 8), group, 8)

    def tile_bytes(self, head_dim: int) -> int:
        return self.tile * (head_dim + 4 * -(-head_dim // 64))


def codecs(name: str, layer: int, layers: int) -> tuple[Codec, Codec]:
    """New codecs of the keys and the values of one layer of a contestant."""
    family, bits = name[:-1], int(name[-1])
    if family == "kvarn":
        return Kvarn(bits, per_channel=True), Kvarn(bits, per_channel=False)
    if layer < BOUNDARY_LAYERS or layer >= layers - BOUNDARY_LAYERS:
        return Affine8(), Affine8()
    return Swift(bits, is_key=True), Swift(bits, is_key=False)


class ContestantCache(KVCache):  # type: ignore[misc, unused-ignore]
    """One layer's cache under a contestant, made from a prompt's raw cache.

    Tokens beyond the sinks and the tail are replaced by their decoded codes, a tile at a time, before the
    next tokens are appended.
    """

    def __init__(self, raw: SchemeCache, codecs: tuple[Codec, Codec]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._codecs = codecs
        self._packed = [0, 0]
        keys, values = raw.decoded()
        for codec, x in zip(codecs, (keys, values), strict=True):
            codec.fit(x[:, :, SINKS:].astype(mx.float32))
        super().update_and_fetch(keys, values)  # type: ignore[no-untyped-call]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
        """Pack what is due, append tokens and return all of them."""
        self.keys = self._pack_due(0, self.keys)
        self.values = self._pack_due(1, self.values)
        return super().update_and_fetch(keys, values)  # type: ignore[no-untyped-call]

    def _pack_due(self, side: int, x: mx.array | None) -> mx.array:
        assert x is not None
        codec = self._codecs[side]
        while self.offset - SINKS - self._packed[side] - TAIL >= codec.tile:
            start = SINKS + self._packed[side]
            tile = x[:, :, start : start + codec.tile].astype(mx.float32)
            x[:, :, start : start + codec.tile] = codec.round_trip(tile).astype(x.dtype)
            self._packed[side] += codec.tile
        return x

    def sizes(self) -> tuple[int, int]:
        """Bytes of the codes, sinks and tail, and bytes at FP16."""
        size = fp16_size = 0
        for codec, x, packed in zip(self._codecs, (self.keys, self.values), self._packed, strict=True):
            assert x is not None
            vectors, dim = x.shape[0] * x.shape[1], int(x.shape[3])
            raw = 2 * dim * (self.offset - packed)
            size += vectors * (packed // codec.tile * codec.tile_bytes(dim) + raw)
            fp16_size += vectors * 2 * dim * self.offset
        return int(size), int(fp16_size)


def to_contestant(layer: Any, name: str, index: int, layers: int) -> Any:
    """A prompt's layer under a contestant; the layer itself if it is not a full cache of keys and values."""
    if type(layer) is not SchemeCache or layer.empty():
        return layer
    return ContestantCache(layer, codecs(name, index, layers))


def _log_deviation(x: mx.array, axis: int) -> mx.array:
    return mx.log(mx.maximum(mx.std(x, axis=axis, keepdims=True), 1e-8))


def _affine(x: mx.array, bits: int, axis: int) -> mx.array:
    low, high = x.min(axis=axis, keepdims=True), x.max(axis=axis, keepdims=True)
    step = mx.maximum((high - low) / ((1 << bits) - 1), 1e-12)
    return mx.round((x - low) / step) * step + low

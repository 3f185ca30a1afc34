"""Codebooks, packing, rotations, rounding and formats."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import mlx.core as mx
import numpy as np
import pytest

from tqchat.kv.codec.affine import AffineFormat
from tqchat.kv.codec.centres import index_of
from tqchat.kv.codec.codebook import MAGNITUDES, centroids, quantise
from tqchat.kv.codec.fitting import QueryStatistics
from tqchat.kv.codec.formats import make_format
from tqchat.kv.codec.packing import byte_planes, lookup, pack, unpack
from tqchat.kv.codec.rotation import UnsupportedHeadDim, draw_rotation
from tqchat.kv.codec.rounding import quantise_shaped
from tqchat.kv.codec.turbo import TurboFormat
from tqchat.kv.scheme import FormatSpec, parse_scheme, words_per_vector

HEAD_DIMS = (64, 80, 96, 128, 256)


def centroid_array(bits: int) -> mx.array:
    return mx.array(centroids(bits), dtype=mx.float32)


@pytest.mark.parametrize(
    "bits, distortion", [(1, 0.3634), (2, 0.1175), (3, 0.0345), (4, 0.0095), (5, 0.002505), (6, 0.000644)]
)
def test_codebooks_have_the_lloyd_max_distortion_of_a_normal(bits: int, distortion: float) -> None:
    # Integrated over the density: exact to the pinned digits.
    x = np.linspace(-9, 9, 600_001)
    density = np.exp(-x * x / 2) / np.sqrt(2 * np.pi)
    nearest = np.abs(x[:, None] - np.array(centroids(bits))).min(axis=1)
    assert np.trapezoid(nearest**2 * density, x) == pytest.approx(distortion, rel=2e-3)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6])
def test_quantise_chooses_the_nearest_centroid(bits: int) -> None:
    x = mx.random.normal((4000,), key=mx.random.key(bits)) * 1.5
    nearest = mx.abs(x[:, None] - centroid_array(bits)).min(axis=1)
    codes, found = quantise(x, bits)
    assert mx.array_equal(found, centroid_array(bits)[codes])
    chosen = mx.abs(x - found)
    assert mx.allclose(chosen, nearest, atol=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("head_dim", [*HEAD_DIMS, 48, 33])
def test_packing_round_trips_in_the_stated_number_of_words(bits: int, head_dim: int) -> None:
    codes = mx.random.randint(0, 2**bits, (2, 3, 5, head_dim), key=mx.random.key(7)).astype(mx.uint32)
    words = pack(codes, bits)
    assert words.dtype == mx.uint32
    assert words.shape == (2, 3, 5, words_per_vector(head_dim, bits))
    assert mx.array_equal(unpack(words, bits, head_dim), codes)
    found = lookup(byte_planes(words, bits, head_dim), bits, head_dim)
    assert mx.array_equal(found, centroid_array(bits)[codes])


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_rotation_preserves_dot_products_and_is_invertible(head_dim: int) -> None:
    rotation = draw_rotation(head_dim, 42)
    a, b = mx.random.normal((2, 50, head_dim), key=mx.random.key(0))
    assert mx.allclose((rotation.rotate(a) * rotation.rotate(b)).sum(-1), (a * b).sum(-1), atol=1e-3)
    assert mx.allclose(rotation.unrotate(rotation.rotate(a)), a, atol=1e-4)


def test_rotation_spreads_a_single_coordinate_evenly() -> None:
    spike = mx.zeros((1, 128))
    spike[0, 3] = 1.0
    assert mx.abs(draw_rotation(128, 42).rotate(spike)).max().item() == pytest.approx(128**-0.5, rel=1e-4)


def test_a_head_dim_of_one_is_unsupported() -> None:
    with pytest.raises(UnsupportedHeadDim):
        draw_rotation(1, 0)


@pytest.mark.parametrize("bits, distortion", [(2, 0.1175), (3, 0.0345), (4, 0.0095), (6, 0.000644)])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_turbo_has_the_codebook_distortion_on_heavy_tailed_vectors(
    bits: int, distortion: float, head_dim: int
) -> None:
    # Heavy-tailed, unequal channels, which only the rotation makes near-Gaussian.
    x = mx.random.normal((1, 2, 400, head_dim), key=mx.random.key(3)) ** 3
    format_ = make_format(FormatSpec("turbo", bits), head_dim, "key")
    error = (format_.decode(format_.encode(x)) - x).square().sum() / x.square().sum()
    # Restoring the norm that Lloyd-Max shrinks raises the error from D to at most D / (1 - D).
    assert error.item() < distortion / (1 - distortion) * 1.12


def test_unfitted_turbo_keys_keep_their_norms() -> None:
    x = mx.random.normal((1, 1, 64, 128), key=mx.random.key(3)) * mx.arange(1, 65)[:, None]
    format_ = make_format(FormatSpec("turbo", 2), 128, "key")
    decoded = format_.decode(format_.encode(x))
    assert mx.allclose(mx.linalg.norm(decoded, axis=-1), mx.linalg.norm(x, axis=-1), rtol=2e-3)


@pytest.mark.parametrize("role", ["key", "value"])
def test_turbo_decodes_a_zero_vector_to_zero(role: Literal["key", "value"]) -> None:
    format_ = make_format(FormatSpec("turbo", 4), 64, role)
    assert mx.array_equal(format_.decode(format_.encode(mx.zeros((1, 1, 2, 64)))), mx.zeros((1, 1, 2, 64)))


@pytest.mark.parametrize("role", ["key", "value"])
@pytest.mark.parametrize(
    "spec", [FormatSpec("turbo", 3), FormatSpec("trellis", 3), FormatSpec("affine", 8), FormatSpec("raw", 16)]
)
@pytest.mark.parametrize("rows", [1, 3, 20])
@pytest.mark.parametrize("head_dim", [64, 80])
def test_fold_multiply_sum_and_unfold_match_decoded_vectors(
    role: Literal["key", "value"], spec: FormatSpec, head_dim: int, rows: int
) -> None:
    x, queries = mx.random.normal((2, 1, 2, 30, head_dim), key=mx.random.key(3)) + 2
    queries = queries[:, :, :rows]
    statistics = QueryStatistics(queries.square().mean(axis=2, keepdims=True), 30)
    format_ = make_format(spec, head_dim, role).fit(x, statistics)
    block = format_.encode(x)
    if isinstance(format_, TurboFormat):
        assert format_.centres is not None
        words, gain = block
        prepared = format_.quantiser.prepare(words, head_dim)
        values = format_.quantiser.restore(format_.quantiser.lookup(prepared, head_dim), head_dim)
        stored = values * mx.abs(gain).astype(mx.float32)
        stored = stored + mx.take_along_axis(format_.centres.vectors, index_of(gain), axis=2)
    elif isinstance(format_, AffineFormat):
        words, scales, biases = block
        stored = mx.dequantize(words, scales, biases, spec.group_size(head_dim), spec.bits)
        if format_.mean is not None and format_.balance is not None:
            padding = stored.shape[-1] - head_dim
            stored = stored + mx.pad(
                format_.mean.astype(mx.float32) * format_.balance, [(0, 0)] * 3 + [(0, padding)]
            )
    else:
        (stored,) = block
    folded = format_.fold(queries)
    assert folded.shape == (*queries.shape[:3], stored.shape[-1])
    products = folded @ stored.swapaxes(-1, -2)
    assert mx.allclose(products, queries @ format_.decode(block).swapaxes(-1, -2), atol=1e-2)
    assert mx.allclose(products, format_.multiply(folded, format_.prepare(block)), atol=1e-2)
    weights = mx.random.uniform(shape=(1, 2, 7, 30), key=mx.random.key(4))
    total = weights @ stored
    assert mx.allclose(format_.unfold(total), weights @ format_.decode(block), atol=1e-3)
    assert mx.allclose(total, format_.sum(weights, format_.prepare(block)), atol=1e-3)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize(
    "name",
    [
        "affine8",
        "affine4",
        "turbo6",
        "turbo5",
        "turbo4",
        "turbo3",
        "turbo2",
        "trellis4",
        "trellis3",
        "trellis2",
    ],
)
def test_bytes_per_vector_match_the_encoded_arrays(name: str, head_dim: int) -> None:
    spec = parse_scheme(name).value
    block = make_format(spec, head_dim, "value").encode(mx.ones((1, 1, 8, head_dim), dtype=mx.float16))
    assert sum(array.nbytes for array in block) == 8 * spec.bytes_per_vector(head_dim)


def test_formats_of_one_head_dim_share_a_rotation() -> None:
    one, other = (make_format(FormatSpec("turbo", bits), 128, "key") for bits in (2, 4))
    assert isinstance(one, TurboFormat) and isinstance(other, TurboFormat)
    assert one.rotation.array is other.rotation.array


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("width", [32, 128])
def test_shaped_rounding_costs_less_than_nearest_rounding(bits: int, width: int) -> None:
    x = mx.random.normal((500, width), key=mx.random.key(1))
    metric = mx.exp(mx.linspace(-2, 2, width))
    metric = metric / metric.mean()
    y = mx.hadamard_transform(x)

    def cost(centroids: mx.array) -> float:
        return float((metric * mx.hadamard_transform(centroids - y).square()).mean().item())

    codes, centroids = quantise_shaped(y, metric, bits)
    assert mx.array_equal(centroids, centroid_array(bits)[codes])
    # The optimum is the geometric over the arithmetic mean of the metric: 0.3 here.
    assert cost(centroids) < 0.75 * cost(quantise(y, bits)[1])
    flat, _ = quantise_shaped(y, mx.ones((width,)), bits)
    assert mx.array_equal(flat, quantise(y, bits)[0])


@pytest.mark.parametrize("bits", sorted(MAGNITUDES))
def test_codes_are_the_number_of_thresholds_below_a_magnitude(bits: int) -> None:
    thresholds = np.array([(low + high) / 2 for low, high in pairwise(MAGNITUDES[bits])], np.float32)
    near = [np.nextafter(thresholds, np.float32(side)) for side in (-np.inf, np.inf)]
    edges = np.arange(0, 80, dtype=np.float32) / 16
    drawn = np.random.default_rng(0).normal(size=20000).astype(np.float32)
    sizes = np.concatenate([thresholds, *near, edges, np.abs(drawn), np.float32([0, 1e9, np.inf])])
    for sign in (-1, 1):
        x = sizes * np.float32(sign)
        codes, values = quantise(mx.array(x), bits)
        expected = (sizes[:, None] > thresholds).sum(axis=1) + ((x >= 0) << (bits - 1))
        assert np.array_equal(np.array(codes), expected)
        assert np.array_equal(np.array(values), np.float32(centroids(bits))[expected])
    assert quantise(mx.array([mx.nan]), bits)[0].item() == 0

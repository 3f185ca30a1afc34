"""Codecs of others: their errors, and the bytes that are counted for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx
import pytest

from tests.lab.test_evaluation import measure
from tqchat.lab.bench.kv_caches import candidates
from tqchat.lab.candidates import CONTESTANTS, UnknownCandidate
from tqchat.lab.contestants import Codec, codecs

if TYPE_CHECKING:
    from tqchat.engine.models import LoadedModel

DIM = 128


def error(codec: Codec, x: mx.array) -> float:
    """Squared error relative to the squared length, tile by tile."""
    codec.fit(x)
    tiles = [x[:, :, start : start + codec.tile] for start in range(0, x.shape[2], codec.tile)]
    decoded = mx.concatenate([codec.round_trip(tile) for tile in tiles], axis=2)
    return float(((decoded - x).square().sum() / x.square().sum()).item())


@pytest.fixture(scope="module")
def gaussian() -> mx.array:
    return mx.random.normal((1, 2, 512, DIM), key=mx.random.key(3))


@pytest.mark.parametrize("bits, lloyd_max", [(4, 0.0095), (3, 0.0345), (2, 0.1175)])
def test_swifts_error_on_gaussian_vectors_is_that_of_lloyd_max(
    gaussian: mx.array, bits: int, lloyd_max: float
) -> None:
    for codec in codecs(f"swift{bits}", layer=3, layers=8):
        assert error(codec, gaussian) == pytest.approx(lloyd_max, rel=0.06)


@pytest.mark.parametrize("bits, expected", [(4, 0.011), (3, 0.05), (2, 0.25)])
def test_kvarns_error_on_gaussian_vectors_is_that_of_affine_codes(
    gaussian: mx.array, bits: int, expected: float
) -> None:
    for codec in codecs(f"kvarn{bits}", layer=0, layers=8):
        assert error(codec, gaussian) == pytest.approx(expected, rel=0.25)


def test_kvarn_is_indifferent_to_scales_of_tokens(gaussian: mx.array) -> None:
    """The variances of tokens are normalised exactly; those of channels after the rotation, too."""
    scaled = gaussian * mx.exp(2 * mx.random.normal((1, 2, 512, 1), key=mx.random.key(5)))
    for plain, other in zip(codecs("kvarn4", 0, 8), codecs("kvarn4", 0, 8), strict=True):
        assert error(other, scaled) < 1.2 * error(plain, gaussian)


def test_bytes_are_those_of_the_published_layouts() -> None:
    def bits_per_value(codec: Codec) -> float:
        return 8 * codec.tile_bytes(DIM) / (codec.tile * DIM)

    assert [bits_per_value(one) for one in codecs("kvarn4", 0, 8)] == [4.375, 4.375]
    assert [bits_per_value(one) for one in codecs("kvarn2", 0, 8)] == [2.375, 2.375]
    assert [bits_per_value(one) for one in codecs("swift3", 3, 8)] == [3.25, 3.25]
    for boundary in (0, 1, 6, 7):
        assert [bits_per_value(one) for one in codecs("swift3", boundary, 8)] == [8.5, 8.5]


def test_contestants_are_measured_beside_the_schemes(tiny: LoadedModel, prose: str) -> None:
    rows = measure(tiny, prose, "turbo4,kvarn4,kvarn2,swift4", tokens=400)
    assert 0 < rows["kvarn4"].kld_mean < rows["kvarn2"].kld_mean
    assert rows["kvarn2"].bytes < rows["kvarn4"].bytes < rows["kvarn4"].fp16_bytes
    assert {row.fp16_bytes for row in rows.values()} == {rows["turbo4"].fp16_bytes}
    # Two layers of two are boundary layers: 8 bits.
    assert rows["swift4"].kld_mean < rows["turbo4"].kld_mean


@pytest.mark.parametrize("name", CONTESTANTS)
def test_a_bench_of_speed_refuses_them(name: str) -> None:
    with pytest.raises(UnknownCandidate, match="lab eval"):
        candidates(f"turbo4,{name}")
    assert not any(one.contestant for one in candidates("all"))

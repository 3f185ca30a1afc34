"""Centres: fitting them, and the index of one in bits of a gain."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tqchat.kv.codec.centres import index_of, join_gain
from tqchat.kv.codec.fitting import QueryStatistics
from tqchat.kv.codec.formats import make_format
from tqchat.kv.codec.turbo import TurboFormat
from tqchat.kv.scheme import CENTRES, FormatSpec

FINITE = np.arange(0x7C00, dtype=np.uint16).view(np.float16)
"""Every float16 from 0 to the largest."""


def fitted(x: mx.array, bits: int = 2, role: Any = "value") -> TurboFormat:
    format_ = make_format(FormatSpec("turbo", bits), x.shape[-1], role).fit(x, QueryStatistics())
    assert isinstance(format_, TurboFormat) and format_.centres is not None
    return format_


def squared_error(format_: TurboFormat, x: mx.array) -> Any:
    return (format_.decode(format_.encode(x)) - x).square().mean().item()


def test_a_gain_is_the_nearest_float16_that_names_the_centre() -> None:
    gains = np.concatenate([np.geomspace(1e-8, 65504, 3000), [0.0, 65504.0]]).astype(np.float32)
    for centre in (0, 1, CENTRES // 2, CENTRES - 1):
        index = mx.full((1, 1, gains.size, 1), centre, dtype=mx.uint32)
        joined = join_gain(mx.array(gains).reshape(1, 1, -1, 1), index)
        assert (np.array(index_of(joined)) == centre).all()
        candidates = FINITE[centre % (CENTRES // 2) :: CENTRES // 2].astype(np.float64)
        nearest = np.abs(gains[:, None] - candidates).min(axis=1)
        rounding = np.maximum(gains / 1024, 2.0**-24)
        assert (
            np.abs(np.abs(np.array(joined).astype(np.float64).ravel()) - gains) <= nearest + rounding
        ).all()


def test_a_gain_that_is_not_a_number_stays_so() -> None:
    index = mx.full((1, 1, 1, 1), CENTRES - 1, dtype=mx.uint32)
    assert mx.isnan(join_gain(mx.full((1, 1, 1, 1), mx.nan), index)).all()


@pytest.mark.parametrize("role", ["key", "value"])
def test_vectors_around_several_points_are_encoded_relative_to_the_nearest(role: Any) -> None:
    points = 10 * mx.random.normal((1, 2, 4, 64), key=mx.random.key(1))
    which = mx.random.randint(0, 4, (600,), key=mx.random.key(2))
    noise = mx.random.normal((1, 2, 600, 64), key=mx.random.key(3))
    x = points[:, :, which] + noise
    format_ = fitted(x[:, :, :300], role=role)
    # As if the points had been known: 2 bits encode noise of variance 1 with an error of 0.117 to 0.14.
    assert squared_error(format_, x[:, :, 300:]) < 0.2


def test_values_near_zero_keep_their_zero() -> None:
    # Heads rest on tokens whose values are near zero; the others have a large mean in common.
    x = mx.random.normal((1, 1, 400, 64), key=mx.random.key(1)) + 20
    x[:, :, ::10] *= 1e-3
    format_ = fitted(x)
    small = x[:, :, ::10]
    assert squared_error(format_, small) < 0.2 * small.square().mean().item()
    assert mx.array_equal(format_.decode(format_.encode(mx.zeros_like(small))), mx.zeros_like(small))


def test_the_fit_ignores_vectors_that_are_not_finite() -> None:
    x = mx.random.normal((1, 2, 200, 32), key=mx.random.key(1))
    spoilt = mx.concatenate([x[:, :, :150], mx.full((1, 2, 1, 32), mx.inf), x[:, :, 151:]], axis=2)
    format_ = fitted(spoilt)
    decoded = format_.decode(format_.encode(spoilt))
    assert mx.isnan(decoded[:, :, 150]).all()
    assert mx.isfinite(decoded[:, :, :150]).all() and mx.isfinite(decoded[:, :, 151:]).all()


def test_a_fit_is_deterministic_and_needs_few_vectors() -> None:
    x = mx.random.normal((1, 1, 5, 32), key=mx.random.key(1))
    one, other = fitted(x), fitted(x)
    assert all(mx.array_equal(one.fitted[name], other.fitted[name]) for name in one.fitted)
    assert mx.isfinite(one.decode(one.encode(x))).all()

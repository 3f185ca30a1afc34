"""Mean, balance and metric of keys, fitted before a head's first vector is packed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import mlx.core as mx

from tqchat.kv.codec.centres import cluster
from tqchat.kv.codec.rope import Rope

FLOAT16_MAX = 65504.0
"""Largest float16. A vector that needs a larger gain is shortened rather than made infinite."""

HORIZON_FACTOR = 3
"""Key statistics are averaged over this multiple of the positions seen.

A conversation is expected to grow that much.
"""

MIN_HORIZON_TOKENS = 1024
"""Lower bound of the positions that key statistics are averaged over."""

MAX_FIT_TOKENS = 4096
"""Keys used in a fit, evenly spaced."""

PRIOR_QUERIES = 8
"""Number of observed queries at which they and the prior (queries like keys) have equal weight."""

METRIC_FLOOR = 0.1
"""Minimum weight of a channel's error relative to the mean, since later queries differ from those seen."""

_MAX_BALANCE = 64.0
"""Limit on scaling one channel against the geometric mean; measured outliers reach about 30."""


@dataclass(frozen=True)
class QueryStatistics:
    """What is known about a layer's queries and positions when its keys are fitted.

    Attributes:
        query_energy: Mean square of each coordinate of the observed queries, float32 ``[batch, heads, 1,
            head_dim]``; ``None`` if no query was observed.
        query_rows: Number of observed queries per head.
        balance: Of an earlier fit of these keys, which tells the energies of its queries; used if no query
            was observed since.
        rope: Rotary embedding of queries and keys; ``None`` if unknown.
        first_position: Position of the first key.
    """

    query_energy: mx.array | None = None
    query_rows: int = 0
    balance: mx.array | None = None
    rope: Rope | None = None
    first_position: int = 0


NO_STATISTICS = QueryStatistics()


@dataclass(frozen=True)
class KeyFit:
    """Vectors fitted to keys.

    Attributes:
        mean: Expected key, float16 ``[batch, heads, 1, head_dim]``.
        balance: Per-channel factor, float16 of that shape.
        metric: Cost of a squared error in each balanced channel, float16 of that shape; mean 1.
        centres: Of the balanced keys, the first of them the mean, float32 ``[batch, heads, CENTRES,
            head_dim]``.
    """

    mean: mx.array
    balance: mx.array
    metric: mx.array
    centres: mx.array


def fit_keys(x: mx.array, statistics: QueryStatistics) -> KeyFit:
    """Fit keys to the queries that will attend to them.

    Centres and channel energies are estimated before the rotary embedding and averaged over the positions to
    come: a prompt does not show the later phases of slowly rotating pairs. Both channels of a pair get equal
    energy, as they have over time. If the fast pairs of a head have a larger mean after the rotation than
    before it, its keys were not rotated (some models skip layers), and they are fitted as they are.

    Args:
        x: Keys ``[batch, heads, tokens, head_dim]``, any float dtype, the first at position
            ``statistics.first_position``. Vectors that are not finite are ignored.
    """
    end = statistics.first_position + x.shape[2]
    step = -(-x.shape[2] // MAX_FIT_TOKENS)
    x, finite, count = _finite(x[:, :, ::step])
    plain_mean = mean = x.sum(axis=2, keepdims=True) / count
    energy = mx.where(finite, x - mean, 0).square().sum(axis=2, keepdims=True) / count
    queries = statistics.query_energy
    rope = statistics.rope.padded_to(x.shape[-1]) if statistics.rope is not None else None
    if rope is not None:
        unrotated = mx.where(finite, rope.unrotate(x, statistics.first_position, step), 0)
        unrotated_mean = unrotated.sum(axis=2, keepdims=True) / count
        horizon = max(MIN_HORIZON_TOKENS, HORIZON_FACTOR * end)
        average = rope.average(unrotated_mean, horizon)
        unrotated_energy = unrotated.square().sum(axis=2, keepdims=True) / count
        variance = _pair_mean(unrotated_energy, rope) - _pair_mean(average.square(), rope)
        expected_energy = mx.maximum(variance, 0)
        fast = rope.full_turn_within(end - statistics.first_position)
        gained = mx.where(fast, unrotated_mean.square() - plain_mean.square(), 0)
        has_rope = gained.sum(axis=-1, keepdims=True) >= 0
        x = mx.where(has_rope, unrotated, x)
        mean = mx.where(has_rope, unrotated_mean, plain_mean)
        energy = mx.where(has_rope, expected_energy, energy)
        if queries is not None:
            queries = mx.where(has_rope, _pair_mean(queries, rope), queries)
    # Prior: queries have the energies of keys, which leaves every channel's scale as it is. Its weight falls
    # with the square of the number of queries, because it is far off where channels are outliers.
    confidence = statistics.query_rows**2 / (statistics.query_rows**2 + PRIOR_QUERIES**2)
    if queries is not None:
        queries = _blend(energy, queries, confidence)
    elif statistics.balance is not None:
        queries = energy * statistics.balance.astype(mx.float32) ** 4  # the inverse of ``_balance``
    else:
        queries = energy
    balance = _balance(queries, energy)
    cost = queries / balance.astype(mx.float32).square()
    cost = cost / mx.maximum(cost.mean(axis=-1, keepdims=True), 1e-30)
    metric = METRIC_FLOOR + (1 - METRIC_FLOOR) * cost
    # Both channels of a pair have the same balance, so that balancing and the rotary embedding commute.
    factor = balance.astype(mx.float32)
    centres = cluster(mx.where(finite, x, mx.nan) * factor, mean * factor)
    if rope is not None:
        mean = mx.where(has_rope, rope.average(mean, horizon), mean)
        centres = mx.where(has_rope, rope.average(centres, horizon), centres)
    return KeyFit(_to_float16(mean), balance, _to_float16(metric), centres)


def _finite(x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Float32 vectors with non-finite ones set to zero, the mask of finite ones, and their count."""
    x = x.astype(mx.float32)
    finite = mx.isfinite(x.square().sum(axis=-1, keepdims=True))
    return mx.where(finite, x, 0), finite, mx.maximum(finite.sum(axis=2, keepdims=True), 1)


def _pair_mean(energy: mx.array, rope: Rope) -> mx.array:
    """Each channel's energy averaged with that of its rotary partner."""
    return (energy + rope.partner(energy)) / 2


def _blend(energy: mx.array, other: mx.array, share: float) -> mx.array:
    """Geometric interpolation of two energies, each up to a factor: ``other`` at a share of 1."""
    logs = (_log(energy), _log(other))
    centred = [log - log.mean(axis=-1, keepdims=True) for log in logs]
    return mx.exp((1 - share) * centred[0] + share * centred[1])


def _log(energy: mx.array) -> mx.array:
    # The offset keeps unused channels near the typical scale.
    return mx.log(energy + 1e-6 * energy.mean(axis=-1, keepdims=True) + 1e-30)


def _to_float16(x: mx.array) -> mx.array:
    return mx.clip(x, -FLOAT16_MAX, FLOAT16_MAX).astype(mx.float16)


def _balance(query_energy: mx.array, key_energy: mx.array) -> mx.array:
    """The diagonal map that minimises the error of query . key: ``sqrt(rms_query / rms_key)``.

    Normalised to a geometric mean of 1. The rotation spreads a vector's error evenly, so the expected error
    is sum(q^2 / w^2) * sum(k^2 w^2), which by Cauchy-Schwarz is least at this w.
    """
    log = (_log(query_energy) - _log(key_energy)) / 4
    log = log - log.mean(axis=-1, keepdims=True)
    limit = math.log(_MAX_BALANCE)
    return mx.exp(mx.clip(log, -limit, limit)).astype(mx.float16)

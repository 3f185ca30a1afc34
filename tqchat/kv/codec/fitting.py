"""What packed vectors are fitted to before the first of them is encoded: see ``TurboFormat``."""

from __future__ import annotations

import math
from dataclasses import dataclass

import mlx.core as mx

from tqchat.kv.codec.rope import Rope

LARGEST = 65504.0
"""The largest float16. A vector longer than such a gain can scale is shortened rather than made infinite."""

HORIZON = 3
"""Keys are averaged over so many times the positions seen: a conversation is expected to grow that much."""

SHORTEST_HORIZON = 1024

MOST_TOKENS = 4096
"""Keys looked at, evenly among all."""

FEW_QUERIES = 8
"""Queries that count for as much as knowing nothing."""

METRIC_FLOOR = 0.1
"""The least weight of a channel's error, against the average: queries to come differ from those seen."""

_LARGEST_BALANCE = 64.0
"""How far one channel may be scaled against the typical one; real outliers measured up to some 30."""


@dataclass(frozen=True)
class Seen:
    """What is known of a layer when its keys are fitted.

    ``query_energy`` is the mean square of the coordinates of ``query_rows`` queries, float32 ``[batch, heads,
    1, head_dim]``, ``None`` where none was seen. ``rope`` turns queries and keys, ``None`` if that is not
    known. ``first`` is the position of the first key.
    """

    query_energy: mx.array | None = None
    query_rows: int = 0
    rope: Rope | None = None
    first: int = 0


NOTHING_SEEN = Seen()


@dataclass(frozen=True)
class KeyFit:
    """Float16 ``[batch, heads, 1, head_dim]`` each: what is subtracted, what channels are multiplied by, and
    how much an error in each (then) costs.
    """

    mean: mx.array
    balance: mx.array
    metric: mx.array


def fit_mean(x: mx.array) -> mx.array:
    """The mean of the vectors that are finite: float16 ``[batch, heads, 1, head_dim]``."""
    x, _, count = _sound(x)
    return _half(x.sum(axis=2, keepdims=True) / count)


def fit_keys(x: mx.array, seen: Seen) -> KeyFit:
    """Fit keys to the queries they will meet.

    What keys have in common and how strong their channels are is estimated before their rotary turn, and
    averaged over the positions that they may get: a prompt says little about the phases that its slow pairs
    will have behind it. Both channels of a pair count alike, as they do over time. A head whose fast pairs
    share more after the turn than before it was not turned (some models spare some layers), and is taken as
    it is.

    Args:
        x: Keys ``[batch, heads, tokens, head_dim]``, the first at position ``seen.first``.
    """
    end = seen.first + x.shape[2]
    step = -(-x.shape[2] // MOST_TOKENS)
    x, sound, count = _sound(x[:, :, ::step])
    plain = x.sum(axis=2, keepdims=True) / count
    mean, energy = plain, (mx.where(sound, x - plain, 0)).square().sum(axis=2, keepdims=True) / count
    queries = seen.query_energy
    rope = seen.rope.widened(x.shape[-1]) if seen.rope is not None else None
    if rope is not None:
        before = mx.where(sound, rope.turned_back(x, seen.first, step), 0)
        common = before.sum(axis=2, keepdims=True) / count
        average = rope.average(common, max(SHORTEST_HORIZON, HORIZON * end))
        spread = before.square().sum(axis=2, keepdims=True) / count
        turned_energy = mx.maximum(_tied(spread, rope) - _tied(average.square(), rope), 0)
        fast = rope.has_turned(end - seen.first)
        is_turned = (mx.where(fast, common.square() - plain.square(), 0)).sum(axis=-1, keepdims=True) >= 0
        mean = mx.where(is_turned, average, mean)
        energy = mx.where(is_turned, turned_energy, energy)
        if queries is not None:
            queries = mx.where(is_turned, _tied(queries, rope), queries)
    # Without a query seen, queries are taken to be as the keys: every channel keeps its scale.
    # Soon all but certain: knowing nothing is far from the truth where channels are loud.
    certain = seen.query_rows**2 / (seen.query_rows**2 + FEW_QUERIES**2)
    queries = energy if queries is None else _between(energy, queries, certain)
    balance = _balance(queries, energy)
    cost = queries / balance.astype(mx.float32).square()
    cost = cost / mx.maximum(cost.mean(axis=-1, keepdims=True), 1e-30)
    metric = METRIC_FLOOR + (1 - METRIC_FLOOR) * cost
    return KeyFit(_half(mean), balance, _half(metric))


def _sound(x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Vectors with those that are not finite at zero, which are not, and how many."""
    x = x.astype(mx.float32)
    sound = mx.isfinite(x.square().sum(axis=-1, keepdims=True))
    return mx.where(sound, x, 0), sound, mx.maximum(sound.sum(axis=2, keepdims=True), 1)


def _tied(energy: mx.array, rope: Rope) -> mx.array:
    return (energy + rope.partner(energy)) / 2


def _between(energy: mx.array, other: mx.array, share: float) -> mx.array:
    """Energies between two, in proportion to each other: at the second if ``share`` is 1."""
    logs = (_log(energy), _log(other))
    level = [log - log.mean(axis=-1, keepdims=True) for log in logs]
    return mx.exp((1 - share) * level[0] + share * level[1])


def _log(energy: mx.array) -> mx.array:
    # A channel that is never used says nothing, and is left near the typical scale.
    return mx.log(energy + 1e-6 * energy.mean(axis=-1, keepdims=True) + 1e-30)


def _half(x: mx.array) -> mx.array:
    return mx.clip(x, -LARGEST, LARGEST).astype(mx.float16)


def _balance(query_energy: mx.array, key_energy: mx.array) -> mx.array:
    """The diagonal map that makes the error of query . key least, ``sqrt(rms_query / rms_key)``, of geometric
    mean 1.

    The rotation spreads the error evenly, so its effect is sum(q^2 / w^2) * sum(k^2 w^2): least, by
    Cauchy-Schwarz, at this w.
    """
    log = (_log(query_energy) - _log(key_energy)) / 4
    log = log - log.mean(axis=-1, keepdims=True)
    limit = math.log(_LARGEST_BALANCE)
    return mx.exp(mx.clip(log, -limit, limit)).astype(mx.float16)

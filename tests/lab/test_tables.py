from __future__ import annotations

import re

import mlx.core as mx
import pytest

from tqchat import kv
from tqchat.kv.cache import SchemeCache
from tqchat.kv.scheme import SCHEMES, Scheme
from tqchat.lab import tables

LENGTH = 4096


def live_ratio(scheme: Scheme) -> float:
    """Ratio of a live cache after a prompt and one decode step."""
    cache = SchemeCache(scheme)
    key = mx.random.key(3)
    for count in (LENGTH - 1, 1):
        x = mx.random.normal((1, 2, count, tables.HEAD_DIM), dtype=mx.float16, key=key)
        cache.update_and_fetch(x, x)
        cache.observe(x)
    mx.eval(cache.state)
    report = kv.memory_report([cache])
    assert report.tokens == LENGTH
    return report.ratio


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_the_table_matches_a_live_cache(scheme: Scheme) -> None:
    live = live_ratio(scheme)
    assert tables.real_ratio(scheme, LENGTH, layers=1, heads=2) == live
    (row,) = re.findall(rf"^\| `{scheme.name}` .*$", tables.scheme_table(), re.MULTILINE)
    shown = float(row.split("|")[5].strip().removesuffix("x"))
    # The table is for a deeper model, which shares its rotation between more layers.
    assert live - 0.005 < shown < live + 0.02


def test_the_ratio_rises_with_length() -> None:
    for scheme in SCHEMES:
        short, long = (tables.real_ratio(scheme, tokens) for tokens in tables.LENGTHS)
        limit = 32 / (scheme.bits_per_key(128) + scheme.bits_per_value(128))
        assert short <= long <= limit


def test_columns_line_up() -> None:
    lines = tables.scheme_table().splitlines()
    assert len({len(line) for line in lines}) == 1
    assert len(lines) == 2 + len(SCHEMES)

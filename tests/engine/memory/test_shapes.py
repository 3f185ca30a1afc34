"""Predicted bytes of a longer cache, from the report of a shorter one."""

from __future__ import annotations

from dataclasses import replace

from tests.engine.memory.examples import NEEDS, layer
from tqchat.engine.memory.shapes import at_length, bytes_by_scheme, predicted_report, uniform_shapes
from tqchat.kv.memory import MemoryReport, predict_bytes
from tqchat.kv.scheme import FP16, SCHEMES, parse_scheme


def test_predicted_bytes_equal_those_of_a_report_of_that_length() -> None:
    long = MemoryReport("fp16", 8192, tuple(layer(i, 8192) for i in range(32)))
    assert {s.name: predict_bytes(long, s) for s in SCHEMES} == NEEDS


def test_a_compressed_sliding_window_is_counted_at_its_full_size() -> None:
    shapes = MemoryReport("fp16", 1, (replace(layer(0, kind="sliding"), reason=None, window=1024),))
    assert bytes_by_scheme(shapes, 100_000)["fp16"] == 1024 * 8 * 256 * 2
    assert bytes_by_scheme(shapes, 100_000)["turbo4"] < 1024 * 8 * 256


def test_a_sliding_window_stops_growing() -> None:
    shapes = MemoryReport("fp16", 1, (layer(0, kind="sliding"),))
    assert bytes_by_scheme(shapes, 100_000)["fp16"] == bytes_by_scheme(shapes, 1_000_000)["fp16"]
    other = MemoryReport("fp16", 1, (layer(0, kind="other"),))
    assert bytes_by_scheme(other, 2000)["fp16"] == 2 * bytes_by_scheme(other, 1000)["fp16"]


def test_a_predicted_report_counts_what_each_scheme_would_take() -> None:
    shapes = uniform_shapes(4, 2, 64, window=128, full_every=2)
    report = predicted_report(shapes, 1_000)
    assert report.tokens == 1_000 and report.scheme == ""
    assert report.bytes == report.fp16_bytes == predict_bytes(at_length(shapes, 1_000), FP16)
    assert report.fp16_bytes == 2 * (1_000 + 128) * 2 * 2 * 64 * 2
    turbo4 = parse_scheme("turbo4")
    assert predict_bytes(report, turbo4) == predict_bytes(at_length(shapes, 1_000), turbo4)

"""Memory reports, verified by independent counts."""

from __future__ import annotations

import gc
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models import cache as mlx_cache

from tests.kv import tiny
from tqchat.kv import convert, make_prompt_cache, memory_report, predict_bytes
from tqchat.kv.scheme import parse_scheme

NAMES = tiny.REPRESENTATIVE


def run(scheme: str, count: int, **config: Any) -> tuple[Any, list[Any]]:
    # float32 compute is fast on a CPU; storage is 16-bit.
    model = tiny.llama(**config)
    cache = make_prompt_cache(model, scheme, dtype=mx.float16)
    tokens = tiny.tokens(count)
    for part in (tokens[:, :-1], tokens[:, -1:]):
        mx.eval(model(part, cache=cache), [layer.state for layer in cache])
    return model, cache


def reachable_arrays(roots: list[Any]) -> dict[int, mx.array]:
    """Every array reachable from objects of our and mlx-lm's classes, independent of our bookkeeping."""
    visited: set[int] = set()
    found: dict[int, mx.array] = {}
    todo = list(roots)
    while todo:
        value = todo.pop()
        if id(value) in visited or isinstance(value, type):
            continue
        visited.add(id(value))
        if isinstance(value, mx.array):
            found[id(value)] = value
        elif isinstance(value, (list, tuple, dict)):
            todo += value.values() if isinstance(value, dict) else value
        elif type(value).__module__.startswith(("tqchat.", "mlx_lm.")):
            todo += vars(value).values()
    gc.collect()
    return found


@pytest.mark.parametrize("scheme", NAMES)
@pytest.mark.parametrize("count", [20, 140, 500])
def test_allocated_bytes_equal_all_live_arrays(scheme: str, count: int) -> None:
    _, cache = run(scheme, count)
    arrays = reachable_arrays(cache).values()
    assert memory_report(cache).allocated_bytes == sum(array.nbytes for array in arrays)


@pytest.mark.parametrize("scheme", NAMES)
def test_bytes_equal_the_saved_arrays(scheme: str) -> None:
    _, cache = run(scheme, 500)
    shared: dict[str, int] = {}
    held = 0
    for layer in cache:
        for name, array in layer.state[1].items():
            if "shared" in name:
                shared[name] = array.nbytes
            else:
                held += array.nbytes
    assert memory_report(cache).bytes == held + sum(shared.values())


@pytest.mark.parametrize("scheme", NAMES)
def test_fp16_bytes_equal_mlx_lms_own_cache(scheme: str) -> None:
    model, cache = run(scheme, 512)
    theirs = mlx_cache.make_prompt_cache(model)
    mx.eval(model(tiny.tokens(512), cache=theirs))
    assert memory_report(cache).fp16_bytes == sum(layer.nbytes for layer in theirs) / 2  # theirs is float32


@pytest.mark.parametrize("target", NAMES)
@pytest.mark.parametrize("head_dim", [64, 80])
@pytest.mark.parametrize("count", [10, 131, 164, 500])
def test_predictions_equal_real_conversions(target: str, head_dim: int, count: int) -> None:
    _, cache = run("fp16", count, head_dim=head_dim)
    predicted = predict_bytes(memory_report(cache), parse_scheme(target))
    assert predicted == memory_report(convert(cache, target)).bytes


def test_ratio_and_savings_follow_from_the_bytes() -> None:
    _, cache = run("turbo0v2", 900)
    report = memory_report(cache)
    assert report.ratio == report.fp16_bytes / report.bytes > 1.3
    assert report.saved_bytes == report.fp16_bytes - report.bytes
    assert report.key_bytes + report.value_bytes + report.shared_bytes == report.bytes
    assert report.to_json()["layers_compressed"] == 2


def test_uncompressed_layers_have_a_reason() -> None:
    config = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 64}
    _, cache = run("turbo0v4", 300, **config)
    report = memory_report(cache)
    sliding, full = report.layers
    assert (sliding.kind, full.kind) == ("sliding", "full")
    assert sliding.reason and full.reason is None
    assert (report.layers_compressed, report.layers_total) == (1, 2)
    assert predict_bytes(report, parse_scheme("fp16")) == report.fp16_bytes


def test_an_empty_cache_reports_nothing() -> None:
    report = memory_report(make_prompt_cache(tiny.llama(), "turbo0v4"))
    assert (report.bytes, report.fp16_bytes, report.ratio, report.tokens) == (0, 0, 1.0, 0)

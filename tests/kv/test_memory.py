"""The gauge's figures, counted a second way."""

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
    # Computing in float32 is quick on a CPU; what is stored is 16 bits all the same.
    model = tiny.llama(**config)
    cache = make_prompt_cache(model, scheme, dtype=mx.float16)
    tokens = tiny.tokens(count)
    for part in (tokens[:, :-1], tokens[:, -1:]):
        mx.eval(model(part, cache=cache), [layer.state for layer in cache])
    return model, cache


def reachable_arrays(roots: list[Any]) -> dict[int, mx.array]:
    """Every array that can be reached from an object, found by the garbage collector and not by our own
    bookkeeping.
    """
    seen: set[int] = set()
    found: dict[int, mx.array] = {}
    todo = list(roots)
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, type):
            continue
        seen.add(id(thing))
        if isinstance(thing, mx.array):
            found[id(thing)] = thing
        elif isinstance(thing, (list, tuple, dict)):
            todo += thing.values() if isinstance(thing, dict) else thing
        elif type(thing).__module__.startswith(("tqchat.", "mlx_lm.")):
            todo += vars(thing).values()
    gc.collect()
    return found


@pytest.mark.parametrize("scheme", NAMES)
@pytest.mark.parametrize("count", [20, 140, 500])
def test_allocated_bytes_are_those_of_every_live_array(scheme: str, count: int) -> None:
    _, cache = run(scheme, count)
    arrays = reachable_arrays(cache).values()
    assert memory_report(cache).allocated_bytes == sum(array.nbytes for array in arrays)


@pytest.mark.parametrize("scheme", NAMES)
def test_bytes_are_those_of_the_saved_arrays_that_hold_tokens(scheme: str) -> None:
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
def test_fp16_bytes_are_what_mlx_lms_own_cache_takes_for_the_same_tokens(scheme: str) -> None:
    model, cache = run(scheme, 512)
    theirs = mlx_cache.make_prompt_cache(model)
    mx.eval(model(tiny.tokens(512), cache=theirs))
    assert memory_report(cache).fp16_bytes == sum(layer.nbytes for layer in theirs) / 2  # theirs is float32


@pytest.mark.parametrize("target", NAMES)
@pytest.mark.parametrize("head_dim", [64, 80])
@pytest.mark.parametrize("count", [10, 131, 164, 500])
def test_predictions_equal_what_a_conversion_then_takes(target: str, head_dim: int, count: int) -> None:
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


def test_layers_that_stay_as_they_are_say_why() -> None:
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

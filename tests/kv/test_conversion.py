"""In-place conversion of a live cache."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from tests.kv import families, tiny
from tests.kv.test_cache import logits
from tqchat.kv import conversion, convert, convert_in_place, make_prompt_cache, memory_report
from tqchat.kv.cache import SchemeCache
from tqchat.kv.conversion import ConversionFailed, ConversionStopped
from tqchat.kv.scheme import parse_scheme


def filled(scheme: str, model: Any, count: int = 320) -> list[Any]:
    cache = make_prompt_cache(model, scheme)
    logits(model, cache, tiny.tokens(count), count - 1)
    return cache


@pytest.mark.parametrize("before, after", [("fp16", "turbo4"), ("turbo4", "turbo0v2"), ("turbo4", "fp16")])
def test_in_place_conversion_equals_a_converted_copy(before: str, after: str, tmp_path: Path) -> None:
    model = tiny.llama()
    cache = filled(before, model)
    expected = convert(copy.deepcopy(cache), after)
    same = cache
    convert_in_place(cache, after, folder=tmp_path)
    assert same is cache and memory_report(cache).scheme == after
    assert not list(tmp_path.iterdir())
    more = tiny.tokens(40, seed=3)
    if before == "fp16":  # a deep copy has no rotary embedding, so its fit differs
        assert mx.isfinite(logits(model, cache, more)).all()
    else:
        assert mx.array_equal(logits(model, cache, more), logits(model, expected, more))


@pytest.mark.parametrize("family", ["llama", "llama with windows", "qwen3_next", "gpt_oss"])
@pytest.mark.parametrize("how", ["stop", "error"])
def test_a_stop_or_an_error_half_way_leaves_the_cache_unchanged(
    family: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = families.model(family)
    cache, twin = (filled("turbo4", model, 150) for _ in range(2))
    calls = 0

    def stopped() -> bool:
        nonlocal calls
        calls += 1
        return how == "stop" and calls == len(cache)

    real = conversion.convert_layer

    def fails(layer: Any, scheme: Any, index: int) -> Any:
        if how == "error" and layer is cache[-1]:
            raise RuntimeError("no memory left")
        return real(layer, scheme, index)

    monkeypatch.setattr(conversion, "convert_layer", fails)
    with pytest.raises(ConversionStopped if how == "stop" else RuntimeError):
        convert_in_place(cache, "turbo0v4", stopped=stopped, folder=tmp_path)
    assert not list(tmp_path.iterdir())
    assert memory_report(cache).scheme == "turbo4"
    more = tiny.tokens(40, seed=3)
    assert mx.array_equal(logits(model, cache, more), logits(model, twin, more))


def test_a_folder_that_cannot_be_written_leaves_the_cache_unchanged(tmp_path: Path) -> None:
    model = tiny.llama()
    cache = filled("turbo0v4", model)
    with pytest.raises(ConversionFailed):
        convert_in_place(cache, "turbo4", folder=tmp_path / "none")
    assert memory_report(cache).scheme == "turbo0v4"


def test_peak_memory_is_less_than_old_plus_new_cache(tmp_path: Path) -> None:
    layers, tokens = 16, 8192
    cache = []
    for seed in range(layers):
        layer = SchemeCache(parse_scheme("fp16"))
        x = mx.random.normal((2, 1, 2, tokens, 64), key=mx.random.key(seed)).astype(mx.float16)
        layer.update_and_fetch(x[0], x[1])
        mx.eval(layer.state)
        cache.append(layer)
        del x
    mx.clear_cache()
    held = memory_report(cache)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    convert_in_place(cache, "affine8", folder=tmp_path)
    # Less than the new cache: one layer and the temporaries of encoding it.
    assert mx.get_peak_memory() - before < 5 * held.bytes // layers < memory_report(cache).bytes
    assert mx.get_active_memory() < before

from __future__ import annotations

import itertools

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import cache as mlx_cache

from tests.kv import families, tiny
from tests.kv.test_cache import logits
from tqchat.kv import UnknownScheme, conversion, convert, convert_in_place, make_prompt_cache, memory_report

NAMES = ["fp16", "affine4", "turbo0v2", "turbo8v4", "turbo4"]


@pytest.mark.parametrize("before, after", list(itertools.permutations(NAMES, 2)))
def test_a_converted_cache_continues_with_close_logits(before: str, after: str) -> None:
    model, tokens = tiny.llama(), tiny.tokens(330)
    cache = make_prompt_cache(model, before)
    logits(model, cache, tokens[:, :320], 319)
    new = convert(cache, after)
    assert memory_report(new).scheme == after
    assert [layer.offset for layer in new] == [320, 320]
    compressed = memory_report(new).packed_tokens > 0
    assert compressed is (after != "fp16")
    raw = logits(model, mlx_cache.make_prompt_cache(model), tokens, 320)[:, 320:]
    out = logits(model, new, tokens[:, 320:])
    assert mx.sqrt((out - raw).square().mean() / raw.square().mean()).item() < 0.5


@pytest.mark.parametrize("before, after", [("turbo4", "fp16"), ("fp16", "turbo4"), ("turbo4", "turbo3")])
def test_a_cache_trimmed_to_nothing_converts_to_an_empty_one(before: str, after: str) -> None:
    model, tokens = tiny.llama(), tiny.tokens(330)
    cache = make_prompt_cache(model, before)
    logits(model, cache, tokens[:, :320], 319)
    for layer in cache:
        layer.trim(320)
    new = convert(cache, after)
    assert [layer.offset for layer in new] == [0, 0]
    fresh = make_prompt_cache(model, after)
    assert mx.array_equal(logits(model, new, tokens, 320), logits(model, fresh, tokens, 320))


def test_the_old_cache_is_unchanged() -> None:
    model, tokens = tiny.llama(), tiny.tokens(330)
    cache, twin = make_prompt_cache(model, "turbo0v4"), make_prompt_cache(model, "turbo0v4")
    for one in (cache, twin):
        logits(model, one, tokens[:, :320], 319)
    new = convert(cache, "fp16")
    logits(model, new, tokens[:, 320:])
    assert mx.array_equal(logits(model, cache, tokens[:, 320:]), logits(model, twin, tokens[:, 320:]))


def test_converting_to_a_finer_scheme_keeps_rounding_errors() -> None:
    model, tokens = tiny.llama(), tiny.tokens(330)
    cache = make_prompt_cache(model, "turbo0v2")
    logits(model, cache, tokens[:, :320], 319)
    up = convert(cache, "fp16")
    for old, new in zip(cache, up, strict=True):
        assert mx.array_equal(old.value_side.fetch(mx.float32), new.value_side.fetch(mx.float32))


def test_keys_of_the_same_format_are_copied_bit_for_bit() -> None:
    model, tokens = tiny.llama(), tiny.tokens(330)
    cache = make_prompt_cache(model, "turbo8v4")
    logits(model, cache, tokens, 319)
    new = convert(cache, "turbo8v2")
    for old, fresh in zip(cache[0].key_side.packed.view(), new[0].key_side.packed.view(), strict=True):
        assert mx.array_equal(old, fresh)


def test_a_cache_made_by_mlx_lm_can_be_converted() -> None:
    model, tokens = tiny.llama(), tiny.tokens(330)
    cache = mlx_cache.make_prompt_cache(model)
    logits(model, cache, tokens[:, :320], 320)
    report = memory_report(convert(cache, "turbo0v4"))
    assert (report.tokens, report.layers_compressed) == (320, 2)


def test_an_empty_cache_converts_to_an_empty_one() -> None:
    cache = convert(make_prompt_cache(tiny.llama(), "fp16"), "turbo0v4")
    assert all(layer.empty() for layer in cache) and memory_report(cache).scheme == "turbo0v4"


def test_an_unknown_scheme_changes_nothing() -> None:
    with pytest.raises(UnknownScheme):
        convert(make_prompt_cache(tiny.llama(), "fp16"), "turbo17")


@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
@pytest.mark.parametrize("before, after", [("turbo4", "turbo2"), ("fp16", "turbo2"), ("turbo0v4", "turbo4")])
@pytest.mark.parametrize("in_place", [True, False])
def test_an_empty_cache_that_was_converted_is_fitted_like_a_new_one(
    family: str, before: str, after: str, in_place: bool
) -> None:
    model = families.model(family)
    cache, new = make_prompt_cache(model, before), make_prompt_cache(model, after)
    if in_place:
        convert_in_place(cache, after)
    else:
        cache = convert(cache, after)
    for one in (cache, new):
        logits(model, one, tiny.tokens(120), 119)
    states = [dict(tree_flatten([layer.state for layer in one])) for one in (cache, new)]
    assert states[0].keys() == states[1].keys()
    for name, expected in states[1].items():
        found = states[0][name]
        assert mx.array_equal(found, expected) if isinstance(expected, mx.array) else found == expected


def test_a_cache_is_converted_in_place_on_a_disk_that_is_nearly_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "FREE_DISK_FACTOR", 1 << 60)
    model, tokens = tiny.llama(), tiny.tokens(330)
    cache = make_prompt_cache(model, "turbo4")
    logits(model, cache, tokens[:, :320], 319)
    expected = convert(cache, "turbo2")
    convert_in_place(cache, "turbo2")
    assert memory_report(cache).scheme == "turbo2"
    rest = tokens[:, 320:]
    assert mx.array_equal(logits(model, cache, rest), logits(model, expected, rest))

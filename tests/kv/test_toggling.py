"""Changing a cache's scheme there and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import RotatingKVCache

from tests.kv import tiny
from tests.kv.storage.disks import Disk
from tests.kv.test_cache import logits
from tqchat.kv import checkpoint, conversion, convert, convert_in_place, make_prompt_cache, memory_report
from tqchat.kv.cache import SchemeCache
from tqchat.kv.scheme import TILE, parse_scheme
from tqchat.kv.storage.rounding_history import Rounding
from tqchat.kv.window import as_window

Change = Callable[[list[Any], str], list[Any]]

PAIRS = [
    ("turbo2", "turbo3"),
    ("turbo4", "turbo3"),
    ("affine4", "turbo4"),
    ("turbo4", "fp16"),
    ("affine8", "turbo4"),
    ("turbo8v2", "turbo0v4"),
    ("turbo4", "turbo4v2"),
]


@pytest.fixture(autouse=True)
def written_behind(disk: Disk) -> None:
    """Tiny caches are written by another thread, as large ones are."""


def in_place(cache: list[Any], scheme: str) -> list[Any]:
    convert_in_place(cache, scheme)
    return cache


def held(cache: list[Any], count: int) -> list[mx.array]:
    """The first ``count`` tokens of every side, decoded."""
    return [side.fetch(mx.float32)[:, :, :count] for layer in cache for side in layer.sides]


def read(model: Any, cache: list[Any], tokens: mx.array) -> None:
    for at in range(tokens.shape[1]):
        logits(model, cache, tokens[:, at : at + 1])


def error(cache: list[Any], raw: list[Any]) -> float:
    """Relative error of all tokens against a cache that was never rounded."""
    pairs = list(zip(held(cache, 1 << 20), held(raw, 1 << 20), strict=True))
    off: Any = sum((a - b).square().sum() for a, b in pairs) / sum(b.square().sum() for _, b in pairs)
    return float(off.item())


@pytest.mark.parametrize("change", [in_place, convert])
@pytest.mark.parametrize(("first", "other"), [*PAIRS, *(pair[::-1] for pair in PAIRS[:3])])
def test_going_back_gives_what_was_there(first: str, other: str, change: Change) -> None:
    model, tokens = tiny.llama(), tiny.tokens(330)
    cache = make_prompt_cache(model, first)
    logits(model, cache, tokens[:, :293], 292)
    packed = 4 + min(parse_scheme(name).packable(293 - 4) for name in (first, other))
    before = held(cache, packed)
    for name in (other, first):
        cache = change(cache, name)
        read(model, cache, tokens[:, 293:300])  # too few for another tile
    assert all(mx.array_equal(a, b) for a, b in zip(before, held(cache, packed), strict=True))
    assert all(layer.rounding["key"].before(packed) == Rounding() for layer in cache)


def there_and_back(cache: list[Any], other: str, disk: Disk) -> int:
    """Change the scheme twice; returns the bytes written."""
    written, first = disk.written, cache[0].scheme.name
    for scheme in (other, first):
        in_place(cache, scheme)
        for layer in cache:
            for _, _, side in layer.earlier:
                side.file.wait()
    return disk.written - written


@pytest.mark.parametrize("since", ["nothing", "a token", "a trim", "other tokens"])
@pytest.mark.parametrize(("first", "other"), [("fp16", "turbo4"), ("turbo4", "turbo0v2"), ("turbo3", "fp16")])
def test_only_what_has_changed_is_written_again(disk: Disk, first: str, other: str, since: str) -> None:
    model, tokens = tiny.llama(), tiny.tokens(301)
    cache = make_prompt_cache(model, first)
    logits(model, cache, tokens[:, :300], 299)
    assert there_and_back(cache, other, disk) > 0
    if since in ("a trim", "other tokens"):
        for layer in cache:
            layer.trim(1)
    if since in ("a token", "other tokens"):
        read(model, cache, tokens[:, 300:])
    before = held(cache, 1 << 20)
    assert (there_and_back(cache, other, disk) > 0) == (since != "nothing")
    for _ in range(2):
        assert all(mx.array_equal(a, b) for a, b in zip(before, held(cache, 1 << 20), strict=True))
        assert there_and_back(cache, other, disk) == 0


@pytest.mark.parametrize(("first", "other"), PAIRS)
def test_errors_do_not_grow_with_the_number_of_changes(first: str, other: str) -> None:
    model, tokens = tiny.llama(), tiny.tokens(400)
    cache, unchanged = make_prompt_cache(model, first), make_prompt_cache(model, first)
    raw = make_prompt_cache(model, "fp16")
    for one in (cache, unchanged, raw):
        logits(model, one, tokens[:, :300], 299)
    errors = []
    for number in range(13):
        cache = convert(cache, other if number % 2 == 0 else first)
        if number % 2 == 0:
            errors.append(error(cache, raw) / error(convert(unchanged, other), raw))
        for one in (cache, unchanged, raw):
            read(model, one, tokens[:, 300 + 5 * number : 305 + 5 * number])
    # Keys that both schemes have at 4 bits leave the tail of 72 tokens with the first change.
    assert max(errors) < (1.4 if other == "turbo4v2" else 1.2), errors


@pytest.mark.parametrize(("first", "other", "most"), [("turbo2", "turbo3", 1.2), ("turbo4", "turbo3", 1.2)])
def test_without_a_file_errors_stay_bounded(
    first: str, other: str, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "FREE_DISK_FACTOR", 1 << 60)  # the disk is too full to keep tokens
    model, tokens = tiny.llama(), tiny.tokens(300)
    cache, raw = make_prompt_cache(model, first), make_prompt_cache(model, "fp16")
    for one in (cache, raw):
        logits(model, one, tokens, 299)
    errors = []
    for number in range(13):
        assert all(layer.rounding["key"].times == number for layer in cache)
        cache = convert(cache, other if number % 2 == 0 else first)
        errors.append(error(cache, raw))
    assert max(errors[::2]) < most * errors[0], errors
    assert memory_report(cache).rounded_times == 13


@pytest.mark.parametrize("scheme", ["turbo3", "turbo0v4", "affine4"])
def test_a_coarse_scheme_in_between_costs_nothing(scheme: str) -> None:
    model, tokens = tiny.llama(), tiny.tokens(320)
    raw, cache = (make_prompt_cache(model, name) for name in ("fp16", "turbo4"))
    for one in (cache, raw):
        logits(model, one, tokens[:, :300], 299)
    directly = error(convert(cache, scheme), raw)
    convert_in_place(cache, "turbo2")
    convert_in_place(cache, scheme)
    assert error(cache, raw) < 1.02 * directly
    assert memory_report(cache).rounded_bits[1] == (4 if scheme == "affine4" else 16)
    for one in (cache, raw):
        read(model, one, tokens[:, 300:])
    assert error(cache, raw) < 1.2 * directly


def test_trimmed_tokens_do_not_come_back() -> None:
    model, tokens, others = tiny.llama(), tiny.tokens(300), tiny.tokens(150, seed=9)
    cache = make_prompt_cache(model, "turbo4")
    logits(model, cache, tokens, 299)
    before = held(cache, 180)
    convert_in_place(cache, "turbo3")
    for layer in cache:
        layer.trim(120)
    logits(model, cache, others, 149)
    since = held(cache, 330)
    convert_in_place(cache, "turbo4")
    assert [layer.offset for layer in cache] == [330, 330]
    now = held(cache, 330)
    assert all(mx.array_equal(a, b[:, :, :180]) for a, b in zip(before, now, strict=True))
    for a, b in zip(since, now, strict=True):
        assert mx.abs(a[:, :, 180:] - b[:, :, 180:]).square().mean() < 0.1 * a[:, :, 180:].square().mean()


def test_a_window_goes_back_to_what_it_still_holds() -> None:
    model = tiny.llama(layer_types=["sliding_attention", "full_attention"], sliding_window=256)
    tokens = tiny.tokens(400)
    cache = make_prompt_cache(model, "turbo4")
    logits(model, cache, tokens[:, :330], 329)
    lengths = [layer.key_side.length for layer in cache]
    before = held(cache, 1 << 20)
    convert_in_place(cache, "turbo3")
    read(model, cache, tokens[:, 330:340])
    convert_in_place(cache, "turbo4")
    assert all(layer.offset == 340 for layer in cache)
    sides = [side for layer in cache for side in layer.sides]
    for old, side, length in zip(before, sides, [n for n in lengths for _ in range(2)], strict=True):
        now = side.fetch(mx.float32)
        dropped = length + 10 - now.shape[2]  # tokens that have left the window
        unpacked = parse_scheme("turbo4").tail + TILE
        assert mx.array_equal(
            now[:, :, : length - unpacked - dropped], old[:, :, dropped : length - unpacked]
        )


@pytest.mark.parametrize("first", ["fp16", "turbo4"])
@pytest.mark.parametrize("how", ["trim", "window"])
def test_as_many_other_tokens_are_not_taken_for_those_in_the_file(how: str, first: str) -> None:
    kinds = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 128}
    model = tiny.llama(**(kinds if how == "window" else {}))
    cache = make_prompt_cache(model, "turbo3")
    logits(model, cache, tiny.tokens(300), 299)
    for scheme in (first, "turbo3"):
        cache = convert(cache, scheme)
    if how == "trim":
        for layer in cache:
            layer.trim(10)
    read(model, cache, tiny.tokens(10, seed=9))
    cache = convert(cache, first)
    before = held(cache, 1 << 20)
    for scheme in ("turbo3", first):
        cache = convert(cache, scheme)
    assert all(mx.array_equal(a, b) for a, b in zip(before, held(cache, 1 << 20), strict=True))


@pytest.mark.parametrize("first", ["fp16", "turbo4"])
def test_windows_and_checkpoints_go_back_as_well(first: str) -> None:
    model = tiny.llama(layer_types=["sliding_attention", "full_attention"], sliding_window=256)
    cache = make_prompt_cache(model, first)
    logits(model, cache, tiny.tokens(300), 299)
    if first == "turbo4":
        cache = convert(cache, first)  # packs what the prompt left raw
    taken = [checkpoint.take(cache, 300)]
    assert (type(cache[0]) is RotatingKVCache) == (first == "fp16")
    (before,) = stored(cache[:1])
    (other,) = stored(convert(cache[:1], "turbo3"))
    for _ in range(2):
        cache, taken = convert(cache, "turbo3"), checkpoint.convert(taken, parse_scheme("turbo3"))
        assert stored(cache[:1]) == stored(taken[0].layers.values()) == [other]
        cache, taken = convert(cache, first), checkpoint.convert(taken, parse_scheme(first))
        assert stored(cache[:1]) == stored(taken[0].layers.values()) == [before]


def stored(layers: Iterable[Any]) -> list[list[Any]]:
    """The last 256 tokens of each layer's keys and values, as they are stored."""
    kept = []
    for layer in layers:
        window = layer if isinstance(layer, SchemeCache) else as_window(layer)
        kept.append([x[:, :, -256:].astype(mx.float32).tolist() for x in window.decoded()])
    return kept


def test_the_file_has_no_name_and_goes_with_the_cache(tmp_path: Path) -> None:
    def open_files() -> int:
        return sum(1 for _ in Path("/dev/fd").iterdir())

    model = tiny.llama()
    cache = make_prompt_cache(model, "turbo4")
    logits(model, cache, tiny.tokens(300), 299)
    before = open_files()
    for _ in range(4):
        for name in ("turbo3", "fp16", "turbo4"):
            convert_in_place(cache, name, folder=tmp_path)
    assert not list(tmp_path.iterdir())
    assert open_files() <= before + 3  # one of each other scheme, and of the last change
    assert memory_report(cache).earlier
    for layer in cache:
        layer.trim(300)
    assert open_files() == before
    logits(model, cache, tiny.tokens(300), 299)
    for name in ("turbo3", "turbo4"):
        convert_in_place(cache, name, folder=tmp_path)
    assert open_files() > before and cache[0].stored_side("key") is not None
    for layer in cache:
        layer.forget_earlier()
    assert open_files() == before


def test_rounding_is_told_by_tokens_and_saved_with_the_cache() -> None:
    model, tokens = tiny.llama(), tiny.tokens(330)
    cache = make_prompt_cache(model, "turbo2")
    logits(model, cache, tokens[:, :300], 299)
    convert_in_place(cache, "turbo4")
    report = memory_report(cache)
    assert report.rounded_bits == (2, 2) and report.rounded_tokens == 128  # fine ones have more than 4 bits
    restored = memory_report([SchemeCache.from_state(layer.state) for layer in cache])
    assert (restored.rounded_tokens, restored.rounded_bits) == (report.rounded_tokens, (2, 2))
    convert_in_place(cache, "affine8")
    assert memory_report(cache).rounded_bits == (2, 2)
    convert_in_place(cache, "turbo2")
    assert memory_report(cache).rounded_tokens == 0
    convert_in_place(cache, "turbo4")
    assert memory_report(cache).rounded_tokens == report.rounded_tokens
    for layer in cache:
        layer.trim(300)
    assert memory_report(cache).rounded_tokens == 0


def test_runs_of_rounding() -> None:
    rounding = Rounding().lowered(4, 100, 4).lowered(4, 50, 2)
    assert rounding.runs == ((4, 16, 0), (50, 2, 2), (100, 4, 1))
    assert list(rounding.spans(40, 120)) == [(40, 50, 2, 2), (50, 100, 4, 1), (100, 120, 16, 0)]
    assert rounding.before(60).runs == ((4, 16, 0), (50, 2, 2), (60, 4, 1))
    assert rounding.then(20, Rounding().lowered(0, 30, 3)).runs == ((4, 16, 0), (20, 2, 2), (30, 3, 1))
    assert rounding.lowered(0, 200, 16) == rounding and rounding.times == 2
    assert Rounding.from_json([[4, 16], [50, 2]]).runs == ((4, 16, 1), (50, 2, 1))  # of older versions
    assert (rounding.at_most(3).tokens, rounding.fewest) == (46, 2)
    assert Rounding.from_json([list(run) for run in rounding.runs]) == rounding
    for damaged in ([[5, 4], [5, 3]], [[1, 0]], [[float("inf"), 4]], [[3, 17]], [["3", 4]]):
        with pytest.raises(ValueError):
            Rounding.from_json(damaged)


@pytest.mark.parametrize("scheme", ["turbo4", "turbo0v2", "affine4"])
def test_after_a_trim_to_nothing_packed_the_fit_starts_anew(scheme: str) -> None:
    model, tokens, others = tiny.llama(), tiny.tokens(300), tiny.tokens(250, seed=7)
    cache = make_prompt_cache(model, scheme)
    logits(model, cache, tokens, 299)
    for layer in cache:
        layer.trim(297)
    fresh = make_prompt_cache(model, scheme)
    logits(model, fresh, tokens[:, :3], 3)
    if scheme == "turbo4":  # a fit needs the queries of all tokens
        for layer, new in zip(cache, fresh, strict=True):
            assert not layer.key_side.format.fitted
            layer.queries = new.queries
    for one in (cache, fresh):
        logits(model, one, others, 249)
    pairs = zip(cache, fresh, strict=True)
    for layer, new in pairs:
        for side, twin in zip(layer.sides, new.sides, strict=True):
            assert all(
                mx.allclose(array, twin.format.fitted[name], rtol=1e-2, atol=1e-3)
                for name, array in side.format.fitted.items()
            )


@pytest.mark.parametrize("before", ["affine8", "affine4", "turbo8v2"])
def test_keys_of_an_affine_scheme_are_fitted_to_the_queries_that_it_was_fitted_to(before: str) -> None:
    keys, values, queries = mx.random.normal((3, 1, 2, 300, 64), key=mx.random.key(2))
    scale = mx.exp(mx.random.normal((64,), key=mx.random.key(3)))
    turbo3 = replace(parse_scheme("turbo3"), fine=0)
    caches = [SchemeCache(scheme) for scheme in (turbo3, parse_scheme(before))]
    for cache in caches:
        cache.append(keys, values)
        cache.observe(queries * scale)
        cache.pack_due()
    direct, (converted,) = caches[0], convert(caches[1:], turbo3)
    assert converted.earlier_balance is None
    fits = [cache.key_side.format.fitted for cache in (direct, converted)]
    assert mx.allclose(*(fit["balance"] for fit in fits), rtol=0.05)
    assert mx.allclose(*(fit["metric"] for fit in fits), rtol=0.1)
    off, direct_off = (
        ((cache.decoded()[0] - keys) * scale).square().mean().item() for cache in (converted, direct)
    )
    assert off < {"affine4": 1.6}.get(before, 1.1) * direct_off

"""The fine part: tokens at 6 bits between the packed ones and the tail."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import pytest

from tests.kv import tiny
from tests.kv.test_cache import logits
from tqchat.kv import convert, load, make_prompt_cache, memory_report, ranges, save, untrusted
from tqchat.kv.attention import reference
from tqchat.kv.cache import SchemeCache
from tqchat.kv.codec.base import RawFormat
from tqchat.kv.codec.turbo import TurboFormat
from tqchat.kv.scheme import FINE, FINE_BITS, MIN_FIT_TOKENS, SCHEMES, TILE, FormatSpec, Scheme, parse_scheme
from tqchat.kv.storage import side as side_module
from tqchat.kv.storage.rounding_history import NO_ROUNDING
from tqchat.kv.storage.side import Side
from tqchat.kv.window import WindowCache

HEADS, DIM = 2, 32
FINE_NAMES = ["turbo2", "turbo3", "turbo4v2", "trellis3"]


def vectors(count: int, seed: int = 3, dim: int = DIM) -> mx.array:
    return mx.random.normal((1, HEADS, count, dim), key=mx.random.key(seed)).astype(mx.float16)


def counts(side: Side) -> dict[str, int]:
    return {name: store.length for name, store in side.stores.items()}


def lockstep(cache: SchemeCache) -> None:
    keys, values = cache.sides
    if "raw" not in (keys.spec.kind, values.spec.kind):
        assert counts(keys) == counts(values)


def filled(scheme: str | Scheme, count: int, dim: int = DIM) -> SchemeCache:
    """A cache of a prompt, packed after its last token."""
    cache = SchemeCache(parse_scheme(scheme) if isinstance(scheme, str) else scheme)
    cache.update_and_fetch(vectors(count - 1, 1, dim), vectors(count - 1, 2, dim))
    cache.update_and_fetch(vectors(1, 4, dim), vectors(1, 5, dim))
    return cache


def step(*caches: SchemeCache, seed: int) -> None:
    for cache in caches:
        cache.update_and_fetch(vectors(1, seed), vectors(1, seed + 1000))


def same(one: SchemeCache, other: SchemeCache) -> bool:
    """Whether two caches hold the same arrays, bit for bit."""
    (_, left), (_, right) = one.state, other.state
    return left.keys() == right.keys() and all(mx.array_equal(left[name], right[name]) for name in left)


class Letters:
    """The rule in another form: a letter for each token, of the part that it is in."""

    def __init__(self, scheme: Scheme) -> None:
        self.scheme, self.tokens = scheme, ""

    def append(self, count: int) -> None:
        self.tokens += "r" * count

    def pack(self, tiles_at_once: int = 1) -> None:
        sinks = 0 if "s" in self.tokens else self.scheme.sinks
        raw = self.tokens.count("r") - sinks
        if raw < self.scheme.tail + tiles_at_once * TILE:
            return
        if not set(self.tokens) & {"p", "f"} and raw < MIN_FIT_TOKENS:
            return
        self.tokens = self.tokens.replace("r", "s", sinks)
        while self.tokens.count("r") >= self.scheme.tail + TILE:
            self.tokens = self.tokens.replace("r", "f", TILE)
        while self.tokens.count("f") >= self.scheme.fine + TILE:
            self.tokens = self.tokens.replace("f", "p", TILE)

    def trim(self, count: int) -> None:
        self.tokens = self.tokens[: max(0, len(self.tokens) - count)]
        if not set(self.tokens) & {"p", "f"}:
            self.tokens = "r" * len(self.tokens)

    @property
    def counts(self) -> dict[str, int]:
        names = {"sinks": "s", "packed": "p", "fine": "f", "recent": "r"}
        return {name: self.tokens.count(letter) for name, letter in names.items()}


def test_which_schemes_have_a_fine_part() -> None:
    expected = {
        **dict.fromkeys(("turbo2", "trellis2"), (16, 144)),
        **dict.fromkeys(("turbo3v2", "turbo4v2", "trellis4v2"), (16, 160)),
        **dict.fromkeys(("turbo3", "trellis3"), (16, 208)),
    }
    assert {s.name: (s.tail, s.fine) for s in SCHEMES if s.fine} == expected
    assert all(s.tail >= 56 for s in SCHEMES if not s.fine)
    assert parse_scheme("turbo1").fine == 144 and parse_scheme("turbo5v3").fine == 160
    assert not any(parse_scheme(name).fine for name in ("turbo8v2", "turbo0v1", "turbo5v4", "turbo6"))


@pytest.mark.parametrize("name", ["turbo2", "turbo3v2", "turbo3"])
def test_counts_at_every_length(name: str) -> None:
    scheme = parse_scheme(name)
    step_by_step, rule = Side(scheme, "value"), Letters(scheme)
    x = vectors(601)
    for length in range(601):
        if length:
            step_by_step.append(x[:, :, length : length + 1])
            rule.append(1)
        before = counts(step_by_step)
        due = step_by_step.is_due
        until = step_by_step.tokens_until_due
        step_by_step.pack_due()
        rule.pack()
        assert counts(step_by_step) == rule.counts
        assert due == (counts(step_by_step) != before) == (until <= 0)
        if length % 7 == 0 and length:
            at_once = Side(scheme, "value")
            at_once.append(x[:, :, :length])
            at_once.pack_due()
            assert counts(at_once) == rule.counts


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["turbo2", "turbo3v2"])
def test_counts_and_order_after_random_appends_and_trims(name: str, seed: int) -> None:
    scheme, draw = parse_scheme(name), random.Random(seed)
    role: Literal["key", "value"] = draw.choice(["key", "value"])
    side, rule = Side(scheme, role), Letters(scheme)
    raw = mx.zeros((1, HEADS, 0, DIM), mx.float16)
    for number in range(60):
        if draw.random() < 0.35:
            count = min(draw.choice([1, 5, 20, 90, 250]), raw.shape[2])
            side.trim(count)
            rule.trim(count)
            raw = raw[:, :, : raw.shape[2] - count]
        else:
            x = vectors(draw.choice([1, 1, 3, 17, 60, 130]), 100 * seed + number)
            side.append(x)
            rule.append(x.shape[2])
            raw = mx.concatenate([raw, x], axis=2)
            if draw.random() < 0.8:
                side.pack_due()
                rule.pack()
        assert counts(side) == rule.counts
        if not raw.shape[2]:
            continue
        errors: Any = (side.fetch(mx.float32) - raw).square().mean(axis=(0, 1, 3)).tolist()
        limits = {"s": 0.0, "r": 0.0, "f": 0.02, "p": 0.6}
        assert all(error <= limits[letter] for error, letter in zip(errors, rule.tokens, strict=True))
        fitted = isinstance(side.format, TurboFormat)
        assert fitted == isinstance(side.fine_format, TurboFormat) == bool(side.encoded)


def test_on_a_gpu_four_tiles_are_packed_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_module, "_tokens_per_pack", lambda encoded: 4 * TILE if encoded >= 256 else TILE)
    scheme = parse_scheme("turbo3")
    side, rule = Side(scheme, "value"), Letters(scheme)
    x = vectors(900)
    for at in range(900):
        side.append(x[:, :, at : at + 1])
        rule.append(1)
        if side.is_due:
            side.pack_due()
        rule.pack(4 if rule.counts["packed"] + rule.counts["fine"] >= 256 else 1)
        assert counts(side) == rule.counts
    assert side.fine.length == 208 and side.packed.length > 256


@pytest.mark.parametrize("role", ["key", "value"])
@pytest.mark.parametrize("name", ["turbo3", "trellis2"])
def test_what_is_older_than_the_fine_part_is_encoded_from_raw(name: str, role: Any) -> None:
    side, x = Side(parse_scheme(name), role), vectors(600, 7)
    side.append(x)
    side.pack_due()
    first = 4 + side.packed.length
    direct = side.format.encode(x[:, :, 4:first])
    assert all(mx.array_equal(a, b) for a, b in zip(side.packed.view(), direct, strict=True))
    fine = side.fine_format.encode(x[:, :, first : first + side.fine.length])
    assert all(mx.array_equal(a, b) for a, b in zip(side.fine.view(), fine, strict=True))


@pytest.mark.parametrize("role", ["key", "value"])
@pytest.mark.parametrize("spec", [FormatSpec("turbo", 2), FormatSpec("trellis", 4), FINE])
def test_a_tile_that_leaves_the_fine_part_is_packed_from_it(spec: FormatSpec, role: Any) -> None:
    side = Side(replace(parse_scheme("turbo3"), key=spec, value=spec), role)
    side.append(vectors(600, 7))
    side.pack_due()
    packed, oldest = side.packed.length, tuple(mx.array(a) for a in side.fine.view(0, TILE))
    side.append(vectors(TILE, 8))
    side.pack_due()
    assert side.packed.length == packed + TILE
    # Codes of 6 bits move as they are.
    expected = oldest if spec == FINE else side.format.encode(side.fine_format.decode(oldest))
    assert all(mx.array_equal(a, b) for a, b in zip(side.packed.view(packed), expected, strict=True))


def test_the_fine_format_shares_rotation_and_fit() -> None:
    side = filled("turbo3", 300).key_side
    restored = Side(side.scheme, "key")
    restored.restore(side.arrays(), DIM, mx.float16)
    for one in (side, restored):
        packed, fine = one.format, one.fine_format
        assert isinstance(packed, TurboFormat) and isinstance(fine, TurboFormat)
        assert fine.rotation.array is packed.rotation.array and fine.centres is packed.centres
        assert fine.balance is packed.balance and fine.metric is packed.metric
        assert (fine.quantiser.bits, packed.quantiser.bits) == (FINE_BITS, 3)


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("count", [90, 230, 420])
@pytest.mark.parametrize("name", FINE_NAMES)
def test_attention_equals_that_over_the_fetched_vectors(
    name: str, count: int, blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if blocks:
        monkeypatch.setattr(reference, "BLOCK_BYTES", 1)
    for dim in (64, 80):
        cache = filled(name, count, dim)
        assert all(side.fine.length for side in cache.sides)
        assert bool(cache.key_side.packed.length) == (count > cache.scheme.fine + 36)
        keys, values = (side.fetch(mx.float32) for side in cache.sides)
        for rows, groups in ((1, 1), (1, 4), (5, 2)):
            queries = mx.random.normal((1, HEADS * groups, rows, dim), key=mx.random.key(9))
            mask = "causal" if rows > 1 else None
            expected = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=0.1, mask=mask)
            for _ in range(2):  # with what the first has prepared, too
                got = reference.attention(queries, *cache.sides, 0.1, mask)
                assert mx.abs(got - expected).max().item() < 2e-5


@pytest.mark.parametrize("count", [90, 230, 420])
@pytest.mark.parametrize("name", FINE_NAMES)
def test_a_saved_cache_goes_on_bit_for_bit(name: str, count: int, tmp_path: Path) -> None:
    live = filled(name, count)
    save(tmp_path / "c.safetensors", [live])
    (loaded,), _ = load(tmp_path / "c.safetensors")
    structure, arrays = ranges.rest([live], 0)
    end = ranges.immutable_tokens([live])
    assert end == (4 + live.key_side.packed.length if live.key_side.packed.length else 0)
    whole = ranges.rebuild(structure, [arrays], count)[0]
    caches = [live, loaded, whole]
    if end:
        parts = [ranges.immutable_arrays([live], 0, end - 9), ranges.immutable_arrays([live], end - 9, end)]
        structure, arrays = ranges.rest([live], end)
        caches.append(ranges.rebuild(structure, [*parts, arrays], count)[0])
    for number in range(70):
        assert all(same(live, other) for other in caches[1:])
        step(*caches, seed=number)
        if number == 40:
            for cache in caches:
                cache.trim(25)
    lockstep(live)


def test_immutable_tokens_alone_are_a_cache_without_a_fine_part() -> None:
    live = filled("turbo3", 500)
    end = ranges.immutable_tokens([live])
    structure, _ = ranges.rest([live], end)
    short = ranges.rebuild(structure, [ranges.immutable_arrays([live], 0, end)], end)[0]
    assert counts(short.key_side) == {"sinks": 4, "packed": end - 4, "fine": 0, "recent": 0}
    expected = live.decoded()[0][:, :, :end]
    assert mx.array_equal(short.decoded()[0], expected)
    for number in range(40):
        step(short, seed=number)
    assert counts(short.key_side) == {"sinks": 4, "packed": end - 4, "fine": 16, "recent": 24}
    lockstep(short)


@pytest.mark.parametrize("count", [100, 400])
def test_a_cache_of_a_version_without_fine_parts_goes_on_as_it_was(count: int) -> None:
    live = filled(replace(parse_scheme("turbo3"), tail=64, fine=0), count)
    text, arrays = live.state
    description = json.loads(text)
    del description["fine"]
    older = SchemeCache.from_state((json.dumps(description), arrays))
    assert (older.scheme.tail, older.scheme.fine) == (64, 0)
    for number in range(70):
        step(live, older, seed=number)
    assert same(live, older) and not older.key_side.fine.length


def test_a_trim_may_end_inside_the_fine_part_or_before_it() -> None:
    cache = filled("turbo3", 500)
    packed, decoded = cache.key_side.packed.length, cache.decoded()[0]
    for length, parts in (
        (480, {"sinks": 4, "packed": packed, "fine": 476 - packed, "recent": 0}),
        (4 + packed + 1, {"sinks": 4, "packed": packed, "fine": 1, "recent": 0}),
        (4 + packed, {"sinks": 4, "packed": packed, "fine": 0, "recent": 0}),
        (4 + packed - 7, {"sinks": 4, "packed": packed - 7, "fine": 0, "recent": 0}),
        (4, {"sinks": 0, "packed": 0, "fine": 0, "recent": 4}),
    ):
        cache.trim(cache.offset - length)
        assert counts(cache.key_side) == parts
        assert mx.array_equal(cache.decoded()[0], decoded[:, :, :length])
        lockstep(cache)
    for side in cache.sides:
        assert isinstance(side.format, RawFormat) and isinstance(side.fine_format, RawFormat)


def test_a_trim_to_nothing_fine_drops_the_fit_of_a_short_history() -> None:
    cache = filled("turbo2", 90)
    assert cache.key_side.fine.length == 64 and not cache.key_side.packed.length
    cache.trim(86)
    assert counts(cache.key_side) == {"sinks": 0, "packed": 0, "fine": 0, "recent": 4}
    assert isinstance(cache.key_side.format, RawFormat) and not cache.packed_tokens


@pytest.mark.parametrize(("window", "fine", "packed"), [(100, 80, 0), (300, 208, 64)])
def test_a_window_drops_its_first_tokens_from_whatever_part(window: int, fine: int, packed: int) -> None:
    cache = WindowCache(window, parse_scheme("turbo3"))
    raw: list[mx.array] = []
    for number in range(2 * window):
        raw.append(vectors(1, number))
        cache.update_and_fetch(raw[-1], vectors(1, number + 1000))
        assert cache.key_side.length == min(number + 1, window)
        lockstep(cache)
    assert abs(cache.key_side.fine.length - fine) <= TILE
    assert abs(cache.key_side.packed.length - packed) <= TILE
    expected = mx.concatenate(raw[-window:], axis=2)
    assert mx.square(cache.decoded()[0] - expected).mean().item() < 0.05
    restored = WindowCache.from_state(cache.state)
    for number in range(40):
        step(cache, restored, seed=5000 + number)
    assert same(cache, restored)


def test_a_snapshot_keeps_its_fine_tokens() -> None:
    cache = filled("turbo3", 500)
    before = cache.key_side.snapshot()
    decoded = before.fetch(mx.float32)
    mx.eval(decoded)
    for number in range(40):
        step(cache, seed=number)
    assert before.length == 500 and mx.array_equal(before.fetch(mx.float32), decoded)


@pytest.mark.parametrize("other", ["turbo2", "turbo3", "trellis3", "fp16", "affine4", "turbo8v3", "turbo4"])
@pytest.mark.parametrize("name", ["turbo2", "turbo3", "trellis3", "turbo4v2"])
def test_conversions_keep_both_sides_in_step(name: str, other: str) -> None:
    model, tokens = tiny.llama(), tiny.tokens(520)
    cache, raw = make_prompt_cache(model, name), make_prompt_cache(model, "fp16")
    for one in (cache, raw):
        logits(model, one, tokens[:, :400], 399)
    at = 400
    for scheme in (other, name, other, name):
        for number in range(at, at + 20):
            for one in (cache, raw):
                logits(model, one, tokens[:, number : number + 1])
        at += 20
        cache = convert(cache, scheme)
        for layer, plain in zip(cache, raw, strict=True):
            lockstep(layer)
            for side, truth in zip(layer.sides, plain.sides, strict=True):
                x = truth.fetch(mx.float32)
                assert (side.fetch(mx.float32) - x).square().mean() < 0.3 * x.square().mean()
            queries = mx.random.normal((1, 4, 1, 64), key=mx.random.key(9))
            keys, values = (side.fetch(mx.float32) for side in layer.sides)
            expected = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=0.1)
            got = reference.attention(queries, *layer.sides, 0.1, None)
            assert mx.abs(got - expected).max().item() < 1e-4


def test_a_side_of_a_scheme_without_a_fine_part_packs_the_one_it_gets() -> None:
    cache = [filled("turbo3", 500)]
    (converted,) = convert(cache, "turbo8v3")
    assert not converted.value_side.fine.length and cache[0].value_side.fine.length == 208
    lockstep(converted)


def test_fine_tokens_count_as_rounded_to_six_bits() -> None:
    cache = filled("turbo3", 500)
    packed = 4 + cache.key_side.packed.length
    runs = ((4, 16, 0), (packed, 3, 1), (packed + 208, FINE_BITS, 1))
    assert cache.rounding_now("key").runs == cache.rounding_now("value").runs == runs
    assert [span.bits for span in cache.key_side.rounded(NO_ROUNDING, 100).spans(103, 105)] == [16, 3]


def test_the_report_counts_fine_tokens_as_packed_and_by_their_bytes() -> None:
    cache = filled("turbo3", 500, 64)
    (layer,) = memory_report([cache]).layers
    keys = cache.key_side
    assert layer.packed_tokens == keys.packed.length + 208 and layer.tail_tokens == keys.recent.length
    per_head = (
        4 * 2 * 64
        + keys.packed.length * FormatSpec("turbo", 3).bytes_per_vector(64)
        + 208 * FINE.bytes_per_vector(64)
        + keys.recent.length * 2 * 64
    )
    fitted = sum(array.nbytes for array in keys.format.fitted.values())
    assert layer.key_bytes == HEADS * per_head + fitted + keys.working_bytes


def test_packed_prompts_release_their_raw_vectors() -> None:
    filled("turbo3", 300, 64)  # makes the tables
    before = mx.get_active_memory()
    cache = filled("turbo3", 6000, 64)
    mx.eval(cache.state)
    grown = mx.get_active_memory() - before
    raw = 2 * HEADS * 6000 * 64 * 2
    assert cache.nbytes < 0.35 * raw and grown < cache.nbytes + 0.05 * raw


def damaged(arrays: dict[str, mx.array], name: str, how: str) -> dict[str, mx.array]:
    array = arrays[name]
    changed = {
        "narrow": array[..., :0],
        "wide": mx.concatenate([array, array], axis=3),
        "dtype": array.astype(mx.float32),
        "heads": array[:, :1],
        "flat": array.reshape(-1),
        "tokens": array[:, :, :-1],
        "one token": array[:, :, :1],
    }
    return {
        **{k: a for k, a in arrays.items() if k != name},
        **({} if how == "absent" else {name: changed[how]}),
    }


@pytest.mark.parametrize("how", ["narrow", "wide", "dtype", "heads", "flat", "tokens", "one token", "absent"])
@pytest.mark.parametrize("name", ["key_fine_0", "key_fine_1", "value_fine_1"])
@pytest.mark.parametrize("count", [90, 500])
def test_fine_arrays_that_do_not_fit_are_refused(name: str, how: str, count: int) -> None:
    text, arrays = filled("turbo3", count).state
    assert SchemeCache.from_state((text, arrays)).offset == count
    with pytest.raises(ValueError):
        SchemeCache.from_state((text, damaged(arrays, name, how)))


@pytest.mark.parametrize("name", ["key_fitted_centres", "key_fitted_balance", "value_fitted_centre_scales"])
@pytest.mark.parametrize("how", ["narrow", "wide", "heads", "flat", "absent"])
def test_fitted_vectors_that_do_not_fit_are_refused_if_all_tokens_are_in_the_tail(
    name: str, how: str
) -> None:
    (cache,) = convert([filled("turbo3", 86)], "turbo4")
    text, arrays = cache.state
    assert not cache.packed_tokens and SchemeCache.from_state((text, arrays)).offset == 86
    with pytest.raises(ValueError):
        SchemeCache.from_state((text, damaged(arrays, name, how)))


@pytest.mark.parametrize("scheme", ["affine4", "fp16", "turbo8v3"])
def test_only_rotated_sides_may_have_a_fine_part(scheme: str) -> None:
    text, arrays = filled("turbo3", 90).state
    other = parse_scheme(scheme)
    description = json.loads(text) | {"formats": [other.key.to_json(), other.value.to_json()]}
    with pytest.raises(ValueError):
        SchemeCache.from_state((json.dumps(description), arrays))
    with pytest.raises(ValueError):
        untrusted.scheme(description)


@pytest.mark.parametrize("value", [-1, 2**31, 1.5, "9", None, True])
def test_a_fine_part_is_a_number_of_tokens(value: Any) -> None:
    text, arrays = filled("turbo3", 90).state
    with pytest.raises(ValueError):
        SchemeCache.from_state((json.dumps(json.loads(text) | {"fine": value}), arrays))


def test_gains_that_are_joined_for_a_step_are_counted() -> None:
    side = Side(parse_scheme("turbo2"), "value")
    side.append(vectors(1024))
    side.pack_due()
    query = side.fold(mx.ones((1, HEADS, 1, DIM)))
    side.release_working_arrays()
    assert side.fine.length and not side.working_bytes - side.format.working_bytes
    sinks = HEADS * side.sinks.length * DIM * 4
    mx.eval(side.scores(query))
    joined = HEADS * side.encoded * (2 + 1)  # float16 gains, and a byte for the centre
    assert joined <= side.working_bytes - side.format.working_bytes <= joined + sinks

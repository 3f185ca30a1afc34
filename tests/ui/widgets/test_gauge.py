"""The gauge says what was counted, and why it is not less."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from tests.ui.conftest import Open
from tests.ui.scripted import report
from tqchat.engine import events
from tqchat.engine.memory.auto_scheme import SchemeChoice
from tqchat.engine.memory.quality_profile import Profile, SchemeQuality
from tqchat.kv.memory import predict_bytes
from tqchat.kv.scheme import SCHEMES, TILE, parse_scheme
from tqchat.ui import figures
from tqchat.ui.controller.records import History, Sample
from tqchat.ui.screens.scheme import rows
from tqchat.ui.widgets.gauge.drawing import bar, curves, scheme_marks
from tqchat.ui.widgets.gauge.reading import Reading, bits
from tqchat.ui.widgets.gauge.room import room
from tqchat.ui.widgets.gauge.strip import strip


async def test_the_panel_shows_the_reports_figures(stage: Open) -> None:
    async with stage() as it:
        await it.chat("Go", "Well. " * 30, tokens=1900)
        counted = report(1900)
        for shown in (
            figures.size(counted.bytes),
            figures.size(counted.fp16_bytes),
            figures.size(counted.saved_bytes),
            figures.size(counted.allocated_bytes),
            f"{figures.ratio(counted.ratio)} smaller",
            "8 of 8 packed",
            figures.tokens(counted.packed_tokens),
            figures.tokens(counted.tail_tokens),
            "on disk",
        ):
            await it.sees(shown)
        assert any(0x2800 < ord(mark) <= 0x28FF for mark in it.text()), "the curves"


async def test_a_cache_that_is_not_compressed_yet_says_why(stage: Open) -> None:
    async with stage() as it:
        await it.chat("Go", "Well.", tokens=60)
        await it.sees("0 of 8 packed")
        scheme = parse_scheme("turbo0v4")
        await it.sees(f"Packs after {scheme.sinks + scheme.tail + TILE} tokens.")


def test_layers_out_of_the_schemes_reach_are_named() -> None:
    reading = Reading(parse_scheme("turbo0v4"), report(1900, bypassed=3), History())
    assert reading.coverage == "5 of 8"
    assert reading.explanations == ["3 layers stay as is: sliding windows stay raw"]


def test_under_fp16_nothing_needs_explaining() -> None:
    assert Reading(parse_scheme("fp16"), report(60, "fp16"), History()).explanations == []


def test_bits_are_what_is_held_tail_and_sinks_included() -> None:
    counted = report(1900)
    assert bits(counted, "keys") == 16
    values = bits(counted, "values")
    assert values is not None and 4.25 < values < 6


def test_the_picker_shows_every_scheme_and_marks_the_one_in_force() -> None:
    shown = rows("turbo0v4", report(1900))
    assert [row.scheme for row in shown] == list(SCHEMES)
    assert [row.scheme.name for row in shown if row.current] == ["turbo0v4"]
    for row in shown:
        expected = report(1900).bytes if row.current else predict_bytes(report(1900), row.scheme)
        assert row.bytes == expected
    unlisted = rows("turbo1v1", None)
    assert unlisted[-1].current and unlisted[-1].bytes is None


@pytest.mark.parametrize("width", [1, 8, 28])
def test_a_bar_is_as_long_as_asked(width: int) -> None:
    lengths = [bar(step / 50, width).plain.count("█") for step in range(51)]
    assert all(bar(step / 50, width).cell_length == width for step in range(-5, 70))
    assert lengths == sorted(lengths) and lengths[-1] == width


def test_the_curves_part_where_compression_begins() -> None:
    samples = [
        Sample(tokens, tokens * (10 if tokens < 50 else 5), tokens * 10, "x") for tokens in range(1, 101)
    ]
    drawn = curves(samples, 20, 4)
    assert [line.cell_length for line in drawn] == [20] * 4
    top, bottom = drawn[0].plain, drawn[-1].plain
    assert top.strip("\u2800") and top.startswith("\u2800" * 8), "FP16 alone reaches the top, at the right"
    filled = [bin(ord(cell) - 0x2800).count("1") for cell in bottom]
    assert all(before <= after + 2 for before, after in pairwise(filled[:9])), "the area grows"


def test_a_change_of_scheme_is_marked_where_it_was() -> None:
    def line(*schemes: str) -> str:
        found = scheme_marks([Sample(index, 5, 5, scheme) for index, scheme in enumerate(schemes)], 20)
        return found.plain if found else ""

    assert line("a", "a", "a", "a") == ""
    assert line("a", "a", "b", "b", "b").index("╵b") == round(2 / 4 * 19)
    assert line("a", "a", "a", "a", "turbo4") == "turbo4╵".rjust(20), "at the right end the name goes first"
    crowded = line("a", "turbo4", "turbo3", "turbo4", "turbo3", "turbo4")
    assert len(crowded) == 20 and crowded.count("╵") >= 2


def test_the_strip_tells_sorts_of_layers_apart() -> None:
    alike = strip(report(1900), 28)
    assert [line.plain for line in alike] == ["▇" * 8], "nothing to tell apart"
    counted = report(1900, "turbo4", bypassed=2)
    layers = [*counted.layers]
    layers[3] = replace(layers[3], kind="sliding", window=1024)
    layers[4] = replace(layers[4], kind="recurrent", reason="state", packed_tokens=0)
    layers[5] = replace(layers[5], scheme="turbo8v4")
    layers[6] = replace(layers[6], packed_tokens=0)
    lines = [line.plain for line in strip(replace(counted, layers=tuple(layers)), 5)]
    assert lines[:2] == ["××▇▅~", "▂░▇"]
    wide = [line.plain for line in strip(replace(counted, layers=tuple(layers)), 28)]
    assert "▅ 1 sliding (1,024) turbo4" in wide and "× 2 sliding turbo4" in wide


async def test_the_panel_says_what_every_scheme_would_take_and_how_fast_it_is(stage: Open) -> None:
    async with stage((120, 60)) as it:
        await it.chat("Go", "Well. " * 30, tokens=1900)
        for scheme in SCHEMES:
            if scheme.name != "turbo0v4":
                await it.sees(f"≈{figures.size(predict_bytes(report(1900), scheme))}")
        await it.sees(f"speed{'71 tok/s':>23}")


async def test_the_gauge_is_always_in_sight_and_a_click_opens_it(stage: Open) -> None:
    async with stage((120, 40)) as it:
        await it.chat("Go", "Well. " * 30, tokens=1900)
        await it.sees("FP16 would take")
        await it.sees_no("of 15.6 MB FP16")
        await it.pilot.press("f3")
        await it.sees("of 15.6 MB FP16")
        await it.pilot.click("#gauge-line")
        await it.sees("FP16 would take")
        await it.sees_no("of 15.6 MB FP16")


def test_too_little_for_a_curve_draws_none() -> None:
    assert curves([], 20, 4) == []
    assert curves([Sample(5, 1, 1, "x")], 20, 4) == []


async def test_the_curve_goes_on_from_before_a_restart(stage: Open) -> None:
    async with stage() as it:
        await it.chat("Go", "Well. " * 30, tokens=500)
        it.app.chat.schemes.set("turbo4")
        await it.chat("On", "Well. " * 30, tokens=900)
    async with stage() as it:
        await it.until(lambda: it.app.chat.models.current and it.app.chat.shown.conversation)
        it.engine.tokens[it.app.chat.shown.conversation.id] = 900
        # Its cache did not come back.
        it.engine.say(events.MemoryUpdate(it.app.chat.shown.conversation.id, report(0)))
        await it.until(lambda: it.app.chat.caches.report is not None)
        await it.chat("And on", "Well. " * 30, tokens=1300)
        samples = it.app.chat.caches.history.samples
        assert [(one.tokens, one.scheme) for one in samples[1:3]] == [(500, "turbo0v4"), (900, "turbo4")]
        assert samples[2].bytes == report(900, "turbo4").bytes
        assert samples[-1].tokens == 1300


async def test_each_branch_has_its_own_curve(stage: Open) -> None:
    async with stage() as it:
        chat = it.app.chat
        await it.chat("Go", "Well. " * 30, tokens=500)
        await it.chat("On", "Well. " * 30, tokens=900)
        first = chat.shown.messages[0]
        chat.tree.fork_at(first)
        await it.chat("Go elsewhere", "Well. " * 30, tokens=1400)
        assert all(sample.tokens != 900 for sample in chat.caches.history.samples)
        chat.tree.show_message(first.id)
        assert [sample.tokens for sample in chat.caches.history.samples] == [0, 500, 900]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (310_000, "310 kB"),
        (820_000, "0.82 MB"),
        (3_150_000, "3.15 MB"),
        (12_400_000_000, "12.4 GB"),
        (-512, "-512 B"),
    ],
)
def test_sizes_read_well(count: int, text: str) -> None:
    assert figures.size(count) == text


def test_text_fits_by_cells_not_by_characters() -> None:
    assert figures.fit("睡觉睡觉", 5) == "睡觉…"
    assert figures.fit("ab", 4) == "ab  "


def test_the_picker_offers_auto_with_its_choice_and_what_was_measured() -> None:
    choice = SchemeChoice("turbo4", "turbo4: because.")
    measured = tuple(SchemeQuality(one.name, 0.001, 0.01, 0.99, 1, 2, 2.0) for one in SCHEMES[:3])
    shown = rows("auto", report(1900), choice, Profile("m", "f", 1, 100, measured))
    assert [row.name for row in shown] == ["auto", *(one.name for one in SCHEMES)]
    assert [row.name for row in shown if row.current] == ["auto"]
    assert [row.name for row in shown if row.recommended] == ["turbo4"]
    assert shown[0].scheme.name == "turbo4" and shown[1].kld == 0.001 and shown[-1].kld is None


def test_room_is_what_the_budget_leaves_divided_by_what_a_token_takes() -> None:
    counted = report(1900)
    found = room(counted, counted.fp16_bytes)
    assert found is not None and found[1] == 0
    per_token = (report(9000).bytes - report(5000).bytes) / 4000
    assert found[0] == pytest.approx((counted.fp16_bytes - counted.bytes) / per_token, rel=0.01)
    assert room(report(0), 10**9) is None

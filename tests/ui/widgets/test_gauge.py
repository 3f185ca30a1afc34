"""The gauge: counted sizes, and explanations of uncompressed tokens."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

import mlx.core as mx
import pytest

from tests.ui.conftest import OpenApp, RunningApp
from tests.ui.scripted import report
from tqchat.engine import events
from tqchat.engine.memory.auto_scheme import SchemeChoice
from tqchat.engine.memory.quality_profile import Profile, SchemeQuality
from tqchat.kv.cache import SchemeCache
from tqchat.kv.memory import predict_bytes
from tqchat.kv.report import memory_report
from tqchat.kv.scheme import SCHEMES, TILE, parse_scheme
from tqchat.ui import figures
from tqchat.ui.controller.records import History, Sample
from tqchat.ui.screens.scheme import rows
from tqchat.ui.widgets.gauge.drawing import bar, curves, scheme_marks
from tqchat.ui.widgets.gauge.panel import lines
from tqchat.ui.widgets.gauge.reading import Reading, bits
from tqchat.ui.widgets.gauge.remaining import RemainingTokens, remaining_tokens
from tqchat.ui.widgets.gauge.strip import strip


async def test_the_panel_shows_the_reports_figures(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.turn("Go", "Well. " * 30, tokens=1900)
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
            await ui.shows(shown)
        assert any(0x2800 < ord(mark) <= 0x28FF for mark in ui.text()), "the curves"


async def test_a_cache_that_is_not_compressed_yet_is_explained(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.turn("Go", "Well.", tokens=60)
        await ui.shows("0 of 8 packed")
        scheme = parse_scheme("turbo0v4")
        more = scheme.sinks + scheme.tail + TILE - 60
        await ui.until(lambda: f"Compression starts after {more} more tokens." in said(ui))
        assert "saved" not in said(ui) and "as FP16" not in said(ui)
        await ui.pilot.press("f3")
        await ui.shows(f"compressed after {more} more tokens")
        await ui.pilot.resize_terminal(60, 30)
        await ui.shows(f"compressed after {more} more tokens")


@pytest.mark.parametrize("name", [scheme.name for scheme in SCHEMES if scheme.compresses])
def test_compression_starts_with_the_token_that_is_told(name: str) -> None:
    """A real cache that grows by a token, as in a reply; then the newest packed tokens are told apart."""
    scheme, cache = parse_scheme(name), SchemeCache(parse_scheme(name))
    vectors = mx.random.normal((1, 2, 400, 64)).astype(mx.float16)
    told, more = None, 0
    for held in range(vectors.shape[2]):
        counted = memory_report([cache], name)
        assert bool(counted.packed_tokens) == (told == held)
        if counted.packed_tokens:
            break
        (more,) = map(int, re.findall(r"after (\d+)", Reading(scheme, counted, History()).start))
        told = held + more
        cache.update_and_fetch(vectors[:, :, held : held + 1], vectors[:, :, held : held + 1])
        cache.pack_due()
    assert more == 1 and counted.packed_tokens == counted.tokens - counted.tail_tokens - counted.sink_tokens
    assert counted.fine_tokens == (counted.packed_tokens if scheme.fine else 0)
    shown = "\n".join(line.plain for line in lines(Reading(scheme, counted, History())))
    assert ("at 6 bit" in shown) == bool(scheme.fine)


def said(ui: RunningApp) -> str:
    return ui.said("#gauge-panel").replace("\n", " ")


def test_what_ends_first_is_the_smaller_of_memory_and_context() -> None:
    remaining = RemainingTokens(2_400_000, 900_000)
    assert remaining.within(None) == (remaining, False)
    assert remaining.within(3_000_000) == (remaining, False)
    assert remaining.within(1_000_000) == ((1_000_000, 900_000), True)
    assert remaining.within(3_500) == ((3_500, 3_500), True)
    assert remaining.within(-4) == ((0, 0), True)


async def test_the_gauge_says_what_ends_first(open_app: OpenApp) -> None:
    async with open_app((160, 60)) as ui:
        ui.app.parts.preferences.set("memory_budget", 1.0)
        await ui.turn("Go", "Well.", tokens=1900)
        await ui.until(lambda: "2,196 more" in said(ui) and "the context" in said(ui))
        ui.app.parts.preferences.set("memory_budget", 0.02)
        await ui.until(lambda: "the memory" in said(ui))
        assert "2,196 more" not in said(ui)


def test_uncompressed_layers_are_explained() -> None:
    reading = Reading(parse_scheme("turbo0v4"), report(1900, bypassed=3), History())
    assert reading.coverage == "5 of 8"
    assert reading.explanations == ["3 layers stay as is: sliding windows stay raw"]


def test_fp16_has_no_explanations() -> None:
    assert Reading(parse_scheme("fp16"), report(60, "fp16"), History()).explanations == []


def test_bits_per_value_include_tail_and_sinks() -> None:
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
def test_a_bar_has_the_requested_width(width: int) -> None:
    lengths = [bar(step / 50, width).plain.count("█") for step in range(51)]
    assert all(bar(step / 50, width).cell_length == width for step in range(-5, 70))
    assert lengths == sorted(lengths) and lengths[-1] == width


def test_the_curves_diverge_where_compression_begins() -> None:
    samples = [
        Sample(tokens, tokens * (10 if tokens < 50 else 5), tokens * 10, "x") for tokens in range(1, 101)
    ]
    drawn = curves(samples, 20, 4)
    assert [line.cell_length for line in drawn] == [20] * 4
    top, bottom = drawn[0].plain, drawn[-1].plain
    assert top.strip("\u2800") and top.startswith("\u2800" * 8), "FP16 alone reaches the top, at the right"
    filled = [bin(ord(cell) - 0x2800).count("1") for cell in bottom]
    assert all(before <= after + 2 for before, after in pairwise(filled[:9])), "the area grows"


def test_scheme_changes_are_marked_on_the_curve() -> None:
    def line(*schemes: str) -> str:
        found = scheme_marks([Sample(index, 5, 5, scheme) for index, scheme in enumerate(schemes)], 20)
        return found.plain if found else ""

    assert line("a", "a", "a", "a") == ""
    assert line("a", "a", "b", "b", "b").index("╵b") == round(2 / 4 * 19)
    assert line("a", "a", "a", "a", "turbo4") == "turbo4╵".rjust(20), "at the right end the name goes first"
    crowded = line("a", "turbo4", "turbo3", "turbo4", "turbo3", "turbo4")
    assert len(crowded) == 20 and crowded.count("╵") >= 2


def test_the_layer_strip_distinguishes_kinds_of_layers() -> None:
    alike = strip(report(1900), 28)
    assert [line.plain for line in alike] == ["▇" * 8], "all layers are alike"
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


async def test_the_panel_shows_predicted_sizes_and_speed(open_app: OpenApp) -> None:
    async with open_app((160, 60)) as ui:
        await ui.turn("Go", "Well. " * 30, tokens=1900)
        for scheme in SCHEMES:
            if scheme.name != "turbo0v4":
                await ui.shows(f"≈{figures.size(predict_bytes(report(1900), scheme))}")
        await ui.shows(f"speed{'71 tok/s':>23}")


async def test_a_hidden_gauge_is_one_line_and_a_click_opens_it(open_app: OpenApp) -> None:
    async with open_app((150, 40)) as ui:
        await ui.turn("Go", "Well. " * 30, tokens=1900)
        await ui.shows("FP16 would take")
        await ui.hides("of 15.6 MB FP16")
        await ui.pilot.press("f3")
        await ui.shows("of 15.6 MB FP16")
        await ui.pilot.click("#gauge-line")
        await ui.shows("FP16 would take")
        await ui.hides("of 15.6 MB FP16")


def test_fewer_than_two_samples_draw_no_curve() -> None:
    assert curves([], 20, 4) == []
    assert curves([Sample(5, 1, 1, "x")], 20, 4) == []


async def test_the_curve_continues_after_a_restart(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.turn("Go", "Well. " * 30, tokens=500)
        ui.app.chat.schemes.set("turbo4")
        await ui.turn("On", "Well. " * 30, tokens=900)
    async with open_app() as ui:
        await ui.until(lambda: ui.app.chat.models.current and ui.app.chat.shown.conversation)
        ui.engine.tokens[ui.app.chat.shown.conversation.id] = 900
        # Its cache did not come back.
        ui.engine.emit(events.MemoryUpdate(ui.app.chat.shown.conversation.id, report(0)))
        await ui.until(lambda: ui.app.chat.caches.report is not None)
        await ui.turn("And on", "Well. " * 30, tokens=1300)
        samples = ui.app.chat.caches.history.samples
        assert [(one.tokens, one.scheme) for one in samples[1:3]] == [(500, "turbo0v4"), (900, "turbo4")]
        assert samples[2].bytes == report(900, "turbo4").bytes
        assert samples[-1].tokens == 1300


async def test_each_branch_has_its_own_curve(open_app: OpenApp) -> None:
    async with open_app() as ui:
        chat = ui.app.chat
        await ui.turn("Go", "Well. " * 30, tokens=500)
        await ui.turn("On", "Well. " * 30, tokens=900)
        first = chat.shown.messages[0]
        chat.tree.fork_at(first)
        await ui.turn("Go elsewhere", "Well. " * 30, tokens=1400)
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
def test_sizes_are_formatted(count: int, text: str) -> None:
    assert figures.size(count) == text


def test_text_is_fitted_by_cells() -> None:
    assert figures.fit("睡觉睡觉", 5) == "睡觉…"
    assert figures.fit("ab", 4) == "ab  "


def test_the_scheme_picker_shows_the_choice_of_auto_and_measurements() -> None:
    choice = SchemeChoice("turbo4", "turbo4: because.")
    measured = tuple(SchemeQuality(one.name, 0.001, 0.01, 0.99, 1, 2, 2.0) for one in SCHEMES[:3])
    shown = rows("auto", report(1900), choice, Profile("m", "f", 1, 100, measured))
    assert [row.name for row in shown] == ["auto", *(one.name for one in SCHEMES)]
    assert [row.name for row in shown if row.current] == ["auto"]
    assert [row.name for row in shown if row.recommended] == ["turbo4"]
    assert shown[0].scheme.name == "turbo4" and shown[1].kld == 0.001 and shown[-1].kld is None


def test_remaining_tokens_are_the_free_budget_over_the_bytes_per_token() -> None:
    counted = report(1900)
    found = remaining_tokens(counted, counted.fp16_bytes)
    assert found is not None and found.in_fp16 == 0
    per_token = (report(9000).bytes - report(5000).bytes) / 4000
    assert found.in_scheme == pytest.approx((counted.fp16_bytes - counted.bytes) / per_token, rel=0.01)
    assert remaining_tokens(report(0), 10**9) is None

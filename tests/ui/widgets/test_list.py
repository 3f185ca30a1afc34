"""The list of conversations: one line a row, pins, order, width; side panels beside the conversation."""

from __future__ import annotations

from datetime import date

import pytest
from rich.cells import cell_len
from textual.widgets import OptionList

from tests.ui.conftest import OpenApp, RunningApp, drawn
from tqchat.paths import Paths
from tqchat.settings import State
from tqchat.store.database import Database
from tqchat.ui.widgets.conversations.list import MAX_WIDTH, MIN_WIDTH, ConversationList
from tqchat.ui.widgets.conversations.order import SORTS, grouped

TITLES = ("About foxes and their dens", "短い会話についての長い題名の例です", "Emoji 🦊🦉🐳 all over", "x")
BYTES = 1_510_000


@pytest.fixture
def many(paths: Paths) -> list[str]:
    with Database(paths.database) as database:
        return [database.create(f"{TITLES[at % 4]} {at}", "starter", "turbo4").id for at in range(60)]


def rows(ui: RunningApp) -> list[str]:
    """The rows on the screen, as they are drawn within the list."""
    titles = ui.app.query_one("#titles", OptionList)
    region = titles.scrollable_content_region
    strips = drawn(ui.app)[region.y : region.bottom]
    return [strip.crop(region.x, region.right).text for strip in strips]


async def redrawn(ui: RunningApp) -> None:
    ui.app.parts.screen.conversations_changed()
    ui.app.parts.screen.draw_due()
    await ui.pilot.pause()


async def test_a_row_is_one_line_at_every_width(open_app: OpenApp, many: list[str]) -> None:
    async with open_app((160, 24)) as ui:
        ui.app.chat.caches.disk_bytes.update(dict.fromkeys(many, BYTES))
        listed = ui.app.query_one(ConversationList)
        titles = listed.query_one("#titles", OptionList)
        for width in (MIN_WIDTH, 29, 30, 41, MAX_WIDTH):
            ui.app.parts.screen.place_panels(width)
            await ui.pilot.pause()
            await redrawn(ui)
            assert titles.show_vertical_scrollbar
            columns = titles.scrollable_content_region.width
            assert all(cell_len(row) <= columns for row in ui.listed(columns)), width
            assert titles.virtual_size.height == len(titles.options), "no row takes two lines"
            drawn = [row for row in rows(ui) if "x " in row or "About" in row]
            assert drawn and all(
                "…" in row or f" {BYTES / 1e6:.2f} MB" in row for row in drawn if "x " in row
            )
            whole = [row for row in rows(ui) if "About" in row]
            assert all("…" in row or "dens" in row for row in whole)
            assert not any("…" in row and "MB" in row for row in rows(ui)), "titles are shortened last"


async def test_rows_drawn_while_the_list_is_hidden_are_whole_once_it_shows(
    open_app: OpenApp, many: list[str]
) -> None:
    async with open_app((60, 24)) as ui:
        screen, listed = ui.app.parts.screen, ui.app.query_one(ConversationList)
        await redrawn(ui)
        assert not listed.display
        screen._compositor._full_map_invalidated = True  # scrolling does this
        screen.toggle("#conversations")
        ui.app.stylesheet.update(screen)
        assert listed.region, "Textual has seen the list before its next layout: it reports no new size"
        await ui.until(lambda: any("x 59" in row for row in rows(ui)))


async def test_pins_and_orders_stay_over_a_restart(open_app: OpenApp, many: list[str], paths: Paths) -> None:
    async with open_app((160, 24)) as ui:
        ui.app.chat.shown.open(many[7])
        await ui.pilot.press("alt+p")
        await ui.until(lambda: [row.strip() for row in rows(ui)][:2] == ["Pinned", "▌ x 7"])
        await ui.pilot.press("alt+down")
        await ui.until(lambda: ui.app.chat.shown.id == many[59])
        ui.app.query_one("#prompt").insert("/sort title")  # type: ignore[attr-defined]
        await ui.pilot.press("enter")
        await ui.until(
            lambda: [row[:13].strip() for row in ui.listed()[1:4]] == ["x 7", "By title", "About foxes"]
        )
        await ui.pilot.press("alt+w")
        width = ui.app.query_one(ConversationList).outer_size.width
        assert width > 30
    state = State.load(paths)
    assert (state.sort, state.sidebar_width) == ("title", width)
    async with open_app((160, 24)) as ui:
        await ui.until(lambda: [row.strip() for row in ui.listed()[:3]] == ["Pinned", "x 7", "By title"])
        assert ui.app.query_one(ConversationList).outer_size.width == width


def test_groups_of_each_order(paths: Paths) -> None:
    with Database(paths.database) as database:
        made = [database.create(title, None, "turbo4") for title in ("b", "C", "a")]
        sizes = {made[0].id: 5, made[1].id: 9}
        database.set_pinned(made[2].id, True)
        found = database.conversations()

    def titles(sort: str) -> list[tuple[str, list[str]]]:
        return [(name, [one.title for one in members]) for name, members in grouped(found, sort, sizes)]

    assert titles("size") == [("Pinned", ["a"]), ("By size", ["C", "b"])]
    assert titles("title") == [("Pinned", ["a"]), ("By title", ["b", "C"])]
    assert titles("changed") == titles("created") == [("Pinned", ["a"]), ("Today", ["C", "b"])]
    assert {name for sort in SORTS for name, _ in grouped(found, sort, {}, date(2000, 1, 1))} >= {"Pinned"}


@pytest.mark.parametrize(
    ("columns", "beside"), [(160, True), (143, True), (142, False), (120, False), (80, False)]
)
async def test_the_gauge_folds_where_it_would_leave_too_little(
    open_app: OpenApp, columns: int, beside: bool
) -> None:
    async with open_app((columns, 24)) as ui:
        await ui.until(lambda: ui.app.query_one("#gauge").display is beside)
        assert ui.app.query_one("#gauge-line").display is not beside
        centre = ui.app.query_one("#centre").outer_size.width
        assert centre >= min(80, columns - 30)


async def test_panels_are_resized_and_folded_with_the_mouse(open_app: OpenApp, paths: Paths) -> None:
    async with open_app((160, 24)) as ui:
        listed = ui.app.query_one(ConversationList)
        await ui.pilot.mouse_down(offset=(29, 6))
        await ui.pilot.hover(offset=(39, 6))
        await ui.pilot.mouse_up(offset=(39, 6))
        await ui.until(lambda: listed.outer_size.width == 40)
        await ui.until(lambda: State.load(paths).sidebar_width == 40)
        await ui.pilot.click(offset=(8, 1))
        await ui.until(lambda: not listed.display and not State.load(paths).sidebar)
        await ui.pilot.click(offset=(3, 0))
        await ui.until(lambda: listed.display and State.load(paths).sidebar)
        gauge = ui.app.query_one("#gauge")
        await ui.pilot.click("#gauge-panel", offset=(5, 0))
        await ui.until(lambda: not gauge.display and not State.load(paths).gauge)
        await ui.until(lambda: ui.app.query_one("#gauge-line").region.width)
        await ui.pilot.click("#gauge-line")
        await ui.until(lambda: gauge.display and State.load(paths).gauge)

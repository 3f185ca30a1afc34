"""Dialogs in terminals of few lines: their keys are named, and what is selected is in view."""

from __future__ import annotations

import pytest
from textual.widgets import OptionList

from tests.ui.conftest import OpenApp, RunningApp

DIALOGS = ["ctrl+k", "ctrl+o", "ctrl+s", "f9", "f10", "ctrl+t", "f8", "alt+m", "alt+o"]


@pytest.mark.parametrize("size", [(60, 20), (40, 10), (20, 5)])
async def test_every_dialog_names_its_keys_and_shows_what_is_selected(
    open_app: OpenApp, size: tuple[int, int]
) -> None:
    async with open_app(size) as ui:
        await ui.turn("About foxes", "They are red.")
        for key in DIALOGS:
            await ui.pilot.press(key)
            await ui.until(lambda: ui.app.screen is not ui.app.parts.screen)
            box = ui.app.screen.query_one(".box").content_region
            answers = ui.app.screen.query_one(".answers").region
            assert answers.height and box.contains_region(answers), key
            for options in ui.app.screen.query(OptionList).results(OptionList):
                await ui.pilot.press(*["down"] * 9)
                line = options.highlighted or 0
                row = line - options.scroll_offset.y + options.region.y
                assert size[1] < 10 or row < answers.y, f"{key}: the selected line is hidden"
            await ui.pilot.press("escape")
            await ui.until(lambda: ui.app.screen is ui.app.parts.screen)


async def test_a_field_that_has_the_focus_is_in_view(open_app: OpenApp) -> None:
    async with open_app((40, 10)) as ui:
        await ui.pilot.press("f10")
        await ui.until(lambda: ui.app.screen is not ui.app.parts.screen)
        for _ in range(8):
            await ui.pilot.press("tab")
            await ui.until(lambda: is_in_view(ui))


def is_in_view(ui: RunningApp) -> bool:
    """Whether the focused widget is above the dialog's keys, and these are in the dialog."""
    box = ui.app.screen.query_one(".box").content_region
    answers, field = ui.app.screen.query_one(".answers").region, ui.app.focused
    return field is not None and field.region.bottom <= answers.y and box.contains_region(answers)

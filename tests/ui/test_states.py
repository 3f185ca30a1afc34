"""Empty, loading, failed and offline states, at every width."""

from __future__ import annotations

import pytest
from textual.widgets import OptionList

from tests.ui.conftest import OpenApp, RunningApp
from tqchat.engine import events
from tqchat.settings import Settings
from tqchat.ui.widgets.chat.welcome import EXAMPLES
from tqchat.ui.widgets.prompt.prompt import Prompt

SIZES = [(60, 24), (120, 40), (200, 50)]


@pytest.mark.parametrize("size", SIZES)
async def test_the_welcome_page_is_shown_on_the_first_run_only(
    open_app: OpenApp, size: tuple[int, int]
) -> None:
    async with open_app(size) as ui:
        for shown in (
            "Welcome.",
            "stays on this machine",
            "saved: a restart costs",
            "starter 30M",
            *EXAMPLES,
            "Enter asks what you have written",
            "^O picks a better model",
            "^K shows what the cache does",
            "F1 all keys",
        ):
            await ui.shows(shown)
        await ui.turn("About foxes", "Yes.")
        await ui.pilot.press("ctrl+n")
        await ui.shows("Ask something to begin.")
        await ui.hides("Welcome.")
        assert EXAMPLES[0] not in ui.text()


async def test_an_example_is_put_into_the_prompt_by_a_click_or_a_key(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.shows(EXAMPLES[1])
        lines = ui.text().splitlines()
        y = next(y for y, line in enumerate(lines) if EXAMPLES[1] in line)
        await ui.pilot.click(offset=(lines[y].index(EXAMPLES[1]) + 2, y))
        prompt = ui.app.query_one(Prompt)
        await ui.until(lambda: prompt.text == EXAMPLES[1])
        assert prompt.has_focus
        for following in (EXAMPLES[2], EXAMPLES[0]):
            await ui.pilot.press("alt+e")
            await ui.until(lambda following=following: prompt.text == following)
        await ui.pilot.press("x", "alt+e")
        await ui.shows("Your text is kept")
        assert prompt.text == f"{EXAMPLES[0]}x"
        prompt.put("")
        await ui.pilot.press("alt+e")
        await ui.until(lambda: prompt.text == EXAMPLES[0])


@pytest.mark.parametrize("size", SIZES)
async def test_the_download_of_a_first_model_shows_its_progress(
    open_app: OpenApp, size: tuple[int, int]
) -> None:
    async with open_app(size, loads=False) as ui:
        await ui.shows("You can already type.")
        ui.engine.emit(events.ModelProgress("org/big", "downloading", 1_200_000_000, 4_300_000_000))
        await ui.shows("Downloading org/big")
        await ui.send("Hello")
        await ui.shows("Waiting for the model; your message is saved.")


@pytest.mark.parametrize("size", SIZES)
async def test_offline_without_a_model_shows_the_next_step(open_app: OpenApp, size: tuple[int, int]) -> None:
    async with open_app(size, loads=False) as ui:
        sentence = "org/big is not on this machine and Hugging Face cannot be reached: check the connection."
        ui.engine.emit(events.ModelFailed("org/big", sentence))
        await ui.shows("✗ org/big is not on this machine")
        await ui.shows("No model is loaded. ^O chooses one.")
        await ui.shows("No model. ^O loads one.")


async def test_hints_show_the_users_keys(open_app: OpenApp) -> None:
    own = Settings(theme="tqchat-dark", keys={"model": "f12", "help": "alt+h"})
    async with open_app(settings=own, loads=False) as ui:
        ui.engine.emit(events.ModelFailed("x", "No."))
        await ui.shows("No model. F12 loads one.")
        await ui.shows("Alt+H all keys")


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


async def test_speed_makes_room_for_a_sentence_and_the_context_stays(open_app: OpenApp) -> None:
    async with open_app((120, 40)) as ui:
        await ui.turn("Hello", "Hi.")
        await ui.shows("tok/s")
        shown = ui.app.chat.shown.id
        assert shown is not None
        reason = "No cache was saved for this conversation; 3,421 tokens are read again with the next one."
        ui.engine.emit(events.Opened(shown, 0, 0.1, reason, tokens=3421))
        await ui.until(lambda: reason in ui.said("#status") and "context 3,421" in ui.said("#status"))
        assert "tok/s" not in ui.said("#status")


async def test_a_sentence_that_does_not_fit_beside_the_context_is_wrapped(open_app: OpenApp) -> None:
    async with open_app((60, 24)) as ui:
        await ui.turn("Hello", "Hi.")
        shown = ui.app.chat.shown.id
        assert shown is not None
        reason = "No cache was saved for this conversation; 3,421 tokens are read again with the next one."
        ui.engine.emit(events.Opened(shown, 0, 0.1, reason, tokens=3421))
        await ui.shows("context 3,421")
        rows = ui.text().splitlines()
        await ui.until(lambda: reason in " ".join(ui.text().split()))
        assert "context 3,421" in rows[-2] and "F1 help" in rows[-1]


async def test_a_long_sentence_without_a_context_leaves_no_empty_row(open_app: OpenApp) -> None:
    async with open_app((60, 24)) as ui:
        ui.app.chat.shown.read_only = (
            "This conversation is open in another tqchat, which has to be closed first."
        )
        await ui.pilot.press("f3")
        ui.app.chat.view.figures_changed()
        await ui.until(lambda: "closed first." in ui.text().splitlines()[-2])


@pytest.mark.parametrize("columns", [60, 80])
async def test_a_narrow_terminal_names_the_key_that_shows_why_auto_chose(
    open_app: OpenApp, columns: int
) -> None:
    async with open_app((columns, 24), settings=Settings(theme="tqchat-dark", scheme="auto")) as ui:
        await ui.turn("Hello", "Hi.")
        choice = ui.app.chat.schemes.auto_choice
        await ui.shows(f"^K says why auto chose {choice.scheme}.")
        await ui.pilot.press("ctrl+k")
        await ui.until(lambda: choice.reason in " ".join(ui.text().replace("│", " ").split()))


async def test_the_longest_sentence_on_a_scheme_change_is_whole_in_a_narrow_terminal(
    open_app: OpenApp,
) -> None:
    sentence = (
        "Converted 12,345 tokens from turbo4v2 to affine8 in 12 s: 123 MB → 234 MB. History keeps its "
        "earlier rounding: 12,345 tokens, keys at 4 bits, values at 2 bits, rounded up to 12 times. "
        "/scheme undo returns to turbo4v2 by re-reading."
    )
    async with open_app((60, 24)) as ui:
        await ui.turn("Hello", "Hi.")
        ui.app.parts.screen.say(sentence)
        await ui.until(lambda: sentence in " ".join(ui.text().split()))

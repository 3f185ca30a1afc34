"""The context limit on the screen."""

from __future__ import annotations

from tests.ui.conftest import OpenApp
from tqchat.engine import events
from tqchat.ui.controller.texts.summaries import SUMMARY_HEADING
from tqchat.ui.screens.dialog import Choose


async def test_a_size_that_was_not_counted_is_offered_as_an_estimate(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.send("word " * 4_000)
        await ui.until(ui.engine.sent)
        failed = "This conversation is 5,012 tokens long and the model reads at most 4,096."
        ui.engine.emit(events.Failed(ui.engine.sent()[0].conversation_id, failed, context_full=True))
        await ui.until(lambda: isinstance(ui.app.screen, Choose))
        await ui.shows("The context holds ≈ ")


async def test_the_options_are_offered_before_the_context_is_full(open_app: OpenApp) -> None:
    async with open_app() as ui:
        for number in range(6):
            await ui.turn(
                f"{number} question " + "word " * 300, f"{number} answer", tokens=600 * (number + 1)
            )
        await ui.shows("The context is nearly full")
        await ui.send("word " * 1_000)
        await ui.until(lambda: isinstance(ui.app.screen, Choose))
        await ui.shows("The context holds 3,600 of 4,096 tokens")
        await ui.shows("keep only the last")
        assert len(ui.engine.sent()) == 6
        await ui.pilot.press("down", "enter")
        await ui.until(lambda: len(ui.engine.sent()) == 7)
        sent = ui.engine.sent()[-1].messages
        assert sent[0].content.startswith(("2", "3", "4", "5")) and sent[-1].content.startswith("word")


async def test_the_options_are_available_at_any_time(open_app: OpenApp) -> None:
    async with open_app() as ui:
        for number in range(3):
            await ui.turn(f"{number} " + "word " * 1_500, "answer", tokens=1_200 * (number + 1))
        await ui.send("/room")
        await ui.until(lambda: isinstance(ui.app.screen, Choose))
        await ui.pilot.press("enter")
        await ui.until(lambda: ui.engine.composing())
        await ui.shows("Writing a summary")
        ui.engine.compose("Words.")
        await ui.shows("Continuing from a summary")
        assert ui.app.chat.shown.messages[0].content == SUMMARY_HEADING + "Words."
        await ui.shows("context ≈")


async def test_a_long_prefill_shows_the_time_left(open_app: OpenApp) -> None:
    async with open_app((140, 40)) as ui:
        await ui.send("Long")
        await ui.until(lambda: ui.engine.sent())
        sent = ui.engine.sent()[0].conversation_id
        ui.engine.emit(events.PrefillProgress(sent, 0, 4_000))
        await ui.shows("0 of 4,000 tokens")
        ui.engine.emit(events.PrefillProgress(sent, 1_000, 4_000))
        await ui.shows("1,000 of 4,000 tokens, ")
        await ui.shows(" left  Esc stops")
        await ui.pilot.press("escape")
        await ui.until(lambda: ui.engine.stops == 1)

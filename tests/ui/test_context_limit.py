"""The context limit on the screen."""

from __future__ import annotations

from tests.ui.conftest import Open
from tqchat.engine import events
from tqchat.ui.controller.texts.summaries import SUMMARY_HEADING
from tqchat.ui.screens.dialog import Choose


async def test_the_options_are_offered_before_the_context_is_full(stage: Open) -> None:
    async with stage() as it:
        for number in range(6):
            await it.chat(
                f"{number} question " + "word " * 300, f"{number} answer", tokens=600 * (number + 1)
            )
        await it.sees("The context is nearly full")
        await it.ask("word " * 1_000)
        await it.until(lambda: isinstance(it.app.screen, Choose))
        await it.sees("The context holds 3,600 of 4,096 tokens")
        await it.sees("go on with the last")
        assert len(it.engine.sent()) == 6
        await it.pilot.press("down", "enter")
        await it.until(lambda: len(it.engine.sent()) == 7)
        sent = it.engine.sent()[-1].messages
        assert sent[0].content.startswith(("2", "3", "4", "5")) and sent[-1].content.startswith("word")


async def test_the_options_are_available_at_any_time(stage: Open) -> None:
    async with stage() as it:
        for number in range(3):
            await it.chat(f"{number} " + "word " * 1_500, "answer", tokens=1_200 * (number + 1))
        await it.ask("/room")
        await it.until(lambda: isinstance(it.app.screen, Choose))
        await it.pilot.press("enter")
        await it.until(lambda: it.engine.composing())
        await it.sees("Writing a summary")
        it.engine.compose("Words.")
        await it.sees("Goes on from a summary")
        assert it.app.chat.shown.messages[0].content == SUMMARY_HEADING + "Words."
        await it.sees("context ≈")


async def test_a_long_prefill_shows_the_time_left(stage: Open) -> None:
    async with stage((140, 40)) as it:
        await it.ask("Long")
        await it.until(lambda: it.engine.sent())
        sent = it.engine.sent()[0].conversation_id
        it.engine.say(events.PrefillProgress(sent, 0, 4_000))
        await it.sees("0 of 4,000 tokens")
        it.engine.say(events.PrefillProgress(sent, 1_000, 4_000))
        await it.sees("1,000 of 4,000 tokens, ")
        await it.sees(" left  Esc stops")
        await it.pilot.press("escape")
        await it.until(lambda: it.engine.stops == 1)

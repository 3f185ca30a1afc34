"""The context limit on the screen."""

from __future__ import annotations

from tests.ui.conftest import OpenApp, RunningApp
from tests.ui.scripted import report
from tqchat.engine import events
from tqchat.ui import figures
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


async def begin_summary(ui: RunningApp) -> None:
    """Three turns, and the first way to shorten them, which is chosen."""
    for number in range(3):
        await ui.turn(f"{number} " + "word " * 1_500, "answer", tokens=1_200 * (number + 1))
    await ui.send("/room")
    await ui.until(lambda: isinstance(ui.app.screen, Choose))
    await ui.pilot.press("enter")
    await ui.until(lambda: ui.engine.composing())


async def test_the_options_are_available_at_any_time(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await begin_summary(ui)
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


async def test_a_prompt_that_is_being_read_is_counted_and_its_cache_shown(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.turn("Hello", "Hi.", tokens=300)
        await ui.shows("context 300 / 4,096")
        await ui.send("word " * 200)
        await ui.until(lambda: len(ui.engine.sent()) == 2)
        sent = ui.engine.sent()[0].conversation_id
        ui.engine.emit(events.PrefillProgress(sent, 0, 2_017, 298))
        await ui.shows("context 2,315 / 4,096")
        ui.engine.emit(events.PrefillProgress(sent, 256, 2_017, 298))
        raw = report(554, "fp16")
        ui.engine.emit(events.MemoryUpdate(sent, raw))
        await ui.shows(figures.size(raw.bytes))
        await ui.shows("FP16 would take")
        await ui.shows("Raw while it is being read.")
        await ui.pilot.press("f3")
        await ui.shows(
            f"{figures.size(raw.bytes)} of {figures.size(raw.fp16_bytes)} FP16 · raw so far · 1.0x"
        )
        await ui.shows("context 2,315 / 4,096")
        packed = report(1_322)
        ui.engine.emit(events.MemoryUpdate(sent, packed))
        await ui.shows(f"{figures.size(packed.bytes)} of {figures.size(packed.fp16_bytes)} FP16")
        await ui.shows("context 2,315 / 4,096")
        ui.engine.count(2_330)
        await ui.shows("context 2,330 / 4,096")


async def test_a_prompt_that_is_withdrawn_leaves_the_size_before_it(open_app: OpenApp) -> None:
    async with open_app((140, 40)) as ui:
        await ui.turn("Hello", "Hi.", tokens=300)
        await ui.send("word " * 200)
        await ui.until(lambda: len(ui.engine.sent()) == 2)
        send = ui.engine.sent()[1]
        ui.engine.emit(events.PrefillProgress(send.conversation_id, 256, 2_017, 298))
        ui.engine.emit(events.MemoryUpdate(send.conversation_id, report(554)))
        await ui.shows("context 2,315 / 4,096")
        ui.engine.done("", "stopped", tokens=554)
        await ui.until(lambda: len(ui.app.chat.shown.messages) == 2)
        await ui.shows("context 300 / 4,096")
        await ui.send("Shorter")
        await ui.until(lambda: len(ui.engine.sent()) == 3)
        ui.engine.emit(events.PrefillProgress(send.conversation_id, 0, 20, 298))
        await ui.shows("context 318 / 4,096")


async def test_the_summarys_prompt_is_not_counted_as_the_conversations(open_app: OpenApp) -> None:
    async with open_app((140, 40)) as ui:
        await begin_summary(ui)
        ui.engine.emit(events.PrefillProgress(ui.engine.composing()[-1].conversation_id, 0, 900))
        await ui.shows("0 of 900 tokens")
        await ui.shows("context 3,600 / 4,096")

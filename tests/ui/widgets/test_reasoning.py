"""Reasoning on the screen."""

from __future__ import annotations

from tests.ui.conftest import OpenApp

REPLY = "<think>\nFoxes are\nred.\n</think>\n\nThey are **red**."


async def test_reasoning_is_open_while_it_streams_and_folded_afterwards(open_app: OpenApp) -> None:
    async with open_app() as ui:
        await ui.send("Why?")
        await ui.until(lambda: ui.engine.sent())
        ui.engine.delta("<think>\nFoxes are")
        await ui.shows("Thinking…")
        await ui.shows("Foxes are")
        ui.engine.delta(REPLY.removeprefix("<think>\nFoxes are"))
        ui.engine.done(REPLY)
        await ui.shows("▸ Thought, 3 words")
        await ui.hides("Foxes are")
        await ui.shows("They are red.")
        await ui.pilot.press("ctrl+up", "enter")
        await ui.shows("Foxes are")
        await ui.pilot.press("f5")
        assert ui.app.clipboard == "They are **red**."

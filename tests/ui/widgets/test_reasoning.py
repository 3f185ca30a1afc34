"""Reasoning on the screen."""

from __future__ import annotations

from tests.ui.conftest import Open

WHOLE = "<think>\nFoxes are\nred.\n</think>\n\nThey are **red**."


async def test_reasoning_is_open_while_it_streams_and_folded_afterwards(stage: Open) -> None:
    async with stage() as it:
        await it.ask("Why?")
        await it.until(lambda: it.engine.sent())
        it.engine.delta("<think>\nFoxes are")
        await it.sees("Thinking…")
        await it.sees("Foxes are")
        it.engine.delta(WHOLE.removeprefix("<think>\nFoxes are"))
        it.engine.done(WHOLE)
        await it.sees("▸ Thought, 3 words")
        await it.sees_no("Foxes are")
        await it.sees("They are red.")
        await it.pilot.press("ctrl+up", "enter")
        await it.sees("Foxes are")
        await it.pilot.press("f5")
        assert it.app.clipboard == "They are **red**."

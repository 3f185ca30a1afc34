"""Empty, loading, failed and offline are states that were thought of, at every width."""

from __future__ import annotations

import pytest

from tests.ui.conftest import Open
from tqchat.engine import events
from tqchat.settings import Settings
from tqchat.ui.widgets.chat.welcome import EXAMPLES
from tqchat.ui.widgets.prompt.prompt import Prompt

SIZES = [(60, 24), (120, 40), (200, 50)]


@pytest.mark.parametrize("size", SIZES)
async def test_the_first_run_says_what_this_is_and_later_ones_do_not(
    stage: Open, size: tuple[int, int]
) -> None:
    async with stage(size) as it:
        for shown in (
            "Welcome.",
            "stays on this machine",
            "^O finds other models",
            *EXAMPLES,
            "F1 all keys",
        ):
            await it.sees(shown)
        await it.chat("About foxes", "Yes.")
        await it.pilot.press("ctrl+n")
        await it.sees("Ask something to begin.")
        await it.sees_no("Welcome.")
        assert EXAMPLES[0] not in it.text()


async def test_an_example_is_put_into_the_prompt_by_a_click(stage: Open) -> None:
    async with stage() as it:
        await it.sees(EXAMPLES[1])
        lines = it.text().splitlines()
        y = next(y for y, line in enumerate(lines) if EXAMPLES[1] in line)
        await it.pilot.click(offset=(lines[y].index(EXAMPLES[1]) + 2, y))
        await it.until(lambda: it.app.query_one(Prompt).text == EXAMPLES[1])
        assert it.app.query_one(Prompt).has_focus


@pytest.mark.parametrize("size", SIZES)
async def test_a_first_model_on_its_way_shows_how_far_it_is(stage: Open, size: tuple[int, int]) -> None:
    async with stage(size, loads=False) as it:
        await it.sees("You can already type.")
        it.engine.say(events.ModelProgress("org/big", "downloading", 1_200_000_000, 4_300_000_000))
        await it.sees("Downloading org/big")
        await it.ask("Hello")
        await it.sees("Waiting for the model; your message is saved.")


@pytest.mark.parametrize("size", SIZES)
async def test_offline_without_a_model_says_what_to_do(stage: Open, size: tuple[int, int]) -> None:
    async with stage(size, loads=False) as it:
        sentence = "org/big is not on this machine and Hugging Face cannot be reached: check the connection."
        it.engine.say(events.ModelFailed("org/big", sentence))
        await it.sees("✗ org/big is not on this machine")
        await it.sees("No model is loaded. ^O chooses one.")
        await it.sees("No model. ^O loads one.")


async def test_what_to_press_is_said_with_the_persons_own_keys(stage: Open) -> None:
    own = Settings(theme="tqchat-dark", keys={"model": "f12", "help": "alt+h"})
    async with stage(settings=own, loads=False) as it:
        it.engine.say(events.ModelFailed("x", "No."))
        await it.sees("No model. F12 loads one.")
        await it.sees("Alt+H all keys")

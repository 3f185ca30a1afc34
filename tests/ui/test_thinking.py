"""What a model thinks is told apart from what it says, however the text is cut into pieces."""

from __future__ import annotations

import pytest

from tests.ui.conftest import Open
from tqchat.ui.widgets.chat.thinking import Splitter, split

WHOLE = "<think>\nFoxes are\nred.\n</think>\n\nThey are **red**."


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (WHOLE, ("Foxes are\nred.", "They are **red**.")),
        ("Plain.", ("", "Plain.")),
        ("<think>never closed", ("never closed", "")),
        ("opened by the template</think>Answer", ("opened by the template", "Answer")),
        ("Use <think> and </think> in your text.", ("", "Use <think> and </think> in your text.")),
        ("<thinker>no</thinker>", ("", "<thinker>no</thinker>")),
        ("", ("", "")),
    ],
)
def test_thinking_and_answer(text: str, parts: tuple[str, str]) -> None:
    assert split(text) == parts


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("text", [WHOLE, "Plain < text.", "<thin air>", "  <think>a</th b</think>c"])
def test_pieces_say_the_same_as_the_whole(text: str, size: int) -> None:
    splitter = Splitter()
    thought = answer = ""
    for start in range(0, len(text), size):
        one, other = splitter.feed(text[start : start + size])
        thought, answer = thought + one, answer + other
    assert (thought.strip(), answer.strip()) == (split(text)[0], split(text)[1].strip())


async def test_thinking_is_open_while_it_streams_and_folded_afterwards(stage: Open) -> None:
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

"""Splitting reasoning from the answer."""

from __future__ import annotations

import pytest

from tqchat.ui.controller.texts.reasoning import Splitter, split

REPLY = "<think>\nFoxes are\nred.\n</think>\n\nThey are **red**."


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (REPLY, ("Foxes are\nred.", "They are **red**.")),
        ("Plain.", ("", "Plain.")),
        ("<think>never closed", ("never closed", "")),
        ("opened by the template</think>Answer", ("opened by the template", "Answer")),
        ("Use <think> and </think> in your text.", ("", "Use <think> and </think> in your text.")),
        ("<thinker>no</thinker>", ("", "<thinker>no</thinker>")),
        ("", ("", "")),
    ],
)
def test_reasoning_and_answer_are_split(text: str, parts: tuple[str, str]) -> None:
    assert split(text) == parts


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("text", [REPLY, "Plain < text.", "<thin air>", "  <think>a</th b</think>c"])
def test_streamed_text_splits_like_complete_text(text: str, size: int) -> None:
    splitter = Splitter()
    thought = answer = ""
    for start in range(0, len(text), size):
        one, other = splitter.feed(text[start : start + size])
        thought, answer = thought + one, answer + other
    assert (thought.strip(), answer.strip()) == (split(text)[0], split(text)[1].strip())

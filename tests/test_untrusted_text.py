"""Everything that takes apart text of models, imports, files and users does so in linear time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests import hostile
from tests.scaling import assert_linear
from tqchat.engine.reasoning.splitter import Splitter
from tqchat.engine.reasoning_marks import PAIRS, Marks, marks_of, opened_at_end, split_thought
from tqchat.store.reasoning_tags import split_reasoning
from tqchat.store.search import query_words, snippet
from tqchat.ui.controller.texts.titles import title_from_answer, title_from_message
from tqchat.ui.controller.texts.transcript import code_blocks
from tqchat.ui.input import attachments, slash


class NoControlTokens:
    """A vocabulary in which all marks are ordinary text."""

    def text(self, mark: str) -> str:
        return mark

    def is_control(self, mark: str) -> bool:
        return False

    def may_be_text(self, mark: str) -> bool:
        return False


def split_reply(text: str, piece: int) -> tuple[str, str]:
    splitter = Splitter(Marks(), NoControlTokens(), ("<|end|>",))  # type: ignore[arg-type]
    for at in range(0, len(text), piece):
        splitter.feed(text[at : at + piece])
    splitter.finish()
    return splitter.reasoning, splitter.answer


PARSERS: dict[str, Callable[[str], object]] = {
    "attached files": attachments.split,
    "code blocks": code_blocks,
    "command": lambda text: slash.read(f"/system {text}"),
    "assignments": slash.assignments,
    "title of a message": title_from_message,
    "title of a model": title_from_answer,
    "query": query_words,
    "snippet": lambda text: snippet(text, ["fox", "a"]),
    "reasoning of older versions": split_reasoning,
    "reasoning of a reply": lambda text: split_reply(text, len(text)),
    "reasoning in a template": lambda text: marks_of([], text),
    "reasoning in a prompt": opened_at_end,
    "reasoning in a transcript": lambda text: split_thought(text, PAIRS[0]),
}


@pytest.mark.parametrize("parser", PARSERS)
def test_untrusted_text_is_taken_apart_in_linear_time(parser: str) -> None:
    for unit in hostile.UNITS:
        assert_linear(PARSERS[parser], unit, characters=3_000)


@pytest.mark.parametrize("unit", hostile.UNITS)
def test_a_reply_is_split_alike_in_pieces_and_as_a_whole(unit: str) -> None:
    for text in (unit * 90, f"<think>{unit * 90}</think>\n\nanswer", f"{unit * 90}\n</think>\nanswer"):
        assert split_reply(text, len(text)) == split_reply(text, 1) == split_reply(text, 7)

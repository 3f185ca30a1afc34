"""Titles of conversations."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.ui.controller.rig import Rig
from tests.ui.scripted import INFO
from tqchat.ui.controller.texts.titles import title_from_answer

LARGE = replace(INFO, weight_bytes=4_000_000_000)


def test_the_title_is_the_first_line_that_is_not_blank(rig: Rig) -> None:
    rig.chat.turns.send("\n  \n  What is   a fox?\nAnd a vixen?")
    assert rig.chat.shown.conversation is not None
    assert rig.chat.shown.conversation.title == "What is a fox?"
    rig.engine.reply("An animal.")
    rig.chat.shown.rename("Foxes")
    rig.chat.turns.send("More")
    assert rig.chat.shown.conversation.title == "Foxes"


@pytest.mark.parametrize(
    ("answer", "title"),
    [
        ("Fox stories", "Fox stories"),
        ('"Fox Stories."\n\nThis title...', "Fox Stories"),
        ("**Title: Fox stories**", "Fox stories"),
        ("# Fox stories", "Fox stories"),
        ("\x1b[31mFox\x1b[0m", "Fox"),
        ("", None),
        ("x" * 200, None),
        ("I would call this one a story about a fox who went to the river", None),
    ],
)
def test_a_title_is_extracted_from_the_answer(answer: str, title: str | None) -> None:
    assert title_from_answer(answer) == title


def test_a_short_conversation_gets_a_title_once_the_engine_is_free(rig: Rig) -> None:
    rig.engine.ready(LARGE)
    rig.chat.turns.send("please tell me something about foxes")
    rig.engine.done("Foxes are red.")
    assert rig.engine.composing()[0].purpose == "title"
    assert rig.chat.work.activity is None, "nothing waits for a title"
    rig.engine.compose("Red foxes")
    assert rig.chat.shown.conversation is not None and rig.chat.shown.conversation.title == "Red foxes"
    assert rig.chat.shown.conversation.title_is_automatic
    rig.chat.turns.send("more")
    rig.engine.done("More.")
    assert len(rig.engine.composing()) == 1


def test_a_title_set_by_the_user_is_not_replaced(rig: Rig) -> None:
    rig.engine.ready(LARGE)
    rig.chat.turns.send("about foxes")
    rig.engine.done("Red.")
    rig.chat.shown.rename("Mine")
    rig.engine.compose("Red foxes")
    assert rig.chat.shown.conversation is not None and rig.chat.shown.conversation.title == "Mine"
    rig.chat.turns.send("more")
    rig.engine.done("More.")
    assert len(rig.engine.composing()) == 1


def test_an_interrupted_title_is_requested_again(rig: Rig) -> None:
    rig.engine.ready(LARGE)
    rig.chat.turns.send("about foxes")
    rig.engine.done("Red.")
    rig.engine.compose("")
    rig.chat.turns.send("more")
    rig.engine.done("More.")
    assert len(rig.engine.composing()) == 2


def test_a_tiny_model_is_not_asked_for_titles(rig: Rig) -> None:
    rig.chat.turns.send("about foxes")
    rig.engine.done("Red.")
    assert not rig.engine.composing()

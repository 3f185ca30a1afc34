"""A context that fills: said in time, and what can be done loses nothing."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from tests.ui.conftest import Open
from tests.ui.room import Room
from tests.ui.scripted import INFO
from tqchat.engine import events
from tqchat.store.database import Message
from tqchat.ui import composing
from tqchat.ui.composing import ACKNOWLEDGED, SUMMED_UP, newest, title_from_answer
from tqchat.ui.screens.dialog import Choose

LARGE = replace(INFO, weight_bytes=4_000_000_000)


def message(role: str, content: str) -> Message:
    return Message(content[:4], "c", None, role, content, "complete", time.time())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "title"),
    [
        ("Fox stories", "Fox stories"),
        ('"Fox Stories."\n\nThis title...', "Fox Stories"),
        ("**Title: Fox stories**", "Fox stories"),
        ("# Fox stories", "Fox stories"),
        ("<think>A fox.</think>\nFox stories", "Fox stories"),
        ("<think>never ends", None),
        ("\x1b[31mFox\x1b[0m", "Fox"),
        ("", None),
        ("x" * 200, None),
        ("I would call this one a story about a fox who went to the river", None),
    ],
)
def test_a_title_is_taken_if_it_is_one(answer: str, title: str | None) -> None:
    assert title_from_answer(answer) == title


def test_the_newest_begin_with_the_person() -> None:
    said = [message(role, "x" * 10) for role in ("user", "assistant") * 3]
    assert newest(said, 10_000) == said
    assert newest(said, 45) == said[2:]
    assert newest(said, 1) == said[4:]
    assert newest([], 10) == []


def test_a_young_conversation_is_named_when_the_engine_is_free(room: Room) -> None:
    room.engine.ready(LARGE)
    room.chat.send("please tell me something about foxes")
    room.engine.done("Foxes are red.")
    assert room.engine.composing()[0].purpose == "title"
    assert room.chat.activity is None, "nothing waits for a title"
    room.engine.compose("Red foxes")
    assert room.chat.conversation is not None and room.chat.conversation.title == "Red foxes"
    assert room.chat.conversation.title_is_automatic
    room.chat.send("more")
    room.engine.done("More.")
    assert len(room.engine.composing()) == 1


def test_a_title_of_ones_own_stays(room: Room) -> None:
    room.engine.ready(LARGE)
    room.chat.send("about foxes")
    room.engine.done("Red.")
    room.chat.rename("Mine")
    room.engine.compose("Red foxes")
    assert room.chat.conversation is not None and room.chat.conversation.title == "Mine"
    room.chat.send("more")
    room.engine.done("More.")
    assert len(room.engine.composing()) == 1


def test_a_title_that_gave_way_is_asked_for_again(room: Room) -> None:
    room.engine.ready(LARGE)
    room.chat.send("about foxes")
    room.engine.done("Red.")
    room.engine.compose("")
    room.chat.send("more")
    room.engine.done("More.")
    assert len(room.engine.composing()) == 2


def test_a_tiny_model_is_not_asked_for_titles(room: Room) -> None:
    room.chat.send("about foxes")
    room.engine.done("Red.")
    assert not room.engine.composing()


def talk(room: Room, turns: int, size: int = 400) -> None:
    for number in range(turns):
        room.chat.send(f"{number} question " + "x" * size)
        room.engine.done(f"{number} answer", tokens=400 * (number + 1))


def test_a_nearly_full_context_is_said_once(room: Room) -> None:
    talk(room, 2)
    assert room.view.nearly_full == 0
    for tokens in (3_600, 3_700):
        room.chat.send("more")
        room.engine.done("yes", tokens=tokens)
    assert room.view.nearly_full == 1
    assert room.chat.tokens_left() == INFO.context_limit - 3_700  # type: ignore[operator]


def test_the_oldest_turns_are_left_out_and_still_there(room: Room) -> None:
    talk(room, 8, size=1_500)
    before = room.said()
    assert room.chat.drop_oldest()
    kept = room.said()
    assert kept == before[-len(kept) :] and len(kept) < len(before) and kept[0][0] == "user"
    first = room.chat.messages[0]
    assert room.chat.version(first) == (2, 2)
    room.chat.step_version(first.id, -1)
    assert room.said() == before


def test_it_goes_on_from_a_summary(room: Room) -> None:
    talk(room, 8, size=1_500)
    before = room.said()
    assert room.chat.go_on_from_summary()
    asked = room.engine.composing()[-1]
    assert "0 question" in asked.messages[-1].content and "0 answer" in asked.messages[-1].content
    assert not room.chat.send("not now"), "one thing at a time"
    room.engine.compose("We spoke of x.")
    said = room.said()
    assert said[0][:2] == ("user", SUMMED_UP + "We spoke of x.") and said[1][1] == ACKNOWLEDGED
    assert said[2:] == before[-len(said[2:]) :]
    room.chat.send("And now?")
    assert room.engine.sent()[-1].messages[0].content.startswith(SUMMED_UP)
    room.engine.done("On we go.")
    room.chat.step_version(room.chat.messages[0].id, -1)
    assert room.said() == before


def test_a_summary_that_was_stopped_or_failed_changes_nothing(room: Room) -> None:
    talk(room, 8, size=1_500)
    before = room.said()
    assert room.chat.go_on_from_summary() and room.chat.stop()
    assert room.engine.stops == 1
    room.engine.compose("")
    assert room.said() == before and room.chat.activity is None
    assert room.chat.go_on_from_summary()
    room.engine.say(events.Failed(room.engine.composing()[-1].conversation_id, "No memory."))
    assert room.said() == before and room.chat.activity is None
    assert room.chat.send("goes on")


def test_an_unanswered_message_is_answered_behind_the_summary(room: Room) -> None:
    talk(room, 8, size=1_500)
    room.chat.send("too much")
    room.engine.say(events.Failed(room.engine.sent()[-1].conversation_id, "Too long.", context_full=True))
    assert room.view.full == 1
    assert room.chat.go_on_from_summary()
    room.engine.compose("All of it.")
    assert room.engine.sent()[-1].messages[0].content.startswith(composing.SUMMED_UP)
    assert room.engine.sent()[-1].messages[-1].content == "too much"


async def test_what_can_be_done_is_offered_before_it_fails(stage: Open) -> None:
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


async def test_the_offers_are_there_at_any_time(stage: Open) -> None:
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
        assert it.app.chat.messages[0].content == SUMMED_UP + "Words."
        await it.sees("context ≈")


async def test_reading_a_long_prompt_says_how_long_it_takes(stage: Open) -> None:
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

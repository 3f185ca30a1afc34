"""The context limit: warnings, dropping messages, summaries."""

from __future__ import annotations

import time
from dataclasses import replace

from tests.ui.controller.rig import Rig
from tests.ui.scripted import INFO
from tqchat.engine import events
from tqchat.store.database import Message
from tqchat.ui.controller.texts.summaries import ACKNOWLEDGEMENT, SUMMARY_HEADING, newest_messages


def test_the_newest_messages_begin_with_the_user() -> None:
    said = [message(role, "x" * 10) for role in ("user", "assistant") * 3]
    assert newest_messages(said, 10_000) == said
    assert newest_messages(said, 45) == said[2:]
    assert newest_messages(said, 1) == said[4:]
    assert newest_messages([], 10) == []


def message(role: str, content: str) -> Message:
    return Message(content[:4], "c", None, role, content, "complete", time.time())  # type: ignore[arg-type]


def talk(rig: Rig, turns: int, size: int = 400) -> None:
    for number in range(turns):
        rig.chat.turns.send(f"{number} question " + "x" * size)
        rig.engine.done(f"{number} answer", tokens=400 * (number + 1))


def test_a_nearly_full_context_is_reported_once(rig: Rig) -> None:
    talk(rig, 2)
    assert rig.view.nearly_full == 0
    for tokens in (3_600, 3_700):
        rig.chat.turns.send("more")
        rig.engine.done("yes", tokens=tokens)
    assert rig.view.nearly_full == 1
    assert rig.chat.context.tokens_left() == INFO.context_limit - 3_700  # type: ignore[operator]


def test_dropping_the_oldest_turns_keeps_them_as_a_version(rig: Rig) -> None:
    talk(rig, 7, size=1_500)
    rig.chat.turns.send("Last")
    rig.engine.delta("Let me see.", part="reasoning")
    rig.engine.done("Yes.", reasoning="Let me see.", tokens=3_300)
    before, written = rig.transcript(), rig.chat.shown.messages[-1]
    assert rig.chat.context.drop_oldest()
    kept = rig.transcript()
    assert kept == before[-len(kept) :] and len(kept) < len(before) and kept[0][0] == "user"
    first, *_, last = rig.chat.shown.messages
    assert last == replace(
        written,
        id=last.id,
        parent_id=last.parent_id,
        tokens=None,
        tokens_per_second=None,
        first_token_seconds=None,
        scheme=None,
        prompt_tokens=None,
        drafted=None,
        accepted=None,
        cache_bytes=None,
        fp16_bytes=None,
    ), "with its time, model and reasoning, but its figures are counted once"
    assert rig.chat.tree.version(first) == (2, 2)
    rig.chat.tree.step_version(first.id, -1)
    assert rig.transcript() == before


def test_a_summary_replaces_the_older_messages(rig: Rig) -> None:
    talk(rig, 8, size=1_500)
    before = rig.transcript()
    assert rig.chat.context.summarise()
    asked = rig.engine.composing()[-1]
    assert "0 question" in asked.messages[-1].content and "0 answer" in asked.messages[-1].content
    assert not rig.chat.turns.send("not now"), "one thing at a time"
    rig.engine.compose("We spoke of x.")
    said = rig.transcript()
    assert said[0][:2] == ("user", SUMMARY_HEADING + "We spoke of x.") and said[1][1] == ACKNOWLEDGEMENT
    assert said[2:] == before[-len(said[2:]) :]
    rig.chat.turns.send("And now?")
    assert rig.engine.sent()[-1].messages[0].content.startswith(SUMMARY_HEADING)
    rig.engine.done("On we go.")
    rig.chat.tree.step_version(rig.chat.shown.messages[0].id, -1)
    assert rig.transcript() == before


def test_a_stopped_or_failed_summary_changes_nothing(rig: Rig) -> None:
    talk(rig, 8, size=1_500)
    before = rig.transcript()
    assert rig.chat.context.summarise() and rig.chat.turns.stop()
    assert rig.engine.stops == 1
    rig.engine.compose("")
    assert rig.transcript() == before and rig.chat.work.activity is None
    assert rig.chat.context.summarise()
    rig.engine.emit(events.Failed(rig.engine.composing()[-1].conversation_id, "No memory."))
    assert rig.transcript() == before and rig.chat.work.activity is None
    assert rig.chat.turns.send("goes on")


def test_an_unanswered_message_is_answered_after_the_summary(rig: Rig) -> None:
    talk(rig, 8, size=1_500)
    rig.chat.turns.send("too much")
    one = rig.engine.sent()[-1].conversation_id
    rig.engine.emit(events.Failed(one, "Too long.", context_full=True, tokens=5_000))
    assert rig.view.full == 1 and rig.chat.context.used == 5_000
    assert rig.chat.context.summarise()
    rig.engine.compose("All of it.")
    assert rig.engine.sent()[-1].messages[0].content.startswith(SUMMARY_HEADING)
    assert rig.engine.sent()[-1].messages[-1].content == "too much"

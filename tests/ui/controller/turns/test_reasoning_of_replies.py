"""Reasoning of replies: stored with the reply, and sent to the engine."""

from __future__ import annotations

from dataclasses import replace

from tests.ui.controller.rig import Rig
from tests.ui.scripted import INFO, report
from tqchat.engine import commands, events


def delta(rig: Rig, text: str, part: commands.Part = "answer", takes_answer: bool = False) -> None:
    conversation_id = rig.engine.sent()[-1].conversation_id
    rig.engine.emit(events.TextDelta(conversation_id, text, part, takes_answer))


def done(
    rig: Rig, text: str, reasoning: str, reason: events.StopReason = "stop", takes_answer: bool = False
) -> None:
    send = rig.engine.sent()[-1]
    event = events.Done(
        send.conversation_id,
        text,
        reason,
        events.TokenCounts(40, 0, 0, 40, 60),
        900.0,
        71.0,
        0.2,
        send.scheme,
        INFO.name,
        report(100, send.scheme),
        reasoning=reasoning,
        reasoning_tokens=9,
        reasoning_seconds=2.0,
        takes_answer=takes_answer,
    )
    rig.engine.emit(event)


def test_reasoning_is_stored_and_sent_apart_from_the_answer(rig: Rig) -> None:
    rig.chat.turns.send("Which letter?")
    delta(rig, "Count.", "reasoning")
    delta(rig, "J.")
    done(rig, "J.", "Count.")
    reply = rig.chat.shown.messages[-1]
    assert (reply.content, reply.reasoning, reply.reasoning_seconds) == ("J.", "Count.", 2.0)
    rig.chat.turns.send("Sure?")
    said = rig.engine.sent()[-1].messages[1]
    assert (said.content, said.reasoning) == ("J.", "Count.")


def test_a_reply_stopped_during_reasoning_is_kept_and_continues_its_reasoning(rig: Rig) -> None:
    rig.chat.turns.send("Which letter?")
    delta(rig, "Count", "reasoning")
    rig.chat.turns.stop()
    done(rig, "", "Count", "stopped")
    reply = rig.chat.shown.messages[-1]
    assert (reply.content, reply.reasoning, reply.status) == ("", "Count", "stopped")
    assert rig.view.returned == []
    assert rig.chat.turns.continue_reply()
    send = rig.engine.sent()[-1]
    assert send.continues and send.messages[-1].reasoning == "Count"
    delta(rig, " on.", "reasoning")
    done(rig, "J.", " on.")
    reply = rig.chat.shown.messages[-1]
    assert (reply.content, reply.reasoning, reply.reasoning_seconds) == ("J.", "Count on.", 4.0)


def test_an_answer_becomes_reasoning_at_a_closing_mark(rig: Rig) -> None:
    rig.chat.turns.send("Which letter?")
    delta(rig, "Count.")
    delta(rig, "", "reasoning", takes_answer=True)
    delta(rig, "J.")
    done(rig, "J.", "Count.", takes_answer=True)
    reply = rig.chat.shown.messages[-1]
    assert (reply.content, reply.reasoning) == ("J.", "Count.")


def test_the_choice_of_a_conversation_is_sent_to_the_engine(rig: Rig) -> None:
    rig.chat.thinking.defaults = commands.Thinking("low", 300)
    rig.engine.ready(replace(INFO, thinking_choices=("off", "on")))
    assert rig.chat.thinking.choices == ("off", "on")
    rig.chat.thinking.set("off")
    rig.chat.turns.send("Which letter?")
    assert rig.engine.sent()[-1].thinking == commands.Thinking("off", 300)
    done(rig, "J.", "")
    rig.chat.thinking.set(None)
    assert rig.chat.thinking.choice == "low"
    rig.chat.turns.send("Sure?")
    assert rig.engine.sent()[-1].thinking == commands.Thinking("low", 300)

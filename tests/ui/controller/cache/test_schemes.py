"""Scheme changes and ``auto``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.ui.controller.rig import Rig, turn
from tests.ui.scripted import report
from tqchat.engine import commands, events
from tqchat.engine.memory.auto_scheme import UNMEASURED
from tqchat.ui.controller.texts.sentences import kept_rounding


def answered(rig: Rig, question: str) -> str:
    """Begin another conversation and have its first message answered; the conversation's id."""
    rig.chat.shown.new()
    turn(rig, question, "Hi.")
    assert rig.chat.shown.id is not None
    return rig.chat.shown.id


def test_a_scheme_set_before_the_first_message_is_for_this_conversation_only(rig: Rig) -> None:
    rig.chat.schemes.set("affine4")
    rig.chat.turns.send("Hello")
    assert rig.engine.sent()[-1].scheme == "affine4"
    rig.engine.reply("Hi.")
    rig.chat.shown.new()
    assert rig.chat.schemes.chosen == "turbo0v4"


def test_a_live_cache_is_converted_and_the_scheme_stored(rig: Rig) -> None:
    rig.chat.turns.send("Hello")
    rig.engine.reply("Hi.", tokens=900)
    rig.chat.schemes.set("turbo0v2")
    assert isinstance(rig.engine.commands[-1], commands.SetScheme)
    assert rig.chat.schemes.chosen == "turbo0v2"
    assert rig.chat.caches.report == report(900, "turbo0v2")
    assert rig.view.said[-1][1].startswith("Converted 900 tokens from turbo0v4 to turbo0v2")
    rig.chat.schemes.set("fp16")
    assert "keeps its earlier rounding" in rig.view.said[-1][1]
    rig.chat.schemes.set("turbo0v4", reread=True)
    last = rig.engine.commands[-1]
    assert isinstance(last, commands.SetScheme) and last.reread and len(last.messages) == 2


def test_a_smaller_scheme_that_the_engine_chose_instead_is_stored(rig: Rig) -> None:
    rig.chat.turns.send("Hello")
    rig.engine.reply("Hi.", tokens=900)
    conversation = rig.chat.shown.conversation
    assert conversation is not None
    rig.engine.converts = False
    rig.chat.schemes.set("fp16")
    smaller = report(900, "affine8")
    rig.engine.emit(
        events.SchemeChanged(
            conversation.id, "affine8", "turbo0v4", 900, 0.1, False, True, 1, smaller.bytes, smaller
        )
    )
    assert rig.chat.schemes.chosen == "affine8"


def test_the_message_tells_which_rounding_is_kept(rig: Rig) -> None:
    plain = report(900, "turbo4")
    layers = tuple(replace(layer, rounded_tokens=700, rounded_bits=(16, 2)) for layer in plain.layers)
    assert kept_rounding(replace(plain, layers=layers)).endswith(": 700 tokens, values at 2 bits.")
    layers = tuple(replace(layer, rounded_times=3) for layer in layers)
    said = kept_rounding(replace(plain, layers=layers))
    assert said.endswith(": 700 tokens, values at 2 bits, rounded up to 3 times.")


def test_a_cache_saved_under_another_scheme_is_converted_when_it_is_opened(rig: Rig) -> None:
    one = answered(rig, "Hello")
    answered(rig, "Another")
    for saved, changes in (("turbo0v4", 0), ("turbo2", 1)):
        rig.engine.restored = events.Opened(one, 900, 0.1, scheme=saved)
        rig.chat.shown.new()
        rig.chat.work.open_id = None
        asked = len(rig.engine.commands)
        rig.chat.shown.open(one)
        kinds = [type(command) for command in rig.engine.commands[asked:]]
        assert kinds == [commands.OpenConversation, *[commands.SetScheme] * changes]
    assert rig.chat.schemes.chosen == "turbo0v4"


def test_a_scheme_change_during_a_reply_waits_for_its_end(rig: Rig) -> None:
    rig.chat.turns.send("Hello")
    rig.engine.delta("H")
    rig.chat.schemes.set("turbo0v2")
    assert not any(isinstance(command, commands.SetScheme) for command in rig.engine.commands)
    rig.engine.done("Hi.")
    assert isinstance(rig.engine.commands[-1], commands.SetScheme)


def test_changes_asked_for_in_two_conversations_during_a_reply_are_both_made(rig: Rig) -> None:
    one, two = answered(rig, "First"), answered(rig, "Second")
    rig.chat.turns.send("Go on")
    rig.chat.schemes.set("turbo0v2")
    rig.chat.shown.open(one)
    rig.chat.schemes.set("affine8")
    rig.engine.done("Hi.")
    changes = [command for command in rig.engine.commands if isinstance(command, commands.SetScheme)]
    assert [(change.conversation_id, change.scheme) for change in changes] == [
        (two, "turbo0v2"),
        (one, "affine8"),
    ]


def test_asking_for_the_present_scheme_cancels_a_change_that_is_pending(rig: Rig) -> None:
    rig.chat.turns.send("Hello")
    rig.engine.delta("H")
    rig.chat.schemes.set("turbo0v2")
    rig.chat.schemes.set("turbo0v4")
    rig.engine.done("Hi.")
    assert not any(isinstance(command, commands.SetScheme) for command in rig.engine.commands)
    assert rig.chat.schemes.chosen == "turbo0v4"


def test_a_scheme_asked_for_during_a_conversion_follows_it(rig: Rig) -> None:
    turn(rig, "Hello", "Hi.")
    rig.engine.converts = False
    rig.chat.schemes.set("turbo0v2")
    rig.chat.schemes.set("turbo0v4")
    assert rig.chat.schemes.chosen == "turbo0v4", "the cache still has it"
    rig.engine.converts = True
    conversation = rig.chat.shown.conversation
    assert conversation is not None
    size = report(300, "turbo0v2")
    rig.engine.emit(
        events.SchemeChanged(conversation.id, "turbo0v2", "turbo0v4", 300, 0.1, False, True, 9, 5, size)
    )
    last = rig.engine.commands[-1]
    assert isinstance(last, commands.SetScheme) and last.scheme == "turbo0v4"
    assert rig.chat.schemes.chosen == "turbo0v4"


def test_a_change_that_waits_says_for_which_reply(rig: Rig) -> None:
    first = answered(rig, "Hello")
    rig.chat.shown.new()
    rig.chat.turns.send("Another")
    rig.chat.shown.open(first)
    rig.chat.schemes.set("fp16")
    assert rig.view.said[-1][1] == "Changes to fp16 when another reply is done."
    rig.engine.reply("Hi.")
    rig.chat.turns.send("More")
    rig.chat.schemes.set("turbo4")
    assert rig.view.said[-1][1] == "Changes to turbo4 when this reply is done."


def test_a_change_asked_for_during_a_reply_that_fails_is_made(rig: Rig) -> None:
    rig.chat.turns.send("Hello")
    rig.engine.delta("H")
    rig.chat.schemes.set("turbo0v2")
    conversation = rig.chat.shown.conversation
    assert conversation is not None
    rig.engine.emit(events.Failed(conversation.id, "Out of memory."))
    assert isinstance(rig.engine.commands[-1], commands.SetScheme)
    assert rig.chat.schemes.chosen == "turbo0v2"


def test_a_cache_read_again_under_its_scheme_is_not_called_a_change(rig: Rig) -> None:
    turn(rig, "Hello", "Hi.")
    rig.chat.schemes.set("turbo0v2")
    rig.chat.schemes.set("turbo0v2", reread=True)
    assert rig.view.said[-1][1].startswith("Re-read 300 tokens under turbo0v2 in ")
    assert rig.chat.schemes.undo() and rig.chat.schemes.chosen == "turbo0v4"


def test_a_cache_on_disk_is_converted_once_there_is_a_model(path: Path) -> None:
    rig = Rig(path)
    rig.chat.turns.send("Hello")
    rig.engine.reply("Hi.")
    assert rig.chat.shown.conversation is not None
    one = rig.chat.shown.conversation.id
    rig.chat.close()
    rig.database.close()
    rig = Rig(path, loads=False)
    rig.chat.caches.disk_bytes[one] = 1000
    rig.chat.shown.open(one)
    rig.chat.schemes.set("turbo0v2")
    assert rig.view.said[-1][1] == "Changes to turbo0v2 once the model is loaded."
    rig.engine.ready()
    changes = [command for command in rig.engine.commands if isinstance(command, commands.SetScheme)]
    assert [(change.conversation_id, change.scheme) for change in changes] == [(one, "turbo0v2")]
    assert rig.chat.schemes.chosen == "turbo0v2"


def test_auto_is_stored_and_resolved_for_the_engine(rig: Rig) -> None:
    rig.chat.schemes.set("auto")
    rig.chat.turns.send("Hello")
    assert rig.engine.sent()[-1].scheme == UNMEASURED
    rig.engine.reply("Hi.")
    assert rig.chat.shown.conversation is not None and rig.chat.shown.conversation.scheme == "auto"
    assert rig.chat.schemes.label == f"auto: {UNMEASURED}"
    rig.chat.schemes.set("turbo3")
    assert rig.chat.shown.conversation.scheme == "turbo3"
    rig.chat.schemes.set("auto")
    change = rig.engine.commands[-1]
    assert isinstance(change, commands.SetScheme) and change.scheme == UNMEASURED
    assert rig.chat.shown.conversation.scheme == "auto", "what was converted is the choice, not its result"


def test_a_failed_conversion_does_not_name_a_later_change_by_the_engine(rig: Rig) -> None:
    turn(rig, "Hello", "Hi.")
    rig.engine.converts = False
    rig.chat.schemes.set("turbo0v2")
    failed = rig.engine.commands[-1]
    assert isinstance(failed, commands.SetScheme)
    rig.engine.emit(events.Failed(failed.conversation_id, "Out of memory."))
    assert rig.chat.schemes.chosen == "turbo0v4" and rig.chat.work.activity is None
    counted = report(300, "turbo2")
    rig.engine.emit(
        events.SchemeChanged(
            failed.conversation_id, "turbo2", "turbo0v4", 300, 0.1, False, False, 900, 500, counted
        )
    )
    assert rig.chat.schemes.chosen == "turbo2"


@pytest.mark.parametrize("change", ["opened again", "asked for again", "settings", "model"])
def test_auto_keeps_a_scheme_whose_conversion_was_stopped_until_something_changes(
    rig: Rig, change: str
) -> None:
    rig.chat.schemes.set("auto")
    turn(rig, "Hello", "Hi.")
    one = rig.chat.shown.id
    assert one is not None
    rig.engine.restored = events.Opened(one, 900, 0.1, scheme="turbo2")
    rig.engine.converts = False

    def open_again() -> None:
        rig.chat.shown.new()
        rig.chat.work.open_id = None
        rig.chat.shown.open(one)

    open_again()
    assert isinstance(rig.engine.commands[-1], commands.SetScheme)
    assert rig.chat.turns.stop() and rig.engine.stops == 1
    rig.engine.emit(events.Failed(one, "Stopped."))
    assert rig.database.conversation(one).scheme == rig.chat.schemes.chosen == "auto"
    assert rig.chat.schemes.label == "auto: turbo2"
    assert UNMEASURED in rig.chat.schemes.auto_choice.reason
    turn(rig, "More", "Yes.")
    assert rig.engine.sent()[-1].scheme == "turbo2"

    if change == "opened again":
        open_again()
    elif change == "asked for again":
        rig.chat.schemes.set("auto")
    elif change == "settings":
        rig.chat.use_defaults("turbo4", None, commands.Sampling())
    else:
        rig.engine.ready()
    assert rig.chat.schemes.resolve(one, "auto") == UNMEASURED
    if change in ("opened again", "asked for again"):
        last = rig.engine.commands[-1]
        assert isinstance(last, commands.SetScheme) and last.scheme == UNMEASURED
        rig.engine.emit(events.Failed(one, "Stopped."))
        assert rig.chat.schemes.label == "auto: turbo2"

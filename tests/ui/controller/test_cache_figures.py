"""Cache figures of conversations."""

from __future__ import annotations

from pathlib import Path

from tests.ui.controller.rig import Rig
from tqchat.engine import events


def test_a_note_says_how_much_was_restored_or_why_not(path: Path) -> None:
    rig = Rig(path)
    rig.chat.turns.send("Hello")
    rig.engine.reply("Hi.")
    assert rig.chat.shown.conversation is not None
    one = rig.chat.shown.conversation.id
    rig.chat.shown.new()
    rig.chat.turns.send("Another")
    rig.engine.reply("Hi.")
    rig.engine.restored = events.Opened(one, 3076, 0.1)
    rig.chat.shown.open(one)
    assert rig.chat.caches.restore_notes[one] == "Restored 3,076 tokens, nothing re-read."
    rig.engine.say(events.Opened(one, 0, 0.1, "This cache was made with another model; re-reading."))
    assert rig.chat.caches.restore_notes[one].startswith("This cache was made with another model")


def test_another_model_clears_the_figures(rig: Rig) -> None:
    rig.chat.turns.send("Hello")
    rig.engine.reply("Hi.")
    assert rig.chat.caches.report is not None
    rig.chat.models.load("other/model")
    assert rig.chat.caches.report is None

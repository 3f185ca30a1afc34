"""Cache figures of conversations."""

from __future__ import annotations

from pathlib import Path

from tests.ui.controller.rig import Core, Rig
from tests.ui.scripted import report
from tqchat.engine import events
from tqchat.ui.controller.cache.figures import CacheFigures


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
    rig.engine.emit(events.Opened(one, 1065, 0.1, tokens=1199))
    note = "Restored 1,065 tokens, the next message re-reads 134."
    assert rig.chat.caches.restore_notes[one] == note
    rig.engine.emit(events.Opened(one, 0, 0.1, "This cache was made with another model; re-reading."))
    assert rig.chat.caches.restore_notes[one].startswith("This cache was made with another model")


def test_the_context_counts_what_the_next_message_reads(path: Path) -> None:
    rig = Rig(path)
    rig.chat.turns.send("Hello")
    rig.engine.reply("Hi.", 300)
    assert rig.chat.shown.conversation is not None
    one = rig.chat.shown.conversation.id
    rig.chat.shown.new()
    rig.chat.turns.send("Another")
    rig.engine.reply("Hi.")
    rig.engine.restored = events.Opened(one, 0, 0.1, "221 tokens are read again.", 221)
    rig.chat.shown.open(one)
    rig.engine.emit(events.MemoryUpdate(one, report(0)))
    assert (rig.chat.context.used, rig.chat.context.is_estimate) == (221, False)
    rig.chat.turns.send("More")
    rig.engine.reply("Hi.", 340)
    assert (rig.chat.context.used, rig.chat.context.is_estimate) == (340, False)
    rig.chat.turns.regenerate()
    rig.engine.reply("Hi.", 330)
    assert rig.chat.context.used == 330, "what was counted at the start is forgotten"


def test_the_context_is_that_of_the_branch_that_is_shown(path: Path) -> None:
    rig = Rig(path)
    rig.chat.turns.send("Hello")
    rig.engine.reply("Hi.", 40)
    rig.chat.turns.send("Tell me everything. " * 20)
    rig.engine.reply("All of it.", 700)
    question = rig.chat.shown.messages[2]
    rig.chat.tree.fork_at(question)
    rig.chat.turns.send("Tell me little.")
    rig.engine.reply("A little.", 60)
    assert rig.chat.context.used == 60
    rig.chat.tree.show_message(question.id)
    assert (rig.chat.context.used, rig.chat.context.is_estimate) == (700, False)
    rig.chat.turns.regenerate()
    assert rig.chat.context.is_estimate and rig.chat.context.used > 100, "its reply is gone"
    rig.chat.turns.stop()
    rig.engine.done("", "stopped", 40)
    assert (rig.chat.context.used, rig.chat.context.is_estimate) == (700, False)


def test_another_model_clears_the_figures(rig: Rig) -> None:
    rig.chat.turns.send("Hello")
    rig.engine.reply("Hi.")
    assert rig.chat.caches.report is not None
    rig.chat.models.load("other/model")
    assert rig.chat.caches.report is None


def test_figures_are_kept_by_conversation_without_an_engine(core: Core) -> None:
    caches = CacheFigures(core.database, core.shown, core.models, core.work)
    assert caches.report is None and not caches.exists
    conversation_id = core.show("Hello")[0].conversation_id
    caches.record(conversation_id, report(300))
    caches.record("another", report(900))
    assert caches.report == report(300)
    assert [sample.tokens for sample in caches.history.samples] == [300]
    assert not caches.exists, "figures alone are no cache"
    core.work.open_id = conversation_id
    assert caches.is_live and caches.exists
    core.work.open_id = None
    caches.saved(events.Saved(conversation_id, 300, 1_000, 0.1))
    assert not caches.is_live and caches.exists
    caches.forget_live()
    assert caches.report is None and caches.disk_bytes == {conversation_id: 1_000}
    caches.forget(conversation_id)
    assert not caches.exists

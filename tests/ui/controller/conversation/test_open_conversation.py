"""The shown conversation: unsent text, system prompt, other processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.ui.controller.rig import Core, Rig, turn
from tests.ui.scripted import INFO
from tqchat.store.database import ConversationInUse, Database


def test_the_default_system_prompt_is_sent_first(path: Path) -> None:
    rig = Rig(path, system_prompt="Be brief.")
    rig.chat.turns.send("Hello")
    turns = [(turn.role, turn.content) for turn in rig.engine.sent()[-1].messages]
    assert turns == [("system", "Be brief."), ("user", "Hello")]


def test_unsent_text_stays_with_its_conversation(rig: Rig) -> None:
    turn(rig, "About foxes", "Red.")
    foxes = rig.chat.shown.conversation
    assert foxes is not None
    rig.chat.shown.keep_unsent_text("and cubs")
    rig.chat.shown.new()
    assert rig.chat.shown.unsent_text == ""
    rig.chat.shown.keep_unsent_text("owls")
    rig.chat.shown.open(foxes.id)
    assert rig.chat.shown.unsent_text == "and cubs"
    turn(rig, "and cubs?", "Small.")
    assert rig.chat.shown.unsent_text == ""
    rig.chat.shown.new()
    assert rig.chat.shown.unsent_text == "owls"


def test_a_conversation_open_in_another_process_is_read_only(rig: Rig, path: Path) -> None:
    with Database(path) as other:
        theirs = other.create("Theirs", None, "fp16")
        other.add_message(theirs.id, "user", "Hello")
        lease = lease_of_another_process(other, theirs.id)
        rig.chat.shown.open(theirs.id)
        assert rig.chat.shown.read_only is not None and "another tqchat" in rig.chat.shown.read_only
        assert not rig.chat.turns.send("Mine"), "the text stays in the prompt"
        assert rig.view.said[-1][0] == "error"
        lease.kill()
        lease.wait()
        rig.chat.shown.refresh()
        assert rig.chat.shown.read_only is None
        assert rig.chat.turns.send("Mine")


def test_a_conversation_that_another_process_deletes_is_left_and_its_lease_is_free(
    rig: Rig, path: Path
) -> None:
    with Database(path) as other:
        theirs = other.create("Theirs", None, "fp16")
        lease = lease_of_another_process(other, theirs.id)
        rig.chat.shown.open(theirs.id)
        lease.kill()
        lease.wait()
        other.delete(theirs.id)
        rig.chat.shown.refresh()
        assert rig.chat.shown.conversation is None and rig.chat.shown.read_only is None
        assert rig.view.said[-1][1] == "This conversation was deleted in another tqchat."
        other.leases.acquire(theirs.id).release()
    assert rig.chat.turns.send("Mine")


def test_a_read_only_conversations_reply_is_not_continued(rig: Rig, path: Path) -> None:
    with Database(path) as other:
        theirs = other.create("Theirs", INFO.ref, "fp16")
        other.add_message(theirs.id, "user", "Count")
        other.add_message(theirs.id, "assistant", "one, two", "stopped")
        lease = lease_of_another_process(other, theirs.id)
        rig.chat.shown.open(theirs.id)
        with pytest.raises(ConversationInUse):
            rig.chat.turns.continue_reply()
        with pytest.raises(ConversationInUse):
            rig.chat.turns.regenerate()
        assert rig.engine.sent() == [] and rig.chat.work.reply is None
        lease.kill()
        lease.wait()


def lease_of_another_process(database: Database, conversation_id: str):  # type: ignore[no-untyped-def]
    """A lease that another process holds until it is killed."""
    code = (
        "import sys; from pathlib import Path; from tqchat.store.lease import Leases\n"
        "lease = Leases(Path(sys.argv[1])).acquire(sys.argv[2]); print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(database.path), conversation_id],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[4],
    )
    assert process.stdout is not None and process.stdout.readline().strip() == b"held"
    return process


def test_changes_by_another_process_appear(rig: Rig, path: Path) -> None:
    changes: list[str] = []
    rig.view.conversations_changed = lambda: changes.append("list")  # type: ignore[method-assign]
    rig.chat.shown.refresh()
    assert changes == []
    with Database(path) as other:
        other.create("Theirs", None, "fp16")
    rig.chat.shown.refresh()
    assert changes == ["list"]


def test_only_another_branch_counts_as_changed(core: Core) -> None:
    first, reply = core.show("About foxes", "Red.")
    core.database.add_message(first.conversation_id, "user", "And owls?")
    core.shown.reread()
    assert core.branch_changes == [], "a message was added"
    core.database.rewind_to(first.conversation_id, first.id)
    core.shown.reread()
    assert core.branch_changes == [first.conversation_id]
    assert core.shown.places[reply.parent_id or ""].count == 1


def test_defaults_apply_to_a_new_conversation_that_has_not_decided(core: Core) -> None:
    core.shown.use_defaults("turbo4", "Be brief.")
    assert (core.shown.new_conversation.scheme, core.shown.system_prompt) == ("turbo4", "Be brief.")
    core.shown.set_system_prompt("Be long.")
    core.shown.new_conversation.scheme = "fp16"
    core.shown.use_defaults("affine8", None)
    assert (core.shown.new_conversation.scheme, core.shown.system_prompt) == ("fp16", "Be long.")
    core.shown.new()
    assert (core.shown.new_conversation.scheme, core.shown.system_prompt) == ("affine8", None)


def test_a_new_conversation_is_created_with_its_choices(core: Core) -> None:
    core.shown.set_system_prompt("Be brief.")
    core.shown.keep_unsent_text("Hello")
    created = core.shown.create("Foxes", "starter")
    assert core.database.conversations() == [created] and core.shown.conversation == created
    assert (created.scheme, created.system_prompt, created.model) == ("turbo0v4", "Be brief.", "starter")
    assert core.shown.unsent_text == ""

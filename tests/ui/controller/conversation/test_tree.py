"""Versions and branches."""

from __future__ import annotations

from tests.ui.controller.rig import Core, Rig, contents, turn
from tqchat.ui.controller.conversation.tree import TranscriptTree
from tqchat.ui.controller.records import Fork, QueuedTurn


def test_an_edited_message_is_another_version(rig: Rig) -> None:
    turn(rig, "About foxes", "Red.")
    turn(rig, "And owls?", "Grey.")
    first = rig.chat.shown.messages[0]
    assert rig.chat.tree.fork_at(first) == "About foxes"
    assert contents(rig) == ["About foxes", "Red.", "And owls?", "Grey."], "nothing changes before it is sent"
    turn(rig, "About whales", "Blue.")
    assert contents(rig) == ["About whales", "Blue."]
    assert rig.chat.tree.version(rig.chat.shown.messages[0]) == (2, 2)
    assert [turn.content for turn in rig.engine.sent()[-1].messages] == ["About whales"]
    assert rig.chat.tree.step_version(rig.chat.shown.messages[0].id, -1) == first
    assert contents(rig) == ["About foxes", "Red.", "And owls?", "Grey."]
    assert rig.chat.tree.step_version(first.id, -1) is None


def test_an_unanswered_edit_shows_the_old_branch_again(rig: Rig) -> None:
    turn(rig, "About foxes", "Red.")
    rig.chat.tree.fork_at(rig.chat.shown.messages[0])
    rig.chat.turns.send("About whales")
    rig.engine.done("", "stopped")
    assert contents(rig) == ["About foxes", "Red."]
    assert rig.view.returned == ["About whales"]


def test_a_fork_can_be_left(rig: Rig) -> None:
    turn(rig, "One", "1")
    rig.chat.tree.fork_at(rig.chat.shown.messages[0])
    assert rig.chat.tree.leave_fork() and not rig.chat.tree.leave_fork()
    turn(rig, "Two", "2")
    assert contents(rig) == ["One", "1", "Two", "2"]


def test_replies_to_one_message_are_versions(rig: Rig) -> None:
    turn(rig, "Hello", "Hi.")
    for answer in ("Good day.", "Hey."):
        assert rig.chat.turns.regenerate()
        rig.engine.reply(answer)
    reply = rig.chat.shown.messages[-1]
    assert (reply.content, rig.chat.tree.version(reply)) == ("Hey.", (3, 3))
    rig.chat.tree.step_version(reply.id, -1)
    assert contents(rig) == ["Hello", "Good day."]
    turn(rig, "More", "Well.")
    assert rig.chat.tree.latest_with_versions() == rig.chat.shown.messages[1]


def test_a_branch_below_an_earlier_reply_keeps_the_rest(rig: Rig) -> None:
    turn(rig, "One", "1")
    turn(rig, "Two", "2")
    assert rig.chat.tree.fork_at(rig.chat.shown.messages[1]) == ""
    turn(rig, "Three", "3")
    assert contents(rig) == ["One", "1", "Three", "3"]
    rig.chat.tree.step_version(rig.chat.shown.messages[2].id, -1)
    assert contents(rig) == ["One", "1", "Two", "2"]


def test_earlier_messages_cannot_change_during_a_reply(rig: Rig) -> None:
    turn(rig, "One", "1")
    rig.chat.turns.send("Two")
    assert rig.chat.tree.fork_at(rig.chat.shown.messages[0]) is None
    assert not rig.chat.turns.regenerate() and not rig.chat.turns.continue_reply()
    assert rig.chat.tree.step_version(rig.chat.shown.messages[0].id, 1) is None


def test_the_tree_needs_no_engine(core: Core) -> None:
    tree = TranscriptTree(core.database, core.view, core.shown, core.work)
    assert not tree.can_change, "nothing is shown"
    first, reply = core.show("About foxes", "Red.")
    tree.fork_at(first)
    assert core.shown.fork == Fork(None, edited_id=first.id)
    tree.rewind_to(first.id)
    assert core.shown.fork is None and core.shown.messages == [first]
    assert tree.show_message(reply.id) == reply
    assert core.shown.messages == [first, reply]
    core.work.waiting.append(QueuedTurn(first.conversation_id, None, None))
    assert not tree.can_change and tree.fork_at(reply) is None

"""The tree behind a conversation: nothing that was said is lost by saying it differently."""

from __future__ import annotations

from pathlib import Path

from tests.ui.room import Room
from tqchat.store.database import Database


def turn(room: Room, question: str, answer: str) -> None:
    assert room.chat.send(question)
    room.engine.reply(answer)


def contents(room: Room) -> list[str]:
    return [message.content for message in room.chat.messages]


def test_an_edited_message_stands_beside_the_old_one(room: Room) -> None:
    turn(room, "About foxes", "Red.")
    turn(room, "And owls?", "Grey.")
    first = room.chat.messages[0]
    assert room.chat.fork_at(first) == "About foxes"
    assert contents(room) == ["About foxes", "Red.", "And owls?", "Grey."], (
        "nothing changes before it is sent"
    )
    turn(room, "About whales", "Blue.")
    assert contents(room) == ["About whales", "Blue."]
    assert room.chat.version(room.chat.messages[0]) == (2, 2)
    assert [turn.content for turn in room.engine.sent()[-1].messages] == ["About whales"]
    assert room.chat.step_version(room.chat.messages[0].id, -1) == first
    assert contents(room) == ["About foxes", "Red.", "And owls?", "Grey."]
    assert room.chat.step_version(first.id, -1) is None


def test_an_edit_that_is_not_answered_leaves_the_old_branch(room: Room) -> None:
    turn(room, "About foxes", "Red.")
    room.chat.fork_at(room.chat.messages[0])
    room.chat.send("About whales")
    room.engine.done("", "stopped")
    assert contents(room) == ["About foxes", "Red."]
    assert room.view.returned == ["About whales"]


def test_a_fork_can_be_left(room: Room) -> None:
    turn(room, "One", "1")
    room.chat.fork_at(room.chat.messages[0])
    assert room.chat.leave_fork() and not room.chat.leave_fork()
    turn(room, "Two", "2")
    assert contents(room) == ["One", "1", "Two", "2"]


def test_replies_to_one_question_are_versions_of_each_other(room: Room) -> None:
    turn(room, "Hello", "Hi.")
    for answer in ("Good day.", "Hey."):
        assert room.chat.regenerate()
        room.engine.reply(answer)
    reply = room.chat.messages[-1]
    assert (reply.content, room.chat.version(reply)) == ("Hey.", (3, 3))
    room.chat.step_version(reply.id, -1)
    assert contents(room) == ["Hello", "Good day."]
    turn(room, "More", "Well.")
    assert room.chat.latest_with_versions() == room.chat.messages[1]


def test_an_earlier_reply_can_be_answered_again(room: Room) -> None:
    turn(room, "One", "1")
    turn(room, "Two", "2")
    assert room.chat.regenerate(room.chat.messages[1])
    room.engine.reply("uno")
    assert contents(room) == ["One", "uno"]


def test_a_branch_below_an_earlier_reply_leaves_the_rest(room: Room) -> None:
    turn(room, "One", "1")
    turn(room, "Two", "2")
    assert room.chat.fork_at(room.chat.messages[1]) == ""
    turn(room, "Three", "3")
    assert contents(room) == ["One", "1", "Three", "3"]
    room.chat.step_version(room.chat.messages[2].id, -1)
    assert contents(room) == ["One", "1", "Two", "2"]


def test_a_cut_off_reply_goes_on_where_it_ends(room: Room) -> None:
    room.chat.send("Count")
    room.engine.done("one, two", "stopped", tokens=100)
    assert room.chat.can_continue(room.chat.messages[-1])
    assert room.chat.continue_reply()
    sent = room.engine.sent()[-1]
    assert sent.continues and sent.messages[-1].content == "one, two"
    room.engine.delta(", three")
    room.engine.done(", three", tokens=150)
    last = room.chat.messages[-1]
    assert (last.content, last.status, last.tokens) == ("one, two, three", "complete", 60 + 110)
    assert len(room.chat.messages) == 2
    assert not room.chat.continue_reply(), "it is whole now"


def test_a_reply_stopped_before_it_went_on_is_kept(room: Room) -> None:
    room.chat.send("Count")
    room.engine.done("one, two", "length")
    assert room.chat.continue_reply()
    room.engine.done("", "stopped")
    assert room.said()[-1] == ("assistant", "one, two", "stopped")


def test_the_past_is_not_touched_while_it_is_answered(room: Room) -> None:
    turn(room, "One", "1")
    room.chat.send("Two")
    assert room.chat.fork_at(room.chat.messages[0]) is None
    assert not room.chat.regenerate() and not room.chat.continue_reply()
    assert room.chat.step_version(room.chat.messages[0].id, 1) is None


def test_a_deletion_can_be_undone(room: Room) -> None:
    turn(room, "About foxes", "Red.")
    assert room.chat.conversation is not None
    room.chat.delete(room.chat.conversation.id)
    assert room.database.conversations() == [] and room.chat.conversation is None
    assert room.chat.undelete()
    assert contents(room) == ["About foxes", "Red."]
    assert not room.chat.undelete()


def test_a_draft_stays_with_its_conversation(room: Room) -> None:
    turn(room, "About foxes", "Red.")
    foxes = room.chat.conversation
    assert foxes is not None
    room.chat.keep_draft("and cubs")
    room.chat.new()
    assert room.chat.draft == ""
    room.chat.keep_draft("owls")
    room.chat.open(foxes.id)
    assert room.chat.draft == "and cubs"
    turn(room, "and cubs?", "Small.")
    assert room.chat.draft == ""
    room.chat.new()
    assert room.chat.draft == "owls"


def test_what_a_conversation_decides_goes_before_the_settings(room: Room) -> None:
    from tqchat.store.database import SamplingChoice

    room.chat.set_system_prompt("Be brief.")
    room.chat.set_sampling(SamplingChoice(temperature=0.5))
    turn(room, "Hello", "Hi.")
    sent = room.engine.sent()[-1]
    assert [(turn.role, turn.content) for turn in sent.messages] == [
        ("system", "Be brief."),
        ("user", "Hello"),
    ]
    assert (sent.sampling.temperature, sent.sampling.max_tokens) == (0.5, 1024)
    room.chat.new()
    assert room.chat.system_prompt is None and room.chat.sampling_choice.given == {}


def test_a_conversation_open_elsewhere_is_read_only_until_it_is_closed_there(room: Room, path: Path) -> None:
    with Database(path) as other:
        theirs = other.create("Theirs", None, "fp16")
        other.add_message(theirs.id, "user", "Hello")
        lease = foreign_lease(other, theirs.id)
        room.chat.open(theirs.id)
        assert room.chat.read_only is not None and "another tqchat" in room.chat.read_only
        assert not room.chat.send("Mine"), "it is said, and the text stays in the prompt"
        assert room.view.said[-1][0] == "error"
        lease.kill()
        lease.wait()
        room.chat.refresh()
        assert room.chat.read_only is None
        assert room.chat.send("Mine")


def foreign_lease(database: Database, conversation_id: str):  # type: ignore[no-untyped-def]
    """A lease that another process holds until it is killed."""
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from tqchat.store.lease import Leases\n"
        "lease = Leases(Path(sys.argv[1])).acquire(sys.argv[2]); print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(database.path), conversation_id],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None and process.stdout.readline().strip() == b"held"
    return process


def test_what_another_process_writes_appears(room: Room, path: Path) -> None:
    changes: list[str] = []
    room.view.conversations_changed = lambda: changes.append("list")  # type: ignore[method-assign]
    room.chat.refresh()
    assert changes == []
    with Database(path) as other:
        other.create("Theirs", None, "fp16")
    room.chat.refresh()
    assert changes == ["list"]

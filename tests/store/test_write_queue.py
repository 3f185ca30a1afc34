"""Writing on a thread of its own: order, what is seen meanwhile, locks, replaced files, the end."""

from __future__ import annotations

import resource
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tqchat.paths import Paths
from tqchat.store import unsaved
from tqchat.store.database import Database, DatabaseUnreadable, StoreFull, UnknownMessage
from tqchat.store.write_queue import WriteQueue


class Writing:
    """A database with a queue, and what the queue reports."""

    def __init__(self, path: Path) -> None:
        self.problems: list[Exception | None] = []
        self.problem = threading.Event()
        self.queue = WriteQueue(path, on_problem=self._report)
        self.database = Database(path, self.queue)
        self.queue.start()

    def _report(self, problem: Exception | None) -> None:
        self.problems.append(problem)
        self.problem.set()

    def flushed(self) -> bool:
        return self.queue.flush(30.0)


@pytest.fixture
def writing(paths: Paths) -> Iterator[Writing]:
    writing = Writing(paths.database)
    yield writing
    writing.database.finish(30.0)
    writing.database.close()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield
    other.execute("ROLLBACK")
    other.close()


def contents(database: Database, conversation_id: str) -> list[str]:
    return [message.content for message in database.messages(conversation_id)]


def test_writes_are_seen_at_once_and_stored_in_order(writing: Writing, paths: Paths) -> None:
    database = writing.database
    with locked(paths.database):
        chat = database.create("Foxes", None, "fp16", system_prompt="Be brief.").id
        one = database.add_message(chat, "user", "one")
        database.add_message(chat, "assistant", "two", reasoning="thought")
        other = database.add_sibling(one.id, "one again")
        database.rename(chat, "Owls")
        database.set_draft(chat, "not sent")
        assert [one.title for one in database.conversations()] == ["Owls"]
        assert contents(database, chat) == ["one again"]
        assert database.siblings(one.id)[1] == other and database.newest_leaf(one.id).content == "two"
        assert not database.is_written(chat) and [one.id for one in database.unwritten()] == [chat]
        with Database(paths.database) as elsewhere:
            assert elsewhere.conversations() == []
    expected = database.conversation(chat), database.tree(chat)
    assert writing.flushed() and database.is_written(chat)
    with Database(paths.database) as elsewhere:
        assert (elsewhere.conversation(chat), elsewhere.tree(chat)) == expected
        assert [hit.conversation_id for hit in elsewhere.search("thought")] == [chat]


def test_deletions_and_their_undoing_are_replayed(writing: Writing, paths: Paths) -> None:
    database = writing.database
    chat = database.create("t", None, "fp16").id
    for content in ("one", "two", "three"):
        database.add_message(chat, "user", content)
    with Database(paths.database) as elsewhere:
        elsewhere.add_message(elsewhere.create("u", None, "fp16").id, "user", "between")
    assert writing.flushed()
    two = database.messages(chat)[1]
    removed = database.delete_message(two.id)
    assert contents(database, chat) == ["one", "three"]
    assert writing.flushed()
    database.changed()
    assert contents(database, chat) == ["one", "three"]
    database.restore_message(removed)
    assert contents(database, chat) == ["one", "two", "three"]
    database.delete(chat)
    assert [one.id for one in database.deleted()] == [chat]
    database.undelete(chat)
    assert writing.flushed()
    with Database(paths.database) as elsewhere:
        assert contents(elsewhere, chat) == ["one", "two", "three"]
        assert [one.content for one in elsewhere.tree(chat)] == ["one", "two", "three"]


def test_errors_come_at_once_and_change_nothing(writing: Writing) -> None:
    database = writing.database
    chat = database.create("t", None, "fp16").id
    with pytest.raises(UnknownMessage):
        database.rewind_to(chat, "nowhere")
    assert writing.flushed() and writing.problems == []
    assert database.conversation(chat).head_id is None


def test_a_lock_is_reported_once_and_its_end_too(writing: Writing, paths: Paths) -> None:
    with locked(paths.database):
        chat = writing.database.create("t", None, "fp16").id
        assert writing.problem.wait(30)
        assert "locked by another program" in str(writing.problems[0])
        writing.database.add_message(chat, "user", "one")
    assert writing.database.finish(30.0)
    assert [str(one) for one in writing.problems[1:]] == ["None"]


def test_another_process_closing_the_file_does_not_take_the_log_away(writing: Writing, paths: Paths) -> None:
    chat = writing.database.create("t", None, "fp16").id
    assert writing.flushed()
    log = paths.database.with_name(paths.database.name + "-wal")
    before = log.stat().st_ino
    code = "import sys; from pathlib import Path; from tqchat.store.database import Database\n"
    code += "Database(Path(sys.argv[1])).close()"
    subprocess.run([sys.executable, "-c", code, str(paths.database)], check=True)
    writing.database.add_message(chat, "user", "one")
    assert writing.flushed()
    assert log.stat().st_ino == before


@pytest.mark.parametrize("way", ["removed", "replaced"])
def test_a_file_that_takes_the_place_gets_what_is_written(writing: Writing, paths: Paths, way: str) -> None:
    database = writing.database
    shown, other = (database.create(title, None, "fp16").id for title in ("shown", "other"))
    for chat in (shown, other):
        database.add_message(chat, "user", "one")
    assert writing.flushed()
    paths.database.unlink()
    if way == "replaced":
        with Database(paths.database) as new:
            new.create("backup", None, "fp16")
    assert database.is_replaced()
    database.add_message(other, "user", "written before it is noticed")
    database.follow([shown, None])
    database.add_message(shown, "user", "two")
    assert writing.flushed() and not database.is_replaced()
    assert contents(database, shown) == ["one", "two"]
    with Database(paths.database) as elsewhere:
        assert elsewhere._connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        assert contents(elsewhere, shown) == ["one", "two"]
        assert contents(elsewhere, other) == ["one", "written before it is noticed"]
        assert len(elsewhere.conversations()) == (3 if way == "replaced" else 2)


def test_what_cannot_be_written_is_kept_and_stored_later(paths: Paths) -> None:
    writing = Writing(paths.database)
    chat = writing.database.create("Foxes", None, "fp16").id
    writing.database.add_message(chat, "user", "one")
    assert writing.flushed()
    with locked(paths.database):
        writing.database.add_message(chat, "user", "two")
        writing.database.set_draft(chat, "not sent")
        expected = writing.database.conversation(chat), contents(writing.database, chat)
        assert not writing.database.finish(0.0)
        (sentence,) = unsaved.keep_conversations(writing.database, paths.state_dir)
        writing.database.close()
        (kept,) = paths.state_dir.glob("unsaved-*.json")
        assert str(kept) in sentence
        assert "is not stored yet" in unsaved.restore(paths.database, paths.state_dir)[0]
    assert len(unsaved.restore(paths.database, paths.state_dir)) == 1
    assert unsaved.restore(paths.database, paths.state_dir) == []
    with Database(paths.database) as database:
        assert (database.conversation(chat), contents(database, chat)) == expected


def test_kept_conversations_do_not_replace_newer_messages(paths: Paths) -> None:
    writing = Writing(paths.database)
    chat = writing.database.create("Foxes", None, "fp16").id
    assert writing.flushed()
    with locked(paths.database):
        writing.database.add_message(chat, "user", "kept")
        writing.database.finish(0.0)
        unsaved.keep_conversations(writing.database, paths.state_dir)
        writing.database.close()
    with Database(paths.database) as database:
        database.add_message(chat, "user", "newer")
        unsaved.restore(paths.database, paths.state_dir)
        assert contents(database, chat) == ["newer"]
        assert {contents(database, one.id)[0] for one in database.conversations()} == {"newer", "kept"}


def test_a_full_disk_is_reported_and_loses_nothing(writing: Writing, paths: Paths) -> None:
    database = writing.database
    chat = database.create("Foxes", None, "fp16").id
    database.add_message(chat, "user", "A fox. " * 40_000)
    assert writing.flushed()
    log = paths.database.with_name(paths.database.name + "-wal")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A limit for the size of files fails writes as a full disk does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 1, before[1]))
    try:
        database.add_message(chat, "assistant", "An answer.")
        assert writing.problem.wait(30)
        assert isinstance(writing.problems[0], StoreFull)
        assert database.messages(chat)[1].content == "An answer."
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert writing.flushed()
    with Database(paths.database) as elsewhere:
        assert elsewhere.messages(chat)[1].content == "An answer."


def test_what_no_folder_takes_is_said(paths: Paths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    writing = Writing(paths.database)
    chat = writing.database.create("Foxes", None, "fp16").id
    nowhere = tmp_path / "file"
    nowhere.write_text("")
    with locked(paths.database):
        writing.database.add_message(chat, "user", "What is a fox?")
        assert not writing.database.finish(0.0)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        (sentence,) = unsaved.keep_conversations(writing.database, nowhere / "state")
        (elsewhere,) = tmp_path.glob("unsaved-*.json")
        assert f"`tqchat import {elsewhere}`" in sentence
        monkeypatch.setattr("tempfile.tempdir", str(nowhere))
        said = unsaved.keep_conversations(writing.database, nowhere / "state")
        assert "What is a fox?" in said[-1]
    writing.database.close()


def test_a_file_that_is_no_database_in_its_place_stays_and_what_is_written_is_kept(paths: Paths) -> None:
    writing = Writing(paths.database)
    database = writing.database
    chat = database.create("Foxes", None, "fp16").id
    database.add_message(chat, "user", "one")
    assert writing.flushed()
    paths.database.unlink()
    paths.database.write_bytes(b"A letter, not a database. " * 400)
    with pytest.raises(DatabaseUnreadable):
        database.follow([chat])
    database.add_message(chat, "user", "two")
    assert writing.problem.wait(30) and isinstance(writing.problems[0], DatabaseUnreadable)
    assert contents(database, chat) == ["one", "two"]
    assert not database.finish(0.0)
    assert len(unsaved.keep_conversations(database, paths.state_dir)) == 1
    database.close()
    assert paths.database.read_bytes().startswith(b"A letter")
    paths.database.unlink()
    unsaved.restore(paths.database, paths.state_dir)
    with Database(paths.database) as restored:
        assert contents(restored, chat) == ["one", "two"]


def test_a_damaged_row_does_not_keep_a_conversation_from_being_written(
    writing: Writing, paths: Paths
) -> None:
    database = writing.database
    damaged, broken = (database.create(title, None, "fp16").id for title in ("Damaged", "Broken"))
    for chat in (damaged, broken):
        database.add_message(chat, "user", "one")
    assert writing.flushed()
    database.changed()
    other = sqlite3.connect(paths.database)
    other.execute("PRAGMA ignore_check_constraints = ON")
    other.execute("UPDATE messages SET status = 'burnt' WHERE conversation_id = ?", (damaged,))
    other.execute("UPDATE conversations SET head_id = 'nosuch' WHERE id = ?", (broken,))
    other.commit()
    other.close()
    database.add_message(damaged, "user", "two")
    assert writing.flushed() and "two" in contents(database, damaged)
    with pytest.raises(DatabaseUnreadable, match="FOREIGN KEY"):
        database.add_message(broken, "user", "two")

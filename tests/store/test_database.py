from __future__ import annotations

import contextlib
import re
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tqchat.errors import TqchatError
from tqchat.kv.scheme import UnknownScheme
from tqchat.paths import Paths
from tqchat.store import exchange, migrations
from tqchat.store.database import (
    UNDELETE_WINDOW_S,
    Database,
    DatabaseBusy,
    DatabaseTooNew,
    DatabaseUnreadable,
    SamplingChoice,
    StoreFull,
    Totals,
    UnknownConversation,
    UnknownMessage,
    VersionPosition,
)
from tqchat.store.errors import StoreError


@pytest.fixture
def database(paths: Paths) -> Iterator[Database]:
    with Database(paths.database) as opened:
        yield opened


def contents(database: Database, conversation_id: str) -> list[str]:
    return [message.content for message in database.messages(conversation_id)]


def test_a_conversation_survives_a_restart(paths: Paths) -> None:
    with Database(paths.database) as first:
        conversation = first.create("Foxes", "starter", "turbo0v4")
        question = first.add_message(conversation.id, "user", "What is a fox?")
        reply = first.add_message(
            conversation.id, "assistant", "A fox.", tokens=3, tokens_per_second=70.5, scheme="fp16", model="m"
        )
    with Database(paths.database) as second:
        assert second.messages(conversation.id) == [question, reply]
        again = second.conversation(conversation.id)
        assert again.head_id == reply.id
        assert again.updated_at == reply.created_at
        assert (again.title, again.model, again.scheme) == ("Foxes", "starter", "turbo0v4")
        assert again.title_is_automatic is True
    assert (question.parent_id, reply.parent_id) == (None, question.id)


def test_a_message_survives_a_kill_right_after_its_commit(paths: Paths) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from tqchat.store.database import Database
database = Database(Path(sys.argv[1]))
conversation = database.create("t", None, "fp16")
database.add_message(conversation.id, "user", "kept")
database.add_message(conversation.id, "assistant", "half", status="unfinished")
os.kill(os.getpid(), signal.SIGKILL)
"""
    result = subprocess.run([sys.executable, "-c", code, str(paths.database)], timeout=60)
    assert result.returncode == -9
    with Database(paths.database) as database:
        (conversation,) = database.conversations()
        assert [(m.content, m.status) for m in database.messages(conversation.id)] == [
            ("kept", "complete"),
            ("half", "unfinished"),
        ]


def test_commits_are_flushed_to_the_disk(database: Database) -> None:
    assert database._connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert database._connection.execute("PRAGMA synchronous").fetchone()[0] == 2


def test_conversations_are_ordered_by_last_update(database: Database) -> None:
    one, two, three = (database.create(title, None, "fp16") for title in ("one", "two", "three"))
    database.add_message(one.id, "user", "again")
    assert [c.id for c in database.conversations()] == [one.id, three.id, two.id]


def test_rename_and_set_scheme_and_model(database: Database) -> None:
    conversation = database.create("", None, "fp16")
    database.rename(conversation.id, "Automatic", automatic=True)
    assert database.conversation(conversation.id).title_is_automatic is True
    database.rename(conversation.id, "Mine")
    database.set_scheme(conversation.id, "affine4")
    database.set_model(conversation.id, "other")
    changed = database.conversation(conversation.id)
    assert (changed.title, changed.title_is_automatic) == ("Mine", False)
    assert (changed.scheme, changed.model) == ("affine4", "other")


def test_delete_removes_all_branches_of_one_conversation(database: Database, paths: Paths) -> None:
    gone, kept = database.create("gone", None, "fp16"), database.create("kept", None, "fp16")
    for conversation in (gone, kept):
        database.add_message(conversation.id, "user", "q")
        database.add_message(conversation.id, "assistant", "a")
        database.rewind_to(conversation.id, database.messages(conversation.id)[0].id)
        database.add_message(conversation.id, "assistant", "b")
    database.delete(gone.id)
    with pytest.raises(UnknownConversation):
        database.conversation(gone.id)
    assert contents(database, kept.id) == ["q", "b"]
    assert database.purge(time.time()) == 1
    with sqlite3.connect(paths.database) as other:
        assert other.execute("SELECT count(*) FROM messages").fetchone() == (3,)
    other.close()


def test_a_deleted_conversation_can_be_restored(database: Database) -> None:
    conversation = database.create("t", None, "fp16")
    database.add_message(conversation.id, "user", "vixen")
    before = database.conversation(conversation.id)
    database.delete(conversation.id)
    assert database.conversations() == [] and contents(database, conversation.id) == []
    assert [one.id for one in database.deleted()] == [conversation.id]
    assert database.search("vixen") == []
    for call in (
        lambda: database.add_message(conversation.id, "user", "q"),
        lambda: database.delete(conversation.id),
        lambda: database.rename(conversation.id, "x"),
        lambda: database.rewind_to(conversation.id, None),
    ):
        with pytest.raises(UnknownConversation):
            call()
    assert database.undelete(conversation.id) == before
    assert contents(database, conversation.id) == ["vixen"] and len(database.search("vixen")) == 1
    with pytest.raises(UnknownConversation):
        database.undelete(conversation.id)


def test_a_start_after_the_undelete_window_purges(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    with Database(paths.database) as database:
        conversation = database.create("t", None, "fp16")
        database.add_message(conversation.id, "user", "unrepeatable secret")
        database.delete(conversation.id)
    with Database(paths.database) as database:
        assert len(database.deleted()) == 1
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + UNDELETE_WINDOW_S + 1)
    with Database(paths.database) as database:
        assert database.deleted() == []
    assert b"unrepeatable secret" not in paths.database.read_bytes()


def test_conversation_settings_are_stored(paths: Paths) -> None:
    choice = SamplingChoice(temperature=0.5, top_k=40, seed=2**62)
    with Database(paths.database) as database:
        conversation = database.create("t", None, "auto", system_prompt="Be brief.")
        assert conversation == database.conversation(conversation.id)
        database.set_sampling(conversation.id, choice)
        database.set_system_prompt(conversation.id, "In rhyme.")
        database.set_draft(conversation.id, "half a quest\ud800")
    with Database(paths.database) as database:
        again = database.conversation(conversation.id)
        assert (again.scheme, again.system_prompt) == ("auto", "In rhyme.")
        assert (again.sampling, again.draft) == (choice, "half a quest\ufffd")
        assert again.updated_at == conversation.updated_at
        database.set_sampling(conversation.id, SamplingChoice())
        database.set_system_prompt(conversation.id, None)
        assert database.conversation(conversation.id).sampling == SamplingChoice()
        assert database.conversation(conversation.id).system_prompt is None
        with pytest.raises(UnknownScheme):
            database.set_scheme(conversation.id, "zip")
        with pytest.raises(UnknownScheme):
            database.create("t", None, "zip")


def test_a_column_whose_name_has_another_case_is_read(database: Database) -> None:
    conversation = database.create("A title", "starter", "turbo4")
    database.add_message(conversation.id, "user", "Hello.", prompt_tokens=7)
    database._connection.execute("ALTER TABLE messages RENAME COLUMN prompt_tokens TO Prompt_tokens")
    database._connection.execute("ALTER TABLE conversations RENAME COLUMN sampling TO saMpling")
    assert [one.id for one in database.conversations()] == [conversation.id]
    assert [one.prompt_tokens for one in database.messages(conversation.id)] == [7]


def test_a_conversation_with_damaged_sampling_opens(database: Database) -> None:
    conversation = database.create("t", None, "fp16")
    for damaged in ("{", "null", "[1]", '{"seed": -1}', '{"zip": 1}', "[" * 100_000):
        database._connection.execute("UPDATE conversations SET sampling = ?", (damaged,))
        assert database.conversation(conversation.id).sampling == SamplingChoice()


def test_totals_include_all_branches(database: Database) -> None:
    conversation = database.create("t", None, "fp16")
    assert database.totals(conversation.id) == Totals(0, 0, None)
    question = database.add_message(conversation.id, "user", "q")
    database.add_message(conversation.id, "assistant", "a", tokens=30, tokens_per_second=10.0)
    database.rewind_to(conversation.id, question.id)
    database.add_message(conversation.id, "assistant", "b", tokens=10, tokens_per_second=10.0)
    database.add_message(
        conversation.id, "assistant", "c", tokens=40, tokens_per_second=40.0, prompt_tokens=7
    )
    endless = database.add_message(
        conversation.id, "assistant", "d", tokens=5, tokens_per_second=float("inf")
    )
    assert database.message(endless.id).tokens_per_second is None
    # 80 tokens in 3 + 1 + 1 seconds; the 5 tokens of unknown speed count towards the sum only.
    assert database.totals(conversation.id) == Totals(5, 85, 16.0)
    assert database.messages(conversation.id)[-2].prompt_tokens == 7


def test_an_edit_adds_a_sibling(database: Database) -> None:
    conversation = database.create("t", None, "fp16")
    first = database.add_message(conversation.id, "user", "q")
    database.add_message(conversation.id, "assistant", "a")
    edited = database.add_sibling(first.id, "q, otherwise")
    assert (edited.role, edited.parent_id, edited.status) == ("user", None, "complete")
    assert contents(database, conversation.id) == ["q, otherwise"]
    reply = database.add_message(conversation.id, "assistant", "b")
    again = database.add_sibling(reply.id, "", "unfinished", model="m")
    third = database.add_sibling(reply.id, "b3")
    assert (again.parent_id, again.role, again.model) == (edited.id, "assistant", "m")
    assert database.version_positions(conversation.id) == {
        edited.id: VersionPosition(2, 2, first.id, None),
        third.id: VersionPosition(3, 3, again.id, None),
    }
    database.select(again.id)
    assert database.version_positions(conversation.id)[again.id] == VersionPosition(2, 3, reply.id, third.id)
    assert database.select(first.id).content == "a"
    assert contents(database, conversation.id) == ["q", "a"]
    assert database.select(edited.id).id == third.id
    assert [m.content for m in database.tree(conversation.id)] == ["q", "a", "q, otherwise", "b", "", "b3"]
    with pytest.raises(UnknownMessage):
        database.add_sibling("none", "x")


def test_continue_reply_in_place_or_as_a_sibling(database: Database) -> None:
    conversation = database.create("t", None, "fp16")
    question = database.add_message(conversation.id, "user", "q")
    reply = database.add_message(conversation.id, "assistant", "Once upon", "unfinished", model="m")
    database.rewind_to(conversation.id, question.id)
    continued = database.continue_reply(reply.id)
    assert continued == reply
    assert database.conversation(conversation.id).head_id == reply.id
    database.update_message(reply.id, content="Once upon a time", status="stopped")
    assert database.continue_reply(reply.id).status == "unfinished"
    database.update_message(reply.id, status="stopped")

    database.add_message(conversation.id, "user", "and then?")
    sibling = database.continue_reply(reply.id)
    assert sibling.id != reply.id and sibling.parent_id == question.id
    assert (sibling.content, sibling.status, sibling.model) == ("Once upon a time", "unfinished", "m")
    assert database.message(reply.id).status == "stopped"
    with pytest.raises(UnknownMessage):
        database.continue_reply(question.id)


def test_changed_detects_writes_of_other_connections(paths: Paths) -> None:
    with Database(paths.database) as here, Database(paths.database) as there:
        assert not here.changed()
        conversation = there.create("t", None, "fp16")
        assert here.changed()
        assert not here.changed()
        here.add_message(conversation.id, "user", "mine")
        assert not here.changed() and there.changed()


def test_regenerating_keeps_the_previous_reply(database: Database) -> None:
    conversation = database.create("t", None, "fp16")
    question = database.add_message(conversation.id, "user", "q")
    first = database.add_message(conversation.id, "assistant", "first")
    database.add_message(conversation.id, "user", "more")
    last = database.add_message(conversation.id, "assistant", "much more")
    database.rewind_to(conversation.id, question.id)
    second = database.add_message(conversation.id, "assistant", "second")
    assert contents(database, conversation.id) == ["q", "second"]
    assert [m.id for m in database.siblings(second.id)] == [first.id, second.id]
    assert [m.id for m in database.siblings(question.id)] == [question.id]

    leaf = database.newest_leaf(first.id)
    assert leaf.id == last.id
    database.rewind_to(conversation.id, leaf.id)
    assert contents(database, conversation.id) == ["q", "first", "more", "much more"]

    database.rewind_to(conversation.id, None)
    assert contents(database, conversation.id) == []
    other = database.add_message(conversation.id, "user", "asked otherwise")
    assert [m.content for m in database.siblings(other.id)] == ["q", "asked otherwise"]


def test_a_reply_is_updated_and_completed(database: Database) -> None:
    conversation = database.create("t", None, "fp16")
    reply = database.add_message(conversation.id, "assistant", "", status="unfinished")
    database.update_message(reply.id, content="Once")
    done = database.update_message(reply.id, status="complete", tokens=4, first_token_seconds=0.2)
    assert (done.content, done.status, done.tokens, done.first_token_seconds) == ("Once", "complete", 4, 0.2)
    assert database.messages(conversation.id) == [done]
    assert database.conversation(conversation.id).updated_at > reply.created_at


def test_unknown_ids_raise(database: Database) -> None:
    conversation = database.create("t", None, "fp16")
    message = database.add_message(conversation.id, "user", "q")
    other = database.create("o", None, "fp16")
    for call in (
        lambda: database.add_message("none", "user", "q"),
        lambda: database.rename("none", "x"),
        lambda: database.delete("none"),
        lambda: database.rewind_to("none", None),
        lambda: database.conversation("none"),
        lambda: database.conversation(""),
    ):
        with pytest.raises(UnknownConversation):
            call()
    for call in (
        lambda: database.update_message("none", content="x"),
        lambda: database.rewind_to(conversation.id, "none"),
        lambda: database.rewind_to(other.id, message.id),
        lambda: database.siblings("none"),
        lambda: database.newest_leaf("none"),
    ):
        with pytest.raises(UnknownMessage):
            call()
    assert contents(database, conversation.id) == ["q"]


def test_a_unique_id_prefix_is_enough(database: Database) -> None:
    conversations = [database.create(str(n), None, "fp16") for n in range(17)]
    assert database.conversation(conversations[0].id[:12]) == conversations[0]
    # 17 ids in hexadecimal: two must have the same first digit.
    first = [c.id[0] for c in conversations]
    digit = next(d for d in first if first.count(d) > 1)
    with pytest.raises(
        UnknownConversation, match=f"{first.count(digit)} conversations.*give more characters"
    ):
        database.conversation(digit)
    with pytest.raises(UnknownConversation):
        database.conversation("%")


def test_two_connections_see_each_others_writes(paths: Paths) -> None:
    with Database(paths.database) as here, Database(paths.database) as there:
        conversation = here.create("t", None, "fp16")
        there.add_message(conversation.id, "user", "from there")
        here.add_message(conversation.id, "user", "from here")
        assert contents(there, conversation.id) == ["from there", "from here"]


def test_concurrent_first_starts(paths: Paths) -> None:
    failures: list[BaseException] = []
    ready = threading.Barrier(8)

    def start() -> None:
        try:
            ready.wait()
            with Database(paths.database) as database:
                database.create("t", None, "fp16")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    with Database(paths.database) as database:
        assert len(database.conversations()) == 8


def test_a_held_lock_raises_database_busy(database: Database, paths: Paths) -> None:
    conversation = database.create("t", None, "fp16")
    database._connection.execute("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(paths.database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseBusy, match="locked"):
        database.add_message(conversation.id, "user", "q")
    other.execute("ROLLBACK")
    other.close()
    database.add_message(conversation.id, "user", "q")


def test_files_are_private_to_their_owner(database: Database, paths: Paths) -> None:
    database.create("t", None, "fp16")
    files = list(paths.data_dir.iterdir())
    assert {file.name for file in files} >= {"tqchat.db", "tqchat.db-wal"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE(paths.data_dir.stat().st_mode) == 0o700


def test_a_full_database_keeps_earlier_messages(database: Database) -> None:
    conversation = database.create("t", None, "fp16")
    database.add_message(conversation.id, "user", "kept")
    pages = database._connection.execute("PRAGMA page_count").fetchone()[0]
    database._connection.execute(f"PRAGMA max_page_count = {pages + 1}")
    with pytest.raises(StoreFull, match="is full"):
        database.add_message(conversation.id, "user", "x" * 100_000)
    assert contents(database, conversation.id) == ["kept"]
    database._connection.execute("PRAGMA max_page_count = 100000")
    database.add_message(conversation.id, "user", "room again")
    assert contents(database, conversation.id) == ["kept", "room again"]


def test_a_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("this user cannot mount a tmpfs")
    try:
        with Database(disk / "data" / "tqchat.db") as database:
            conversation = database.create("t", None, "fp16")
            database.add_message(conversation.id, "user", "kept")
            with pytest.raises(StoreFull):
                database.add_message(conversation.id, "user", "x" * 1_000_000)
            assert contents(database, conversation.id) == ["kept"]
        (disk / "filler").write_bytes(b"")
        with pytest.raises(OSError, match="No space"):
            (disk / "filler").write_bytes(b"x" * 1_000_000)
        with pytest.raises(StoreFull):
            Database(disk / "data" / "another.db")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("version", "error", "words"),
    [
        (99, DatabaseTooNew, r"newer tqchat.*format 99.*update tqchat"),
        (-(2**31), DatabaseUnreadable, "its format is damaged: -2147483648"),
    ],
)
def test_a_database_of_a_format_that_is_not_known_is_not_changed(
    paths: Paths, version: int, error: type[TqchatError], words: str
) -> None:
    with Database(paths.database) as database:
        database.create("t", None, "fp16")
    with sqlite3.connect(paths.database) as other:
        other.execute(f"PRAGMA user_version = {version}")
    other.close()
    before = paths.database.read_bytes()
    with pytest.raises(error, match=words):
        Database(paths.database)
    assert paths.database.read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"not a database at all, but quite long" * 200, b"SQLite format 3\x00" + b"\xff" * 8192]
)
def test_a_file_that_is_not_a_database_is_not_changed(paths: Paths, content: bytes) -> None:
    paths.database.write_bytes(content)
    with pytest.raises(DatabaseUnreadable, match=r"tqchat\.db cannot be read"):
        Database(paths.database)
    assert paths.database.read_bytes() == content


def test_another_programs_database_is_not_changed(paths: Paths) -> None:
    with sqlite3.connect(paths.database) as other:
        other.execute("CREATE TABLE bookmarks (id)")
    other.close()
    before = paths.database.read_bytes()
    with pytest.raises(DatabaseUnreadable, match="another program"):
        Database(paths.database)
    assert paths.database.read_bytes() == before


def test_damaged_pages_raise_database_unreadable(paths: Paths) -> None:
    with Database(paths.database) as database:
        conversation = database.create("t", None, "fp16")
        for _ in range(200):
            database.add_message(conversation.id, "user", "x" * 500)
    content = bytearray(paths.database.read_bytes())
    content[4096 * 3 :] = b"\xaa" * (len(content) - 4096 * 3)
    paths.database.write_bytes(content)
    with pytest.raises(DatabaseUnreadable), Database(paths.database) as database:
        database.messages(conversation.id)


def test_a_folder_in_place_of_the_file_raises(paths: Paths) -> None:
    paths.database.mkdir()
    with pytest.raises(DatabaseUnreadable, match="directory"):
        Database(paths.database)


MIGRATIONS_AND_ONE = (
    *migrations.MIGRATIONS,
    ("ALTER TABLE conversations ADD COLUMN note TEXT", "UPDATE conversations SET note = 'moved'"),
)


def test_a_new_migration_keeps_the_content(paths: Paths) -> None:
    with Database(paths.database) as database:
        conversation = database.create("t", None, "fp16")
        database.add_message(conversation.id, "user", "kept")
    connection = sqlite3.connect(paths.database, isolation_level=None)
    migrations.migrate(connection, paths.database, MIGRATIONS_AND_ONE)
    migrations.migrate(connection, paths.database, MIGRATIONS_AND_ONE)
    assert connection.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS_AND_ONE)
    assert connection.execute("SELECT note FROM conversations").fetchall() == [("moved",)]
    assert connection.execute("SELECT content FROM messages").fetchall() == [("kept",)]
    connection.close()


def test_a_failed_migration_is_rolled_back(paths: Paths) -> None:
    Database(paths.database).close()
    connection = sqlite3.connect(paths.database, isolation_level=None)
    broken = (*migrations.MIGRATIONS, ("CREATE TABLE half (id)", "CREATE TABLE half (id)"))
    with pytest.raises(sqlite3.OperationalError):
        migrations.migrate(connection, paths.database, broken)
    assert connection.execute("PRAGMA user_version").fetchone()[0] == len(migrations.MIGRATIONS)
    assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'half'").fetchone() == (0,)
    connection.close()
    Database(paths.database).close()


def test_a_new_database_has_the_application_id_and_newest_version(database: Database) -> None:
    connection = database._connection
    assert connection.execute("PRAGMA application_id").fetchone()[0] == migrations.APPLICATION_ID
    assert connection.execute("PRAGMA user_version").fetchone()[0] == len(migrations.MIGRATIONS)
    assert connection.execute("PRAGMA foreign_keys").fetchone()[0] == 1


def test_indexes_that_do_not_agree_with_their_tables_are_survived(paths: Paths) -> None:
    with Database(paths.database) as database:
        chat = database.create("Damaged", None, "fp16")
        message = database.add_message(chat.id, "user", "one")
    intact = paths.database.read_bytes()
    places = [found.start() for found in re.finditer(message.id.encode(), intact)]
    assert len(places) > 1
    for place in places:
        paths.database.write_bytes(intact[:place] + b"\0" + intact[place + 1 :])
        with contextlib.suppress(StoreError), Database(paths.database) as database:
            database.messages(chat.id)
            database.version_positions(chat.id)
            database.add_message(chat.id, "user", "two")


@pytest.mark.parametrize("circle", [1, 2, 4])
def test_messages_in_a_circle_end_every_walk(database: Database, circle: int) -> None:
    """In a damaged file a message may be its own ancestor."""
    chat = database.create("Round", None, "turbo0v4")
    ids = [database.add_message(chat.id, "user" if n % 2 == 0 else "assistant", f"m{n}").id for n in range(4)]
    with database.writing() as connection:
        connection.execute("UPDATE messages SET parent_id = ? WHERE id = ?", (ids[circle - 1], ids[0]))
    assert contents(database, chat.id) == ["m0", "m1", "m2", "m3"]
    assert database.version_positions(chat.id)
    assert database.newest_leaf(ids[0]).id == ids[3]
    exported = "".join(exchange.to_json(database, [chat]))
    assert "m3" in exchange.to_markdown(database, chat)
    (copy,) = exchange.from_json(database, exported.replace(chat.id, "copy").encode())
    assert contents(database, copy.conversation.id) == ["m0", "m1", "m2", "m3"]
    removed = database.delete_message(ids[0])
    assert contents(database, chat.id)[-1] == "m3" and len(database.tree(chat.id)) == 3
    database.restore_message(removed)
    assert len(database.tree(chat.id)) == 4
    database.delete(chat.id)


@pytest.mark.parametrize("kind", ["a folder", "another program's file"])
def test_what_is_shown_can_be_read_on_when_nothing_usable_takes_the_files_place(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "tqchat.db"
    with Database(path) as database:
        chat = database.create("Foxes", None, "fp16").id
        database.add_message(chat, "user", "Are they red?")
        for file in tmp_path.iterdir():
            file.unlink()
        path.mkdir() if kind == "a folder" else path.write_bytes(b"something else " * 100)
        for _ in range(2):
            with pytest.raises(DatabaseUnreadable):
                database.reopen()
            assert database.is_replaced()
            assert [message.content for message in database.messages(chat)] == ["Are they red?"]

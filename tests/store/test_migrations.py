"""Migration of databases of earlier versions; ``fixtures`` has a dump of each, which is never edited."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tqchat.paths import Paths
from tqchat.store import migrations
from tqchat.store.database import Database, SamplingChoice

FIXTURES = Path(__file__).parent / "fixtures"
FORMATS = range(1, len(migrations.MIGRATIONS))


def write_format(version: int, path: Path) -> None:
    """Write a database of an earlier format."""
    connection = sqlite3.connect(path)
    connection.executescript((FIXTURES / f"format{version}.sql").read_text("utf-8"))
    assert connection.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",)
    connection.close()


def dump(path: Path) -> list[str]:
    connection = sqlite3.connect(path)
    try:
        return list(connection.iterdump())
    finally:
        connection.close()


def schema(path: Path) -> list[tuple[str, str, str]]:
    connection = sqlite3.connect(path)
    try:
        rows = connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY type, name")
        return [(kind, name, sql or "") for kind, name, sql in rows]
    finally:
        connection.close()


@pytest.mark.parametrize("version", FORMATS)
def test_every_earlier_format_is_migrated_with_its_content(paths: Paths, version: int) -> None:
    write_format(version, paths.database)
    with Database(paths.database) as database:
        assert database._connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        assert database._connection.execute("PRAGMA foreign_key_check").fetchall() == []
        empty, german, foxes = database.conversations()
        assert (foxes.title, foxes.scheme, foxes.model) == ("Foxes, dens & 'quotes'", "turbo0v4", "starter")
        assert (foxes.created_at, foxes.updated_at) == (1700000007.75, 1700000052.75)
        assert (german.title, german.title_is_automatic, foxes.title_is_automatic) == (
            "Überschrift",
            False,
            True,
        )
        assert (foxes.system_prompt, foxes.sampling, foxes.draft, foxes.deleted_at) == (
            None,
            SamplingChoice(),
            "",
            None,
        )
        assert (empty.title, database.messages(empty.id)) == ("", [])
        shown = database.messages(foxes.id)
        assert [(m.role, m.content) for m in shown] == [
            ("system", "Answer briefly."),
            ("user", 'What is a fox?\nTell me "all".'),
            ("assistant", "A red dog-like animal that lives in a den."),
            ("user", "And in Chinese?"),
            ("assistant", "狐狸是一种动物。🦊"),
        ]
        first, second = database.siblings(shown[2].id)
        assert (first.content, first.tokens, first.tokens_per_second) == ("A small animal.", 4, 70.5)
        assert (first.first_token_seconds, first.scheme, first.model) == (0.25, "turbo0v4", "starter")
        assert (second.status, second.tokens, second.tokens_per_second) == ("stopped", 11, None)
        cut = database.messages(german.id)[-1]
        assert (cut.content, cut.status, cut.model) == ("Es war einm", "unfinished", "m/x")
        for text in ("small", "狐狸", "überschr", "einm"):
            assert len(database.search(text)) == 1, text
        database.add_message(foxes.id, "user", "badger")
        assert len(database.search("badger")) == 1


@pytest.mark.parametrize("version", FORMATS)
def test_a_migrated_database_has_the_schema_of_a_new_one(paths: Paths, tmp_path: Path, version: int) -> None:
    write_format(version, paths.database)
    Database(paths.database).close()
    Database(tmp_path / "new" / "tqchat.db").close()
    assert schema(paths.database) == schema(tmp_path / "new" / "tqchat.db")


@pytest.mark.parametrize("version", FORMATS)
def test_a_migration_that_fails_at_any_statement_is_rolled_back(paths: Paths, version: int) -> None:
    write_format(version, paths.database)
    before = dump(paths.database)
    steps = migrations.MIGRATIONS[version]
    for done in range(len(steps) + 1):
        broken = (*migrations.MIGRATIONS[:version], (*steps[:done], "SELECT no_such_function()"))
        connection = sqlite3.connect(paths.database, isolation_level=None)
        with pytest.raises(sqlite3.OperationalError, match="no_such_function"):
            migrations.migrate(connection, paths.database, broken)
        connection.close()
        assert dump(paths.database) == before
    with Database(paths.database) as database:
        assert len(database.conversations()) == 3


KILLED = """
import os, signal, sqlite3, sys
from pathlib import Path
from tqchat.store import migrations
path, version, done = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
connection = sqlite3.connect(path, isolation_level=None)
connection.execute("PRAGMA cache_size = 1")  # pages reach the disk before the commit
connection.create_function("die", 0, lambda: os.kill(os.getpid(), signal.SIGKILL))
steps = migrations.MIGRATIONS[version]
migrations.migrate(connection, path, (*migrations.MIGRATIONS[:version], (*steps[:done], "SELECT die()")))
"""


@pytest.mark.parametrize("version", FORMATS)
def test_a_kill_while_moving_leaves_the_old_format(paths: Paths, version: int) -> None:
    write_format(version, paths.database)
    before = dump(paths.database)
    steps = len(migrations.MIGRATIONS[version])
    for done in (1, steps // 2, steps):
        command = [sys.executable, "-c", KILLED, str(paths.database), str(version), str(done)]
        assert subprocess.run(command, timeout=60).returncode == -9
        assert dump(paths.database) == before
    with Database(paths.database) as database:
        assert len(database.conversations()) == 3


def test_a_disk_too_full_to_move_leaves_the_old_format(paths: Paths) -> None:
    write_format(1, paths.database)
    before = dump(paths.database)
    code = """
import resource, sys
from pathlib import Path
from tqchat.store.database import Database, StoreFull
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
try:
    Database(Path(sys.argv[1]))
except StoreFull:
    sys.exit(77)
"""
    assert subprocess.run([sys.executable, "-c", code, str(paths.database)], timeout=60).returncode == 77
    assert dump(paths.database) == before
    with Database(paths.database) as database:
        assert len(database.conversations()) == 3


KEPT_WITH_MARKS = [
    ("<think>\nIt is J.\n</think>\n\nThe **tenth** letter.", "It is J.", "The **tenth** letter."),
    ("\n <thinking>Once more.</thinking>Yes.", "Once more.", "Yes."),
    ("<seed:think>a</seed:think>\nb <think>c</think>", "a", "b <think>c</think>"),
    ("<think>Cut off while it th", "Cut off while it th", ""),
    ("<think>\n\n</think>\n\nNothing was thought.", "", "Nothing was thought."),
    ("The template had opened it.\n</think>\n\nYes.", "The template had opened it.", "Yes."),
    (
        "A mark such as <think> opens,\n</think> closes.",
        None,
        "A mark such as <think> opens,\n</think> closes.",
    ),
    ("<think>a\0b</think>c\0d", None, "<think>a\0b</think>c\0d"),
    ("```xml\n<thought n='1'>\n</thought>\n```", None, "```xml\n<thought n='1'>\n</thought>\n```"),
    ("With code:\n```\nx\n```\n</think>\nYes.", "With code:\n```\nx\n```", "Yes."),
    ("No thought </think> here.", None, "No thought </think> here."),
    ("Plain.", None, "Plain."),
]


def test_thoughts_kept_in_the_text_get_a_column_of_their_own(paths: Paths) -> None:
    write_format(3, paths.database)
    connection = sqlite3.connect(paths.database)
    conversation = connection.execute("SELECT id FROM conversations WHERE title LIKE 'Foxes%'").fetchone()[0]
    for number, (content, _, _) in enumerate([*KEPT_WITH_MARKS, ("<think>mine</think>", None, "")]):
        role = "user" if content == "<think>mine</think>" else "assistant"
        connection.execute(
            "INSERT INTO messages (id, conversation_id, role, content, status, created_at)"
            " VALUES (?, ?, ?, ?, 'complete', 0)",
            (f"kept{number}", conversation, role, content),
        )
    connection.commit()
    connection.close()
    with Database(paths.database) as database:
        for number, (_, reasoning, content) in enumerate(KEPT_WITH_MARKS):
            message = database.message(f"kept{number}")
            assert (message.reasoning, message.content) == (reasoning, content)
        own = database.message(f"kept{len(KEPT_WITH_MARKS)}")
        assert (own.reasoning, own.content) == (None, "<think>mine</think>")
        (hit,) = database.search("Once more")
        assert (hit.message_id, hit.snippet) == ("kept1", "Once more.")
        assert database._connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        connection = database._connection
        connection.execute("INSERT INTO messages_index (messages_index, rank) VALUES ('integrity-check', 1)")

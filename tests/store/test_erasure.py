"""Deleted is deleted: no file of the home contains the words of what was deleted."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest

from tqchat.paths import Paths
from tqchat.store.database import Database
from tqchat.store.migrations import MIGRATIONS, migrate
from tqchat.store.write_queue import WriteQueue

SECRETS = {
    "title": "zqtitlex wvtitlex",
    "system_prompt": "zqsystemx wvsystemx",
    "draft": "zqdraftx wvdraftx",
    "earlier_draft": "zqtypedx wvtypedx",
    "question": "zqaskedx wvaskedx " * 400,
    "edited": "zqeditedx wveditedx",
    "attachment": "zqfilex wvfilex\n" * 2000,
    "reply": "zqreplyx wvreplyx",
    "reasoning": "zqthoughtx wvthoughtx",
    "unfinished": "zqhalfx wvhalfx",
}
WORDS = sorted({word for secret in SECRETS.values() for word in secret.split()})


def left(home: Path) -> dict[str, list[str]]:
    """The words, and the parts that the search index makes of them, in the raw bytes of each file."""
    parts = {word[:3] for word in WORDS} | {word[-4:] for word in WORDS} | set(WORDS)
    found = {}
    for file in sorted(home.rglob("*")):
        if file.is_file():
            content = file.read_bytes()
            if hits := [part for part in sorted(parts) if part.encode() in content]:
                found[file.name] = hits
    return found


def index_terms(path: Path) -> set[str]:
    """All terms of the search index, also those of entries that are marked as deleted."""
    with sqlite3.connect(path) as connection:
        terms: set[str] = set()
        for index in ("messages_index", "titles_index"):
            connection.execute(f"CREATE VIRTUAL TABLE temp.terms_{index} USING fts5vocab(main, {index}, row)")
            terms |= {row[0] for row in connection.execute(f"SELECT term FROM temp.terms_{index}")}
    connection.close()
    return terms


def others(database: Database) -> None:
    """Conversations that stay, so that pages and index segments are shared."""
    chat = database.create("Foxes and owls", None, "fp16").id
    for number in range(40):
        database.add_message(chat, "user", f"A fox has {number} cubs. " * 20)
    database.set_draft(chat, "and badgers")


def secret(database: Database) -> str:
    """A conversation with something to delete in every column."""
    chat = database.create(SECRETS["title"], None, "fp16", system_prompt=SECRETS["system_prompt"]).id
    database.set_draft(chat, SECRETS["earlier_draft"])
    asked = database.add_message(chat, "user", SECRETS["question"] + SECRETS["attachment"])
    database.add_message(chat, "assistant", SECRETS["reply"], reasoning=SECRETS["reasoning"])
    database.add_sibling(asked.id, SECRETS["edited"])
    growing = database.add_message(chat, "assistant", "", "unfinished")
    database.update_message(growing.id, content=SECRETS["unfinished"])
    database.set_draft(chat, SECRETS["draft"])
    return chat


def test_a_purged_conversation_is_in_no_file(paths: Paths, home: Path) -> None:
    with Database(paths.database) as database:
        others(database)
        chat = secret(database)
        others(database)
        assert left(home)
        database.delete(chat)
        database.purge(time.time() + 1)
        assert left(home) == {}, "while the database is open"
        assert database.search("cubs") and not database.search("zqaskedx")
    assert left(home) == {}
    assert not {term for term in index_terms(paths.database) if term.startswith(("zq", "wv"))}


def test_a_deleted_message_is_in_no_file_but_can_be_restored(paths: Paths, home: Path) -> None:
    with Database(paths.database) as database:
        others(database)
        chat = database.create("Foxes", None, "fp16").id
        database.add_message(chat, "user", "Foxes?")
        message = database.add_message(chat, "assistant", SECRETS["reply"], reasoning=SECRETS["reasoning"])
        removed = database.delete_message(message.id)
        assert left(home) == {}
        database.restore_message(removed)
        assert database.search("zqreplyx") and database.search("zqthoughtx")


@pytest.mark.parametrize("kind", ["conversation", "message"])
def test_the_queue_erases_too(paths: Paths, home: Path, kind: str) -> None:
    queue = WriteQueue(paths.database)
    database = Database(paths.database, queue)
    others(database)
    chat = secret(database)
    if kind == "message":
        database.rename(chat, "Foxes")
        database.set_system_prompt(chat, None)
        database.set_draft(chat, "")
        for message in database.tree(chat):
            database.delete_message(message.id)
        queue.start()
    else:
        database.delete(chat)
        queue.start(lambda file: None)
        assert queue.flush(30.0)
        with Database(paths.database) as other:
            other.purge(time.time() + 1)
    assert database.finish(30.0)
    database.close()
    assert left(home) == {}


def test_replaced_titles_prompts_and_drafts_are_in_no_file(paths: Paths, home: Path) -> None:
    queue = WriteQueue(paths.database)
    database = Database(paths.database, queue)
    queue.start()
    others(database)
    chat = database.create(SECRETS["title"], None, "fp16", system_prompt=SECRETS["system_prompt"]).id
    database.set_draft(chat, SECRETS["draft"])
    assert queue.flush(30.0)
    database.rename(chat, "Foxes")
    database.set_system_prompt(chat, "Be brief.")
    database.set_draft(chat, "")
    assert database.finish(30.0)
    database.close()
    assert left(home) == {}


def test_what_earlier_versions_left_in_the_index_is_removed(paths: Paths, home: Path) -> None:
    connection = sqlite3.connect(paths.database, isolation_level=None)
    connection.execute("PRAGMA secure_delete = ON")
    migrate(connection, paths.database, MIGRATIONS[:4])
    for chat, title, content in [
        ("a", "Foxes", "A fox has cubs."),
        ("b", SECRETS["title"], SECRETS["reply"]),
    ]:
        connection.execute(
            "INSERT INTO conversations (id, title, title_is_automatic, scheme, created_at, updated_at) "
            "VALUES (?, ?, 1, 'fp16', 1, 1)",
            (chat, title),
        )
        connection.execute(
            "INSERT INTO messages (id, conversation_id, role, content, status, created_at) "
            "VALUES (?, ?, 'user', ?, 'complete', 1)",
            (f"{chat}1", chat, content),
        )
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("DELETE FROM conversations WHERE id = 'b'")
    connection.close()
    assert left(home), "as an earlier version deleted it"
    with Database(paths.database) as database:
        assert database.search("cubs")
    assert left(home) == {}

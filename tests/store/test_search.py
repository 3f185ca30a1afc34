from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Iterator

import pytest

from tqchat.paths import Paths
from tqchat.store.database import Database, SearchHit


@pytest.fixture
def database(paths: Paths) -> Iterator[Database]:
    with Database(paths.database) as opened:
        yield opened


def add_messages(database: Database, *contents: str, title: str = "") -> str:
    conversation = database.create(title, None, "fp16")
    for content in contents:
        database.add_message(conversation.id, "user", content)
    return conversation.id


def found_contents(database: Database, text: str, limit: int = 50) -> list[str]:
    """Contents of the messages found."""
    return [database.message(h.message_id).content for h in database.search(text, limit) if h.message_id]


def marked(hit: SearchHit) -> list[str]:
    return [hit.snippet[start:end] for start, end in hit.marks]


def test_all_words_must_match_in_any_case_and_inside_words(database: Database) -> None:
    add_messages(database, "The red FOX sleeps", "a fox, foxglove", "red wine", "Überlandleitung")
    assert set(found_contents(database, "fox")) == {"The red FOX sleeps", "a fox, foxglove"}
    assert (
        found_contents(database, "red fox") == found_contents(database, "fox RED") == ["The red FOX sleeps"]
    )
    assert found_contents(database, "foxgl") == found_contents(database, "glove") == ["a fox, foxglove"]
    assert found_contents(database, '"red fox" sleeps') == ["The red FOX sleeps"]
    assert found_contents(database, '"fox red"') == []
    assert found_contents(database, "überland") == ["Überlandleitung"]
    assert (
        found_contents(database, "badger")
        == found_contents(database, "")
        == found_contents(database, '" "')
        == []
    )


@pytest.mark.parametrize("text", ["中", "中国", "中国的", "🦊", "é", "C#", "%", "_x", "\\", "o'", "--", "*"])
def test_short_words_and_words_without_spaces_are_found(database: Database, text: str) -> None:
    add_messages(database, "我们中国的首都 🦊 café C# 100% a_x b\\c o'clock -- *", "nothing of that at aIl")
    assert len(found_contents(database, text)) == 1
    (hit,) = database.search(text)
    assert marked(hit)[0] == text


@pytest.mark.parametrize(
    "text",
    [
        *('"', '""', '"open', 'a"b', "AND", "fox OR", "NOT fox", "NEAR(fox cat)", "fox*", "content:fox"),
        *("{content}", "^fox", "fox + cat", "(", ")", "'; DROP TABLE messages; --", "-fox", "\0", "fox\0cat"),
        *(
            "\ud800",
            "fox\udfff",
            "%" * 400,
            "x" * 100_000,
            " ".join(map(str, range(5000))),
            "\n\t",
            "🦊" * 300,
        ),
        *("\x1b[2J", "a\u202eb", "((((", "[a-z]+(", "?1", ":name", "\\"),
    ],
)
def test_any_text_is_a_valid_query(database: Database, text: str) -> None:
    add_messages(database, "fox and cat", title="content")
    assert isinstance(database.search(text), list)
    assert found_contents(database, "fox") == ["fox and cat"]


def test_random_words_find_their_messages(database: Database) -> None:
    rng = random.Random(4)
    letters = "abcXYZ äß中文字🦊'\"%_*()-+^:\\\n"
    contents = ["".join(rng.choices(letters, k=rng.randint(5, 60))) for _ in range(60)]
    add_messages(database, *contents)
    for content in contents:
        words = [word for word in content.replace('"', " ").split() if len(word) >= 3]
        for word in words[:3]:
            assert content in found_contents(database, word, 1000), word


def test_titles_come_first(database: Database) -> None:
    one = add_messages(database, "about a fox and a fox and a fox", title="Other")
    two = add_messages(database, "nothing", title="Fox tales")
    title, message = database.search("fox")
    assert (title.conversation_id, title.message_id, title.role) == (two, None, None)
    assert (title.title, title.snippet, marked(title)) == ("Fox tales", "Fox tales", ["Fox"])
    assert (message.conversation_id, message.role, message.title) == (one, "user", "Other")
    database.rename(two, "Hare tales")
    assert [hit.conversation_id for hit in database.search("tales")] == [two]
    assert len(database.search("fox")) == 1
    assert len(database.search("fox", limit=1)) == 1


def test_other_branches_are_found_contents(database: Database) -> None:
    conversation = add_messages(database, "question")
    (question,) = database.messages(conversation)
    first = database.add_message(conversation, "assistant", "a vixen")
    database.add_sibling(first.id, "a badger")
    (hit,) = database.search("vixen")
    assert hit.message_id == first.id
    assert database.select(hit.message_id).id == first.id
    assert [m.id for m in database.messages(conversation)] == [question.id, first.id]


def test_the_search_index_follows_changes(database: Database) -> None:
    conversation = add_messages(database, "first")
    reply = database.add_message(conversation, "assistant", "", "unfinished")
    for content in ("a gro", "a growing", "a growing badger"):
        database.update_message(reply.id, content=content, status="unfinished")
        assert found_contents(database, content[2:]) == [content]
    assert found_contents(database, "BADGER") == ["a growing badger"]
    database.update_message(reply.id, content="a grown vixen", status="complete")
    assert found_contents(database, "badger") == [] and found_contents(database, "vixen") == ["a grown vixen"]
    database.update_message(reply.id, content="a hare")
    database.update_message(reply.id, tokens=3)
    assert found_contents(database, "vixen") == [] and found_contents(database, "hare") == ["a hare"]
    database.continue_reply(reply.id)
    assert found_contents(database, "hare") == ["a hare"]
    database.update_message(reply.id, status="stopped")
    assert found_contents(database, "hare") == ["a hare"]
    database.delete(conversation)
    database.purge(time.time())
    check_index(database)
    assert database._connection.execute("SELECT count(*) FROM messages_index").fetchone()[0] == 0


def test_the_search_index_survives_vacuum(database: Database) -> None:
    gone, kept = add_messages(database, "badger", "otter"), add_messages(database, "vixen")
    database.delete(gone)
    database.purge(time.time())
    database._connection.execute("VACUUM")
    assert found_contents(database, "vixen") == ["vixen"]
    add_messages(database, "hare")
    assert found_contents(database, "hare") == ["hare"] and found_contents(database, "vixen") == ["vixen"]
    assert len(database.messages(kept)) == 1
    check_index(database)


def test_a_snippet_is_one_printable_line_around_the_match(database: Database) -> None:
    add_messages(database, "word " * 500 + "\n\nthe \x1b]0;evil\x07 needle\n\x1b[2Jin it " + "more " * 500)
    (hit,) = database.search("needle it")
    assert marked(hit)[:2] == ["needle", "it"]
    assert "\x1b" not in hit.snippet and "\n" not in hit.snippet and len(hit.snippet) < 200
    assert hit.snippet.startswith("… word") and hit.snippet.endswith(" …")


def test_searching_many_messages_is_fast(database: Database) -> None:
    conversation, count, instructions = add_messages(database), 20_000, 0

    def step() -> None:
        nonlocal instructions
        instructions += 100

    with database.writing() as connection:
        connection.executemany(
            "INSERT INTO messages (id, conversation_id, role, content, status, created_at) "
            "VALUES (?, ?, 'user', ?, 'complete', 0)",
            ((str(n), conversation, f"message {n} of many, {n * 7919}") for n in range(count)),
        )
    for text in ("1234", "message many", "12"):
        instructions = 0
        database._connection.set_progress_handler(step, 100)
        assert len(database.search(text)) >= 30
        database._connection.set_progress_handler(None, 0)
        # Of SQLite's virtual machine: some dozen for each message that has the words.
        assert instructions < 50 * count


def check_index(database: Database) -> None:
    """FTS5's integrity check of both search indexes."""
    try:
        for name in ("messages_index", "titles_index"):
            database._connection.execute(f"INSERT INTO {name} ({name}, rank) VALUES ('integrity-check', 1)")
    except sqlite3.DatabaseError as error:
        pytest.fail(f"the search index is inconsistent: {error}")

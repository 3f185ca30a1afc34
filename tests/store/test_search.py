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


def said(database: Database, *contents: str, title: str = "") -> str:
    conversation = database.create(title, None, "fp16")
    for content in contents:
        database.add_message(conversation.id, "user", content)
    return conversation.id


def found(database: Database, text: str, limit: int = 50) -> list[str]:
    """The content of the messages found."""
    return [database.message(h.message_id).content for h in database.search(text, limit) if h.message_id]


def marked(hit: SearchHit) -> list[str]:
    return [hit.snippet[start:end] for start, end in hit.marks]


def test_every_word_must_be_there_in_any_case_and_as_part_of_others(database: Database) -> None:
    said(database, "The red FOX sleeps", "a fox, foxglove", "red wine", "Überlandleitung")
    assert set(found(database, "fox")) == {"The red FOX sleeps", "a fox, foxglove"}
    assert found(database, "red fox") == found(database, "fox RED") == ["The red FOX sleeps"]
    assert found(database, "foxgl") == found(database, "glove") == ["a fox, foxglove"]
    assert found(database, '"red fox" sleeps') == ["The red FOX sleeps"]
    assert found(database, '"fox red"') == []
    assert found(database, "überland") == ["Überlandleitung"]
    assert found(database, "badger") == found(database, "") == found(database, '" "') == []


@pytest.mark.parametrize("text", ["中", "中国", "中国的", "🦊", "é", "C#", "%", "_x", "\\", "o'", "--", "*"])
def test_short_and_unspaced_words_are_found_as_they_stand(database: Database, text: str) -> None:
    said(database, "我们中国的首都 🦊 café C# 100% a_x b\\c o'clock -- *", "nothing of that at aIl")
    assert len(found(database, text)) == 1
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
def test_there_is_no_text_that_cannot_be_searched_for(database: Database, text: str) -> None:
    said(database, "fox and cat", title="content")
    assert isinstance(database.search(text), list)
    assert found(database, "fox") == ["fox and cat"]


def test_random_texts_find_what_holds_them(database: Database) -> None:
    chance = random.Random(4)
    letters = "abcXYZ äß中文字🦊'\"%_*()-+^:\\\n"
    contents = ["".join(chance.choices(letters, k=chance.randint(5, 60))) for _ in range(60)]
    said(database, *contents)
    for content in contents:
        words = [word for word in content.replace('"', " ").split() if len(word) >= 3]
        for word in words[:3]:
            assert content in found(database, word, 1000), word


def test_titles_come_first(database: Database) -> None:
    one = said(database, "about a fox and a fox and a fox", title="Other")
    two = said(database, "nothing", title="Fox tales")
    title, message = database.search("fox")
    assert (title.conversation_id, title.message_id, title.role) == (two, None, None)
    assert (title.title, title.snippet, marked(title)) == ("Fox tales", "Fox tales", ["Fox"])
    assert (message.conversation_id, message.role, message.title) == (one, "user", "Other")
    database.rename(two, "Hare tales")
    assert [hit.conversation_id for hit in database.search("tales")] == [two]
    assert len(database.search("fox")) == 1
    assert len(database.search("fox", limit=1)) == 1


def test_other_branches_are_found(database: Database) -> None:
    conversation = said(database, "question")
    (question,) = database.messages(conversation)
    first = database.add_message(conversation, "assistant", "a vixen")
    database.add_sibling(first.id, "a badger")
    (hit,) = database.search("vixen")
    assert hit.message_id == first.id
    assert database.select(hit.message_id).id == first.id
    assert [m.id for m in database.messages(conversation)] == [question.id, first.id]


def test_the_index_follows_every_change(database: Database) -> None:
    conversation = said(database, "first")
    reply = database.add_message(conversation, "assistant", "", "unfinished")
    for content in ("a gro", "a growing", "a growing badger"):
        database.update_message(reply.id, content=content, status="unfinished")
        assert found(database, content[2:]) == [content]
    assert found(database, "BADGER") == ["a growing badger"]
    database.update_message(reply.id, content="a grown vixen", status="complete")
    assert found(database, "badger") == [] and found(database, "vixen") == ["a grown vixen"]
    database.update_message(reply.id, content="a hare")
    database.update_message(reply.id, tokens=3)
    assert found(database, "vixen") == [] and found(database, "hare") == ["a hare"]
    database.continue_reply(reply.id)
    assert found(database, "hare") == ["a hare"]
    database.update_message(reply.id, status="stopped")
    assert found(database, "hare") == ["a hare"]
    database.delete(conversation)
    database.purge(time.time())
    check_index(database)
    assert database._connection.execute("SELECT count(*) FROM messages_index").fetchone()[0] == 0


def test_the_index_holds_through_a_vacuum(database: Database) -> None:
    gone, kept = said(database, "badger", "otter"), said(database, "vixen")
    database.delete(gone)
    database.purge(time.time())
    database._connection.execute("VACUUM")
    assert found(database, "vixen") == ["vixen"]
    said(database, "hare")
    assert found(database, "hare") == ["hare"] and found(database, "vixen") == ["vixen"]
    assert len(database.messages(kept)) == 1
    check_index(database)


def test_a_snippet_is_one_safe_line_around_the_word(database: Database) -> None:
    said(database, "word " * 500 + "\n\nthe \x1b]0;evil\x07 needle\n\x1b[2Jin it " + "more " * 500)
    (hit,) = database.search("needle it")
    assert marked(hit)[:2] == ["needle", "it"]
    assert "\x1b" not in hit.snippet and "\n" not in hit.snippet and len(hit.snippet) < 200
    assert hit.snippet.startswith("… word") and hit.snippet.endswith(" …")


def test_many_messages_are_searched_quickly(database: Database) -> None:
    conversation = said(database)
    with database.writing() as connection:
        connection.executemany(
            "INSERT INTO messages (id, conversation_id, role, content, status, created_at) "
            "VALUES (?, ?, 'user', ?, 'complete', 0)",
            ((str(n), conversation, f"message {n} of many, {n * 7919}") for n in range(20_000)),
        )
    for text in ("1234", "message many", "12"):
        began = time.perf_counter()
        assert len(database.search(text)) >= 30
        assert time.perf_counter() - began < 2


def check_index(database: Database) -> None:
    """FTS5's own check, against the tables that it stands for."""
    try:
        for name in ("messages_index", "titles_index"):
            database._connection.execute(f"INSERT INTO {name} ({name}, rank) VALUES ('integrity-check', 1)")
    except sqlite3.DatabaseError as error:
        pytest.fail(f"the index is not what it should be: {error}")

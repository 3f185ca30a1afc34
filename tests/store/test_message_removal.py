"""One message goes and comes back; what follows it stays in every case."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tqchat.paths import Paths
from tqchat.store.database import Database, UnknownMessage


@pytest.fixture
def database(paths: Paths) -> Iterator[Database]:
    with Database(paths.database) as database:
        yield database


def told(database: Database, conversation_id: str) -> list[str]:
    return [message.content for message in database.messages(conversation_id)]


def parents_come_first(database: Database, conversation_id: str) -> bool:
    seen: set[str | None] = {None}
    for message in database.tree(conversation_id):
        if message.parent_id not in seen:
            return False
        seen.add(message.id)
    return True


def test_what_follows_moves_up_and_back_down(database: Database) -> None:
    chat = database.create("t", None, "fp16").id
    one = database.add_message(chat, "user", "one")
    two = database.add_message(chat, "assistant", "two")
    database.add_message(chat, "user", "three")
    database.rewind_to(chat, two.id)
    database.add_message(chat, "user", "other three")
    removed = database.delete_message(two.id)
    assert told(database, chat) == ["one", "other three"]
    assert len(database.siblings(database.messages(chat)[1].id)) == 2
    assert not database.search("two")
    database.restore_message(removed)
    assert told(database, chat) == ["one", "two", "other three"]
    assert database.message(two.id) == two
    assert len(database.siblings(database.messages(chat)[2].id)) == 2
    assert parents_come_first(database, chat)
    assert database.search("two")
    assert one.id == database.messages(chat)[0].id


def test_the_last_and_the_first(database: Database) -> None:
    chat = database.create("t", None, "fp16").id
    database.add_message(chat, "user", "one")
    last = database.add_message(chat, "assistant", "two")
    removed = database.delete_message(last.id)
    assert told(database, chat) == ["one"]
    database.add_message(chat, "assistant", "new two")
    database.restore_message(removed)
    assert told(database, chat) == ["one", "two"], "it was the end, and is again"
    assert parents_come_first(database, chat)
    first = database.delete_message(database.messages(chat)[0].id)
    assert told(database, chat) == ["two"]
    database.restore_message(first)
    assert told(database, chat) == ["one", "two"]


def test_several_come_back_in_the_other_order(database: Database) -> None:
    chat = database.create("t", None, "fp16").id
    for word in ("a", "b", "c", "d"):
        database.add_message(chat, "user", word)
    gone = [database.delete_message(message.id) for message in reversed(database.messages(chat))]
    assert told(database, chat) == []
    other = database.create("u", None, "fp16").id
    for word in ("e", "f", "g", "h", "i"):
        database.add_message(other, "user", word)
    for removed in reversed(gone):
        database.restore_message(removed)
    assert told(database, chat) == ["a", "b", "c", "d"]
    assert parents_come_first(database, chat)


def test_without_what_it_followed_it_stays_gone(database: Database) -> None:
    chat = database.create("t", None, "fp16").id
    one = database.add_message(chat, "user", "one")
    two = database.add_message(chat, "assistant", "two")
    removed = database.delete_message(two.id)
    database.delete_message(one.id)
    with pytest.raises(UnknownMessage):
        database.restore_message(removed)
    with pytest.raises(UnknownMessage):
        database.delete_message(two.id)


def test_a_branch_of_its_own(database: Database) -> None:
    chat = database.create("t", None, "fp16").id
    first = database.add_message(chat, "user", "one")
    database.add_message(chat, "assistant", "two")
    database.begin_branch(chat, [("user", "short"), ("assistant", "so")])
    assert told(database, chat) == ["short", "so"]
    database.select(first.id)
    assert told(database, chat) == ["one", "two"]

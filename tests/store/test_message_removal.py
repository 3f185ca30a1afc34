"""Deletion and restoring of single messages in the tree."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tqchat.paths import Paths
from tqchat.store.database import Database, UnknownMessage


@pytest.fixture
def database(paths: Paths) -> Iterator[Database]:
    with Database(paths.database) as database:
        yield database


def contents(database: Database, conversation_id: str) -> list[str]:
    return [message.content for message in database.messages(conversation_id)]


def parents_precede_children(database: Database, conversation_id: str) -> bool:
    seen: set[str | None] = {None}
    for message in database.tree(conversation_id):
        if message.parent_id not in seen:
            return False
        seen.add(message.id)
    return True


def test_children_attach_to_the_parent_and_back(database: Database) -> None:
    chat = database.create("t", None, "fp16").id
    one = database.add_message(chat, "user", "one")
    two = database.add_message(chat, "assistant", "two")
    database.add_message(chat, "user", "three")
    database.rewind_to(chat, two.id)
    database.add_message(chat, "user", "other three")
    removed = database.delete_message(two.id)
    assert contents(database, chat) == ["one", "other three"]
    assert len(database.siblings(database.messages(chat)[1].id)) == 2
    assert not database.search("two")
    database.restore_message(removed)
    assert contents(database, chat) == ["one", "two", "other three"]
    assert database.message(two.id) == two
    assert len(database.siblings(database.messages(chat)[2].id)) == 2
    assert parents_precede_children(database, chat)
    assert database.search("two")
    assert one.id == database.messages(chat)[0].id


def test_deleting_the_head_and_the_root(database: Database) -> None:
    chat = database.create("t", None, "fp16").id
    database.add_message(chat, "user", "one")
    last = database.add_message(chat, "assistant", "two")
    removed = database.delete_message(last.id)
    assert contents(database, chat) == ["one"]
    database.add_message(chat, "assistant", "new two")
    database.restore_message(removed)
    assert contents(database, chat) == ["one", "two"], "it was the head, and is again"
    assert parents_precede_children(database, chat)
    first = database.delete_message(database.messages(chat)[0].id)
    assert contents(database, chat) == ["two"]
    database.restore_message(first)
    assert contents(database, chat) == ["one", "two"]


def test_several_messages_are_restored_in_reverse_order(database: Database) -> None:
    chat = database.create("t", None, "fp16").id
    for word in ("a", "b", "c", "d"):
        database.add_message(chat, "user", word)
    gone = [database.delete_message(message.id) for message in reversed(database.messages(chat))]
    assert contents(database, chat) == []
    other = database.create("u", None, "fp16").id
    for word in ("e", "f", "g", "h", "i"):
        database.add_message(other, "user", word)
    for removed in reversed(gone):
        database.restore_message(removed)
    assert contents(database, chat) == ["a", "b", "c", "d"]
    assert parents_precede_children(database, chat)


def test_a_message_without_its_parent_cannot_be_restored(database: Database) -> None:
    chat = database.create("t", None, "fp16").id
    one = database.add_message(chat, "user", "one")
    two = database.add_message(chat, "assistant", "two")
    removed = database.delete_message(two.id)
    database.delete_message(one.id)
    with pytest.raises(UnknownMessage):
        database.restore_message(removed)
    with pytest.raises(UnknownMessage):
        database.delete_message(two.id)


def test_begin_branch_starts_at_the_root(database: Database) -> None:
    chat = database.create("t", None, "fp16").id
    first = database.add_message(chat, "user", "one")
    database.add_message(chat, "assistant", "two")
    database.begin_branch(chat, [("user", "short"), ("assistant", "so")])
    assert contents(database, chat) == ["short", "so"]
    database.select(first.id)
    assert contents(database, chat) == ["one", "two"]

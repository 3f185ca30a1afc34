"""The reasoning of a reply is kept, found, exported and deleted as its answer is."""

from __future__ import annotations

import pytest

from tqchat.paths import Paths
from tqchat.store.database import Conversation, Database
from tqchat.store.exchange import from_json, to_json, to_markdown


def reply_with_thought(database: Database) -> tuple[Conversation, str]:
    conversation = database.create("Letters", None, "fp16", thinking="high", thinking_budget=400)
    database.add_message(conversation.id, "user", "Which letter is the tenth?")
    message = database.add_message(conversation.id, "assistant", "", "unfinished")
    database.update_message(message.id, reasoning="Counting quietly: A, B")
    database.update_message(
        message.id,
        content="It is J.",
        reasoning="Counting quietly: J.",
        reasoning_seconds=1.5,
        status="complete",
    )
    return conversation, message.id


def test_it_is_kept_and_found_after_answers(paths: Paths) -> None:
    with Database(paths.database) as database:
        conversation, message_id = reply_with_thought(database)
        message = database.message(message_id)
        assert (message.content, message.reasoning) == ("It is J.", "Counting quietly: J.")
        assert message.reasoning_seconds == 1.5
        (hit,) = database.search("quietly")
        assert (hit.message_id, hit.snippet) == (message_id, "Counting quietly: J.")
        said = database.add_message(conversation.id, "user", "Why so quietly?")
        assert [one.message_id for one in database.search("quietly")] == [said.id, message_id]


@pytest.mark.parametrize("finished", [True, False])
def test_it_is_gone_with_its_message(paths: Paths, finished: bool) -> None:
    with Database(paths.database) as database:
        _, message_id = reply_with_thought(database)
        if not finished:
            database.update_message(message_id, status="unfinished")
        assert len(database.search("quietly")) == 1
        removed = database.delete_message(message_id)
        assert database.search("quietly") == []
        database.restore_message(removed)
        assert database.message(message_id).reasoning == "Counting quietly: J."
        database.delete_message(message_id)
    assert b"quietly" not in paths.database.read_bytes()


def test_a_continued_reply_keeps_its_thought(paths: Paths) -> None:
    with Database(paths.database) as database:
        conversation, message_id = reply_with_thought(database)
        database.add_message(conversation.id, "user", "And then?")
        assert database.continue_reply(message_id).reasoning == "Counting quietly: J."


def test_an_export_keeps_it_and_markdown_leaves_it_out(paths: Paths) -> None:
    with Database(paths.database) as database:
        conversation, message_id = reply_with_thought(database)
        exported = "".join(to_json(database, [conversation])).encode()
        assert "quietly" not in to_markdown(database, conversation)
        database.delete(conversation.id)
        database.purge(9e12)
        from_json(database, exported)
        assert database.message(message_id).reasoning == "Counting quietly: J."
        again = database.conversation(conversation.id)
        assert (again.thinking, again.thinking_budget) == ("high", 400)


def test_a_conversation_decides_how_much_is_thought(paths: Paths) -> None:
    with Database(paths.database) as database:
        conversation = database.create("", None, "fp16")
        assert (conversation.thinking, conversation.thinking_budget) == (None, None)
        database.set_thinking(conversation.id, "off")
        assert database.conversation(conversation.id).thinking == "off"
        database.set_thinking(conversation.id, None, 64)
        assert database.conversation(conversation.id).thinking_budget == 64

"""Export of conversations as Markdown or JSON, and import of JSON and of other programs' conversations.

JSON contains all branches and settings, so an import restores exactly what was exported."""

from __future__ import annotations

import io
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any, BinaryIO, Literal

from tqchat.store.database import ConversationInUse, Database
from tqchat.store.import_parser import FORMAT, VERSION, ParsedConversation, read_conversations
from tqchat.store.imports.markdown import with_spaced_headings
from tqchat.store.records import Conversation, Message
from tqchat.store.rows import (
    CONVERSATION_COLUMNS,
    conversation_from_row,
    insert_conversation,
    insert_message,
    new_id,
)
from tqchat.text import one_line, with_closed_fence

Outcome = Literal["added", "copied", "restored", "skipped", "extended", "in use"]
UNTITLED = "(untitled)"


@dataclass(frozen=True)
class Imported:
    """The result of importing one conversation.

    Attributes:
        outcome: ``added``; ``copied`` under a new id because a different conversation has its id;
            ``restored`` because it was deleted here; ``skipped`` because it was imported before;
            ``extended`` by messages that are new at its source; ``in use`` by another process, which keeps it
            from being extended.
        messages: Messages that were added.
    """

    conversation: Conversation
    outcome: Outcome
    messages: int = 0


def to_json(database: Database, conversations: Sequence[Conversation]) -> Iterator[str]:
    """Export conversations as JSON, yielded in parts to limit memory use.

    Raises:
        UnknownConversation: if one was deleted meanwhile.
    """
    yield from as_json(_read(database, conversations))


def _read(
    database: Database, conversations: Sequence[Conversation]
) -> Iterator[tuple[Conversation, list[Message]]]:
    for conversation in conversations:
        with database.reading():
            found = database.conversation(conversation.id), database.tree(conversation.id)
        yield found


def as_json(conversations: Iterable[tuple[Conversation, Sequence[Message]]]) -> Iterator[str]:
    """JSON of conversations with all their messages, yielded in parts."""
    yield f'{{"format": "{FORMAT}", "version": {VERSION}, "conversations": ['
    for index, exported in enumerate(conversations):
        body = json.dumps(_to_dict(*exported), ensure_ascii=True, allow_nan=False, indent=1)
        yield (",\n" if index else "\n") + body
    yield "\n]}\n"


def to_markdown(database: Database, conversation: Conversation) -> str:
    """Export a conversation's shown branch as Markdown. Message contents are not escaped, but a code block
    that one leaves open is closed, and headings get a second space.

    Raises:
        UnknownConversation: if it was deleted meanwhile.
    """
    with database.reading():
        conversation = database.conversation(conversation.id)
        shown = database.messages(conversation.id)
        hidden = len(database.tree(conversation.id)) - len(shown)
    facts = [_format_time(conversation.created_at), *([conversation.model] if conversation.model else [])]
    parts = [f"# {one_line(conversation.title) or UNTITLED}", f"*{one_line(', '.join(facts))}*"]
    if conversation.system_prompt:
        parts += ["## System", _content(conversation.system_prompt)]
    for message in shown:
        name = {"user": "You", "system": "System"}.get(message.role) or one_line(message.model or "Assistant")
        note = "" if message.status == "complete" else f" ({message.status})"
        parts += [f"## {name}{note}", _content(message.content)]
    if hidden:
        others = f"{hidden} more message{'' if hidden == 1 else 's'}"
        parts.append(f"*{others} on other branches; export as JSON to keep them.*")
    return "\n\n".join(parts) + "\n"


def _content(text: str) -> str:
    return with_spaced_headings(with_closed_fence(text.strip("\n")))


def from_json(database: Database, content: bytes | BinaryIO) -> list[Imported]:
    """Import all conversations of a JSON file in one transaction, one after the other.

    Args:
        content: The file, seekable; or what is in it.

    Raises:
        BadImport: if the file is not a valid export; nothing is imported then.
    """
    file = io.BytesIO(content) if isinstance(content, bytes) else content
    with database.writing() as connection:
        return [add(database, connection, parsed) for parsed in read_conversations(file)]


def add(database: Database, connection: sqlite3.Connection, parsed: ParsedConversation) -> Imported:
    """Import a conversation of tqchat's own, within a transaction."""
    conversation = parsed.conversation
    known = database.rows(f"SELECT {CONVERSATION_COLUMNS} FROM conversations WHERE id = ?", conversation.id)
    if known:
        here = conversation_from_row(known[0])
        if (
            replace(here, deleted_at=None, pinned_at=conversation.pinned_at) == conversation
            and database.tree(here.id) == parsed.messages
        ):
            connection.execute("UPDATE conversations SET deleted_at = NULL WHERE id = ?", (here.id,))
            return Imported(conversation, "skipped" if here.deleted_at is None else "restored")
    taken = known or any(
        database.rows("SELECT 1 FROM messages WHERE id = ?", message.id) for message in parsed.messages
    )
    if taken:
        parsed = with_new_ids(parsed)
    insert(connection, parsed)
    return Imported(parsed.conversation, "copied" if taken else "added")


def merge(database: Database, connection: sqlite3.Connection, parsed: ParsedConversation) -> Imported:
    """Import a conversation of another program, within a transaction. Nothing is imported twice.

    If it was imported before, messages that are new at the source are added; what was renamed, edited or
    deleted here stays so. A conversation that was deleted here is restored.
    """
    conversation = parsed.conversation
    known = database.rows(f"SELECT {CONVERSATION_COLUMNS} FROM conversations WHERE id = ?", conversation.id)
    if not known:
        if any(database.rows("SELECT 1 FROM messages WHERE id = ?", one.id) for one in parsed.messages):
            parsed = with_new_ids(parsed)
        insert(connection, parsed)
        _record(connection, parsed.conversation.id, parsed.messages)
        return Imported(parsed.conversation, "added", len(parsed.messages))
    here = conversation_from_row(known[0])
    before = {
        row["id"]
        for table in ("imported", "messages")
        for row in database.rows(f"SELECT id FROM {table} WHERE conversation_id = ?", here.id)
    }
    fresh = [one for one in parsed.messages if one.id not in before]
    if not fresh and here.deleted_at is None:
        return Imported(here, "skipped")
    try:
        database.leases.check(here.id)
    except ConversationInUse:
        return Imported(here, "in use")
    connection.execute("UPDATE conversations SET deleted_at = NULL WHERE id = ?", (here.id,))
    if fresh:
        _extend(database, connection, here, parsed, fresh)
    return Imported(here, "extended" if here.deleted_at is None else "restored", len(fresh))


def _extend(
    database: Database,
    connection: sqlite3.Connection,
    here: Conversation,
    parsed: ParsedConversation,
    fresh: Sequence[Message],
) -> None:
    """Insert messages that are new; the head moves if it is one of theirs."""
    parents = {one.id: one.parent_id for one in parsed.messages}
    stored = {one.id for one in database.tree(here.id)}
    for message in fresh:
        parent = message.parent_id
        while parent is not None and parent not in stored:
            parent = parents.get(parent)  # it was deleted here
        insert_message(connection, replace(message, parent_id=parent))
        stored.add(message.id)
    _record(connection, here.id, fresh)
    head = parsed.conversation.head_id
    above = head
    while above is not None and above != here.head_id:
        above = parents.get(above)
    if above == here.head_id:
        connection.execute("UPDATE conversations SET head_id = ? WHERE id = ?", (head, here.id))
    connection.execute(
        "UPDATE conversations SET updated_at = max(updated_at, ?) WHERE id = ?",
        (parsed.conversation.updated_at, here.id),
    )


def _record(connection: sqlite3.Connection, conversation_id: str, messages: Sequence[Message]) -> None:
    connection.executemany(
        "INSERT OR IGNORE INTO imported (id, conversation_id) VALUES (?, ?)",
        ((message.id, conversation_id) for message in messages),
    )


def insert(connection: sqlite3.Connection, parsed: ParsedConversation) -> None:
    """Insert a conversation with its messages."""
    # The head is set last: it must refer to an existing message.
    insert_conversation(connection, replace(parsed.conversation, head_id=None))
    for message in parsed.messages:
        insert_message(connection, message)
    connection.execute(
        "UPDATE conversations SET head_id = ? WHERE id = ?",
        (parsed.conversation.head_id, parsed.conversation.id),
    )


def with_new_ids(parsed: ParsedConversation) -> ParsedConversation:
    """A copy with new ids."""
    ids: dict[str | None, str | None] = {None: None}
    ids |= {message.id: new_id() for message in parsed.messages}
    conversation = replace(parsed.conversation, id=new_id(), head_id=ids[parsed.conversation.head_id])
    messages = [
        replace(
            message,
            id=ids[message.id] or "",
            conversation_id=conversation.id,
            parent_id=ids[message.parent_id],
        )
        for message in parsed.messages
    ]
    return ParsedConversation(conversation, messages)


def _to_dict(conversation: Conversation, messages: Sequence[Message]) -> dict[str, Any]:
    exported = {field.name: getattr(conversation, field.name) for field in fields(Conversation)}
    del exported["deleted_at"]
    exported["sampling"] = conversation.sampling.given
    exported["messages"] = []
    before: set[str] = set()
    for message in messages:
        # In a damaged file a parent may come later, even be the message itself. An import would reject that.
        parent_id = message.parent_id if message.parent_id in before else None
        one = {f.name: getattr(message, f.name) for f in fields(Message) if f.name != "conversation_id"}
        exported["messages"].append(one | {"parent_id": parent_id})
        before.add(message.id)
    return exported


def _format_time(time: float) -> str:
    return datetime.fromtimestamp(time).strftime("%Y-%m-%d %H:%M")

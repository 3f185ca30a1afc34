"""Conversion between records and database rows."""

from __future__ import annotations

import math
import re
import secrets
import sqlite3
from collections.abc import Mapping
from dataclasses import fields

from tqchat.store import sampling
from tqchat.store.records import Conversation, Message

CONVERSATION_COLUMNS = ", ".join(field.name for field in fields(Conversation))
MESSAGE_COLUMNS = ", ".join(field.name for field in fields(Message))

_SURROGATE = re.compile("[\ud800-\udfff]")


def new_id() -> str:
    """A new random id."""
    return secrets.token_hex(8)


def replace_surrogates(text: str) -> str:
    """The text with lone surrogates (from terminals or file names; not valid UTF-8) replaced by U+FFFD."""
    return _SURROGATE.sub("\ufffd", text)


def conversation_from_row(row: sqlite3.Row) -> Conversation:
    """A row as a Conversation."""
    values = dict(row)
    values["title_is_automatic"] = bool(values["title_is_automatic"])
    values["sampling"] = sampling.from_column(values["sampling"])
    return Conversation(**values)


def message_from_row(row: sqlite3.Row) -> Message:
    """A row as a Message."""
    return Message(**dict(row))


def insert_conversation(connection: sqlite3.Connection, conversation: Conversation) -> None:
    """Insert a conversation with all its fields."""
    values = {field.name: getattr(conversation, field.name) for field in fields(Conversation)}
    values["sampling"] = sampling.to_column(conversation.sampling)
    _insert(connection, "conversations", values)


def insert_message(connection: sqlite3.Connection, message: Message, number: int | None = None) -> None:
    """Insert a message with all its fields.

    ``number`` is its wanted row number (default: after all others). It is not used if another message has it,
    or if the parent's is higher: a parent's number is below its children's.
    """
    values = {field.name: getattr(message, field.name) for field in fields(Message)}
    if number is None:
        _insert(connection, "messages", values)
        return
    marks = ", ".join("?" for _ in values)
    # One statement, so that it decides the same for any state of the table in which it is run again.
    connection.execute(
        f"""
        INSERT INTO messages ({", ".join(values)}, number) SELECT {marks}, iif(
            EXISTS (SELECT 1 FROM messages WHERE number = ? OR (id = ? AND number > ?)), NULL, ?
        )
        """,
        (*map(to_sql, values.values()), number, message.parent_id, number, number),
    )


def to_sql(value: object) -> object:
    """The value to store: text without lone surrogates, NULL for NaN and infinity."""
    if isinstance(value, str):
        return replace_surrogates(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _insert(connection: sqlite3.Connection, table: str, values: Mapping[str, object]) -> None:
    marks = ", ".join("?" for _ in values)
    connection.execute(
        f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})", tuple(map(to_sql, values.values()))
    )

"""Records as the database keeps them, and back."""

from __future__ import annotations

import math
import re
import secrets
import sqlite3
from collections.abc import Mapping
from dataclasses import fields

from tqchat.store import sampling
from tqchat.store.records import Conversation, Message

CONVERSATION = ", ".join(field.name for field in fields(Conversation))
MESSAGE = ", ".join(field.name for field in fields(Message))

_SURROGATE = re.compile("[\ud800-\udfff]")


def new_id() -> str:
    """An id that no other conversation or message has."""
    return secrets.token_hex(8)


def storable(text: str) -> str:
    """The text without the half characters that a terminal or a file name can bring, and no file can hold."""
    return _SURROGATE.sub("\ufffd", text)


def conversation_from(row: sqlite3.Row) -> Conversation:
    """The conversation of a row."""
    values = dict(row)
    values["title_is_automatic"] = bool(values["title_is_automatic"])
    values["sampling"] = sampling.from_column(values["sampling"])
    return Conversation(**values)


def message_from(row: sqlite3.Row) -> Message:
    """The message of a row."""
    return Message(**dict(row))


def insert_conversation(connection: sqlite3.Connection, conversation: Conversation) -> None:
    """Add a conversation as it is."""
    values = {field.name: getattr(conversation, field.name) for field in fields(Conversation)}
    values["sampling"] = sampling.to_column(conversation.sampling)
    _insert(connection, "conversations", values)


def insert_message(connection: sqlite3.Connection, message: Message, number: int | None = None) -> None:
    """Add a message as it is; ``number`` is its place among all messages, the last one if it is left out."""
    values = {field.name: getattr(message, field.name) for field in fields(Message)}
    _insert(connection, "messages", values if number is None else {**values, "number": number})


def column(value: object) -> object:
    """What is kept for a value: no half characters, and no speed that is infinite or not a number."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _insert(connection: sqlite3.Connection, table: str, values: Mapping[str, object]) -> None:
    marks = ", ".join("?" for _ in values)
    connection.execute(
        f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})", tuple(map(column, values.values()))
    )

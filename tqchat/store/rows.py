"""Conversion between records and database rows."""

from __future__ import annotations

import math
import re
import secrets
import sqlite3
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from tqchat.kv.scheme import AUTO, UnknownScheme, scheme_setting
from tqchat.store import sampling
from tqchat.store.records import MAX_TIMESTAMP, MAX_UTC_OFFSET_S, THINKING_CHOICES, Conversation, Message

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
    held = _by_name(row)
    held["title_is_automatic"] = bool(held["title_is_automatic"])
    held["sampling"] = sampling.from_column(held["sampling"])
    values = _mended(held, _CONVERSATION_TYPES)
    try:
        values["scheme"] = scheme_setting(values["scheme"])
    except UnknownScheme:
        values["scheme"] = AUTO
    return Conversation(**values)


def message_from_row(row: sqlite3.Row) -> Message:
    """A row as a Message."""
    return Message(**_mended(_by_name(row), _MESSAGE_TYPES))


def _by_name(row: sqlite3.Row) -> dict[str, Any]:
    """A row's values. A damaged name of a column is still found by SQLite if only its case is wrong."""
    return {name.lower(): row[name] for name in row.keys()}  # noqa: SIM118  iterating a row gives values


def _mended(held: Mapping[str, Any], types: Mapping[str, _Column]) -> dict[str, Any]:
    """The columns, with what one cannot hold replaced: SQLite stores anything, and files get damaged."""
    values: dict[str, Any] = {}
    for name, column in types.items():
        value = values[name] = held[name]
        if type(value) not in column.types or (column.fits is not None and not column.fits(value)):
            values[name] = as_text(value) if column.is_text and value is not None else column.default
    return values


def timestamp(value: object) -> float:
    """A time as the ``*_at`` columns hold it; 0 for anything else."""
    return float(value) if isinstance(value, int | float) and 0 <= value <= MAX_TIMESTAMP else 0.0


def as_text(value: object) -> str:
    """A value of a text column, which in a damaged file may be anything."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


@dataclass(frozen=True)
class _Column:
    """The values of a column, and what stands for any other."""

    types: frozenset[type]
    default: Any = None
    is_text: bool = False
    fits: Callable[[Any], bool] | None = None


def _column(name: str, declared: str) -> _Column:
    kind, _, optional = declared.partition(" | ")
    none = frozenset((type(None),)) if optional else frozenset()
    if name in _CHOICES:
        names = _CHOICES[name]
        default = None if optional else names[0]
        return _Column(none | {str}, default, fits=lambda value: value is None or value in names)
    match kind:
        case "str":
            return _Column(none | {str}, None if optional else "", is_text=True)
        case "float":
            most = MAX_TIMESTAMP if name.endswith("_at") else sys.float_info.max
            zero = None if optional else 0.0
            return _Column(none | {float, int}, zero, fits=lambda value: value is None or 0 <= value <= most)
        case "int" if name == "utc_offset":
            bound = MAX_UTC_OFFSET_S
            return _Column(none | {int}, None, fits=lambda value: value is None or abs(value) <= bound)
        case "int":
            least = None if optional else 0
            return _Column(none | {int}, least, fits=lambda value: value is None or value >= 0)
        case _:
            return _Column(frozenset((bool, sampling.SamplingChoice)))


_CHOICES: Mapping[str, tuple[str, ...]] = {
    "role": ("user", "system", "assistant"),
    "status": ("complete", "unfinished", "stopped"),
    "thinking": THINKING_CHOICES,
}
_CONVERSATION_TYPES = {field.name: _column(field.name, str(field.type)) for field in fields(Conversation)}
_MESSAGE_TYPES = {field.name: _column(field.name, str(field.type)) for field in fields(Message)}


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

"""Claude's data export: ``conversations.json``, a list of conversations with ``chat_messages``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tqchat.store.imports.json_stream import JsonStream
from tqchat.store.imports.transcript import (
    Piece,
    SourceRole,
    Transcript,
    as_text,
    attached_file,
    fenced,
    id_from_content,
    require,
    unix_time,
)

NAME = "Claude"
_BLOCK = {
    "type": None,
    "text": None,
    "thinking": None,
    "name": None,
    "input": {"title": None, "language": None, "content": None, "code": None, "query": None},
    "content": [{"type": None, "text": None}],
}
_MESSAGE = {
    "uuid": None,
    "parent_message_uuid": None,
    "sender": None,
    "text": None,
    "created_at": None,
    "content": [_BLOCK],
    "attachments": [{"file_name": None, "extracted_content": None}],
    "files": [{"file_name": None}],
}
_ROLES: Mapping[object, SourceRole] = {"human": "user", "user": "user", "assistant": "assistant"}


def read_pieces(stream: JsonStream) -> list[Piece]:
    """The ``chat_messages`` of a conversation.

    Raises:
        BadConversation: if they are no list.
    """
    require(stream, "[", "has chat_messages that are no list")
    pieces: list[Piece] = []
    known: set[str] = set()
    for number, _ in enumerate(stream.places()):
        message = stream.pick(_MESSAGE)
        if isinstance(message, dict):
            before = pieces[-1].key if pieces else None
            pieces.append(_piece(message, number, before, known))
            known.add(pieces[-1].key)
    return pieces


def transcript(values: Mapping[str, Any], pieces: list[Piece]) -> Transcript:
    """The conversation with these pieces."""
    return Transcript(
        NAME,
        as_text(values.get("uuid")) or id_from_content(pieces, values.get("created_at")),
        as_text(values.get("name")),
        pieces,
        NAME,
        unix_time(values.get("created_at")),
        unix_time(values.get("updated_at")),
        head=as_text(values.get("current_leaf_message_uuid")) or None,
    )


def _piece(message: Mapping[str, Any], number: int, before: str | None, known: set[str]) -> Piece:
    key = as_text(message.get("uuid"))
    if not key or key in known:
        key = f"{key}#{number}"
    # Older exports have no parents. The parent of a first message is an id of zeros.
    parent = message.get("parent_message_uuid")
    role = _ROLES.get(as_text(message.get("sender")), "system")
    answer: list[str] = []
    reasoning: list[str] = []
    for block in _objects(message, "content"):
        if block.get("type") == "thinking":
            reasoning.append(as_text(block.get("thinking")))
        else:
            answer.append(_block_text(block))
    said = [part for part in answer if part.strip()] or [as_text(message.get("text"))]
    for file in _objects(message, "attachments"):
        name, text = as_text(file.get("file_name")), as_text(file.get("extracted_content"))
        said.append(attached_file(name, text) if text.strip() else _named(name))
    said += [_named(as_text(file.get("file_name"))) for file in _objects(message, "files")]
    return Piece(
        key,
        before if parent is None else as_text(parent) or None,
        role,
        "\n\n".join(part.strip("\n") for part in said if part.strip()),
        "\n\n".join(part for part in reasoning if part.strip()),
        time=unix_time(message.get("created_at")),
    )


def _block_text(block: Mapping[str, Any]) -> str:
    kind = block.get("type")
    if kind == "tool_use":
        given = block.get("input")
        given = given if isinstance(given, dict) else {}
        title = " ".join((as_text(given.get("title")) or as_text(block.get("name"))).split())
        body = next((text for name in ("content", "code", "query") if (text := as_text(given.get(name)))), "")
        heading = f"*[{title or 'tool'}]*"
        return f"{heading}\n\n{fenced(body, as_text(given.get('language')))}" if body.strip() else heading
    if kind == "tool_result":
        text = "\n\n".join(as_text(one.get("text")) for one in _objects(block, "content"))
        return fenced(text) if text.strip() else ""
    return as_text(block.get("text"))


def _named(name: str) -> str:
    return f"*[file: {' '.join(name.split())}]*" if name.strip() else ""


def _objects(value: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = value.get(name)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []

"""ChatGPT's data export: ``conversations.json``, a list of conversations with their trees of messages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tqchat.store.imports.json_stream import JsonStream
from tqchat.store.imports.transcript import (
    ROLES,
    Piece,
    Transcript,
    as_text,
    fenced,
    id_from_content,
    require,
    unix_time,
)

NAME = "ChatGPT"
_NODE = {
    "parent": None,
    "message": {
        "author": {"role": None},
        "create_time": None,
        "status": None,
        "content": {
            "content_type": None,
            "parts": [{"content_type": None, "text": None}],
            "text": None,
            "language": None,
            "title": None,
            "url": None,
            "result": None,
            "thoughts": [{"summary": None, "content": None}],
        },
        "metadata": {
            "model_slug": None,
            "is_visually_hidden_from_conversation": None,
            "attachments": [{"name": None}],
        },
    },
}
_NOT_SAID = ("user_editable_context", "model_editable_context", "reasoning_recap")
"""Contents that are no part of what was said: custom instructions, memories, "Thought for 5 s"."""
_CITATION = re.compile("\ue200[^\ue200\ue201]*+\ue201")
"""References of search results, which only ChatGPT resolves."""


def read_pieces(stream: JsonStream) -> list[Piece]:
    """The nodes of a conversation's ``mapping``.

    Raises:
        BadConversation: if it is no object.
    """
    require(stream, "{", "has a mapping that is no object")
    return [_piece(key, stream.pick(_NODE)) for key in stream.names()]


def transcript(values: Mapping[str, Any], pieces: list[Piece]) -> Transcript:
    """The conversation with these pieces."""
    return Transcript(
        NAME,
        as_text(values.get("conversation_id"))
        or as_text(values.get("id"))
        or id_from_content(pieces, values.get("create_time")),
        as_text(values.get("title")),
        pieces,
        NAME,
        unix_time(values.get("create_time")),
        unix_time(values.get("update_time")),
        head=as_text(values.get("current_node")) or None,
    )


def _piece(key: str, node: Any) -> Piece:
    node = node if isinstance(node, dict) else {}
    message = node.get("message")
    parent = as_text(node.get("parent")) or None
    if not isinstance(message, dict):
        return Piece(key, parent, "system", "")
    author, content, metadata = (_object(message, name) for name in ("author", "content", "metadata"))
    role = ROLES.get(as_text(author.get("role")))
    hidden = metadata.get("is_visually_hidden_from_conversation") is True
    if role is None or hidden or content.get("content_type") in _NOT_SAID:
        return Piece(key, parent, "system", "")
    text, reasoning = _content(content)
    names = [as_text(one.get("name")) for one in _list(metadata, "attachments") if isinstance(one, dict)]
    parts = [text, *(f"*[file: {' '.join(name.split())}]*" for name in names if name.strip())]
    if role == "tool" and text.strip() and not text.startswith("*["):
        parts[0] = fenced(text)
    return Piece(
        key,
        parent,
        role,
        "\n\n".join(part for part in parts if part.strip()),
        reasoning,
        as_text(metadata.get("model_slug")) or None,
        unix_time(message.get("create_time")),
        "stopped" if message.get("status") == "in_progress" else "complete",
    )


def _content(content: Mapping[str, Any]) -> tuple[str, str]:
    """The text and the reasoning of a message."""
    kind = as_text(content.get("content_type"))
    if kind == "thoughts":
        thoughts = (one for one in _list(content, "thoughts") if isinstance(one, dict))
        return "", "\n\n".join(as_text(one.get("content")) or as_text(one.get("summary")) for one in thoughts)
    text = as_text(content.get("text")) or as_text(content.get("result"))
    if kind == "code" and text.strip():
        language = as_text(content.get("language"))
        return fenced(text, "" if language == "unknown" else language), ""
    if kind == "tether_quote":
        heading = as_text(content.get("title")) or as_text(content.get("url"))
        return "\n".join(part for part in (heading, text) if part), ""
    said = "\n\n".join(part for part in _parts(content) if part.strip()) or text
    return _CITATION.sub("", said), ""


def _parts(content: Mapping[str, Any]) -> Iterator[str]:
    for part in _list(content, "parts"):
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict):
            kind = as_text(part.get("content_type"))
            yield as_text(part.get("text")) or f"*[{kind.partition('_')[0] or 'attachment'}]*"


def _object(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = value.get(name)
    return found if isinstance(found, dict) else {}


def _list(value: Mapping[str, Any], name: str) -> list[Any]:
    found = value.get(name)
    return found if isinstance(found, list) else []

"""LM Studio's conversations: one ``*.conversation.json`` each, with versions of every message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tqchat.store.imports.json_stream import JsonStream
from tqchat.store.imports.transcript import (
    ROLES,
    Piece,
    Transcript,
    as_text,
    chained,
    fenced,
    local_id,
    require,
    unix_time,
)
from tqchat.store.reasoning_tags import split_reasoning

NAME = "LM Studio"
_PART = {"type": None, "text": None, "name": None, "content": None, "fileIdentifier": None}
_STEP = {
    "type": None,
    "content": [_PART],
    "style": {"type": None},
    "genInfo": {"identifier": None, "indexedModelIdentifier": None, "stats": {"stopReason": None}},
}
_MESSAGE = {
    "role": None,
    "content": [_PART],
    "versions": [
        {"role": None, "content": [_PART], "steps": [_STEP], "senderInfo": {"senderName": None}},
    ],
    "currentlySelected": None,
}
CONFIGURATION = {"fields": [{"key": None, "value": None}]}
"""Shape of ``perChatPredictionConfig``."""
_SYSTEM_PROMPT = "llm.prediction.systemPrompt"


def read_pieces(stream: JsonStream) -> list[Piece]:
    """The ``messages`` of a conversation: every version, each below the chosen version of the message before.

    The last piece is the end of the shown branch.

    Raises:
        BadConversation: if they are no list.
    """
    require(stream, "[", "has messages that are no list")
    pieces: list[Piece] = []
    parent: str | None = None
    for number, _ in enumerate(stream.places()):
        message = stream.pick(_MESSAGE)
        if not isinstance(message, dict):
            continue
        found = message.get("versions")
        versions = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else [message]
        added = [_piece(f"{number}.{index}", parent, version) for index, version in enumerate(versions)]
        if not added:
            continue
        chosen = message.get("currentlySelected")
        parent = added[chosen if type(chosen) is int and 0 <= chosen < len(added) else -1].key
        pieces += added
    keyed = chained(pieces)
    last = keyed.pop(parent, None) if parent is not None else None
    return [*keyed.values(), *([last] if last is not None else [])]


def transcript(values: Mapping[str, Any], pieces: list[Piece]) -> Transcript:
    """The conversation with these pieces. Its time of creation is its id, as the file's name is."""
    created = unix_time(values.get("createdAt"))
    title = as_text(values.get("name"))
    return Transcript(
        NAME,
        f"{created:.3f}" if created is not None else local_id(title, pieces[0].key if pieces else ""),
        title,
        pieces,
        NAME,
        created,
        system_prompt=_system_prompt(values),
    )


def _system_prompt(values: Mapping[str, Any]) -> str | None:
    configuration = values.get("perChatPredictionConfig")
    fields = configuration.get("fields") if isinstance(configuration, dict) else None
    for one in fields if isinstance(fields, list) else []:
        if isinstance(one, dict) and one.get("key") == _SYSTEM_PROMPT and as_text(one.get("value")).strip():
            return as_text(one.get("value"))
    return as_text(values.get("systemPrompt")) or None


def _piece(key: str, parent: str | None, version: Mapping[str, Any]) -> Piece:
    role = ROLES.get(as_text(version.get("role")), "assistant")
    answer, reasoning = [_content(version.get("content"))], list[str]()
    model: str | None = None
    status = ""
    steps = version.get("steps")
    for step in steps if isinstance(steps, list) else []:
        if not isinstance(step, dict) or step.get("type") == "debugInfoBlock":
            continue
        style, info = step.get("style"), step.get("genInfo")
        thought = isinstance(style, dict) and style.get("type") == "thinking"
        (reasoning if thought else answer).append(_content(step.get("content")))
        if isinstance(info, dict):
            model = as_text(info.get("identifier")) or as_text(info.get("indexedModelIdentifier")) or model
            stats = info.get("stats")
            status = as_text(stats.get("stopReason")) if isinstance(stats, dict) else status
    sender = version.get("senderInfo")
    if model is None and isinstance(sender, dict):
        model = as_text(sender.get("senderName")) or None
    text = "\n\n".join(part for part in answer if part.strip())
    thoughts = "\n\n".join(part.strip() for part in reasoning if part.strip())
    if role == "assistant" and not thoughts:
        split = split_reasoning(text)
        thoughts, text = split[0] or "", split[1]
    stopped = status == "userStopped"
    return Piece(key, parent, role, text, thoughts, model, status="stopped" if stopped else "complete")


def _content(content: object) -> str:
    if not isinstance(content, list):
        return as_text(content)
    parts: list[str] = []
    for part in content:
        if isinstance(part, str):
            parts.append(part)
        elif isinstance(part, dict):
            kind = as_text(part.get("type"))
            name = " ".join((as_text(part.get("name")) or as_text(part.get("fileIdentifier"))).split())
            if kind == "toolCallResult" and as_text(part.get("content")).strip():
                parts.append(f"\n\n{fenced(as_text(part.get('content')))}\n\n")
            elif kind in ("", "text") or part.get("text"):
                parts.append(as_text(part.get("text")))
            elif kind:
                parts.append(f"\n\n*[{'file' if kind == 'file' else 'tool'}: {name}]*\n\n")
    return "".join(parts)

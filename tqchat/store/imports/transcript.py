"""From the messages of another program to a conversation: a tree with parents first, roles in turns."""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal

from tqchat.kv.scheme import AUTO
from tqchat.store.imports.json_stream import JsonStream
from tqchat.store.records import MAX_TIMESTAMP, Conversation, Message, Role, Status
from tqchat.store.rows import replace_surrogates
from tqchat.text import with_newlines

MAX_CONTENT_CHARS = 16 << 20
_MAX_NAME_CHARS = 4096
_ID_CHARS = 32

SourceRole = Literal["system", "user", "assistant", "tool"]
ROLES: Mapping[object, SourceRole] = {
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
}
"""The names of roles in most programs."""


class BadConversation(Exception):
    """A conversation cannot be read; the text completes the sentence "conversation 3 ..."."""


def require(stream: JsonStream, opening: str, problem: str) -> None:
    """Check that the next value begins with a bracket; pass over it if not.

    Raises:
        BadConversation: with ``problem``, if it does not.
    """
    if stream.peek() != opening:
        stream.skip()
        raise BadConversation(problem)


class NoMessages(BadConversation):
    """Nothing is said in a conversation."""


@dataclass(frozen=True)
class Piece:
    """One message of another program.

    Attributes:
        key: Its id there, unique in the conversation.
        parent: The ``key`` of the message before it.
        role: ``tool`` for what the assistant's tools gave; it becomes part of the reply.
        text: Empty for a message that is left out; its children follow its parent.
        time: Unix time, if known.
    """

    key: str
    parent: str | None
    role: SourceRole
    text: str
    reasoning: str = ""
    model: str | None = None
    time: float | None = None
    status: Status = "complete"


@dataclass(frozen=True)
class Transcript:
    """A conversation of another program.

    Attributes:
        source: The program.
        answers_as: Who wrote the replies whose model is not known; they must not look like a local model's.
        key: The conversation's id there.
        head: The ``key`` of the last message of the shown branch; by default the last piece.
    """

    source: str
    key: str
    title: str
    pieces: Sequence[Piece]
    answers_as: str
    created_at: float | None = None
    updated_at: float | None = None
    head: str | None = None
    system_prompt: str | None = None


@dataclass
class _Group:
    """Pieces that become one message: an assistant's reply may be many, with its tools' results between."""

    first: Piece
    parent: str | None
    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    last: Piece | None = None


def to_conversation(transcript: Transcript, now: float) -> tuple[Conversation, list[Message]]:
    """The conversation and its messages, parents first. The ids follow from those of the source.

    Args:
        now: Unix time for what has none.

    Raises:
        NoMessages: if nothing is said in it.
        BadConversation: if a message is too long.
    """
    pieces = _parents_first(transcript.pieces)
    groups, group_of = _grouped(pieces)
    if not groups:
        raise NoMessages("has no messages")
    created = _time(transcript.created_at, now)
    conversation_id = local_id(transcript.source, transcript.key)
    messages: list[Message] = []
    times: dict[str | None, float] = {None: created}
    for key, group in groups.items():
        text, reasoning = "\n\n".join(group.texts), "\n\n".join(group.reasoning)
        if max(len(text), len(reasoning)) > MAX_CONTENT_CHARS:
            raise BadConversation(f"has a message of more than {MAX_CONTENT_CHARS:,} characters")
        times[key] = _time(group.first.time, times[group.parent])
        role: Role = "assistant" if group.first.role == "tool" else group.first.role
        messages.append(
            Message(
                local_id(transcript.source, transcript.key, key),
                conversation_id,
                None if group.parent is None else local_id(transcript.source, transcript.key, group.parent),
                role,
                with_newlines(replace_surrogates(text)),
                (group.last or group.first).status,
                times[key],
                model=_name(_model_of(group) or transcript.answers_as) if role == "assistant" else None,
                reasoning=with_newlines(replace_surrogates(reasoning)) or None,
            )
        )
    head = group_of.get(transcript.head) if transcript.head is not None else None
    head = head or group_of[transcript.pieces[-1].key] or next(reversed(groups))
    title = replace_surrogates(" ".join(transcript.title.split()))[:_MAX_NAME_CHARS]
    conversation = Conversation(
        conversation_id,
        title,
        None,
        AUTO,
        created,
        _time(transcript.updated_at, max(times.values())),
        local_id(transcript.source, transcript.key, head),
        not title,
        with_newlines(replace_surrogates(transcript.system_prompt)) if transcript.system_prompt else None,
    )
    return conversation, messages


def _model_of(group: _Group) -> str | None:
    return group.first.model or (group.last or group.first).model


def local_id(*source: str) -> str:
    """The id here of something that has these ids at its source: always the same one."""
    return hashlib.sha256("\0".join(source).encode("utf-8", "replace")).hexdigest()[:_ID_CHARS]


def id_from_content(pieces: Sequence[Piece], created_at: object) -> str:
    """An id for a conversation without one, whose messages may have ids that other conversations use, too."""
    first = next((piece for piece in pieces if piece.text.strip()), None)
    return local_id(str(created_at), *((first.key, first.text) if first is not None else ()))


def chained(pieces: Iterable[Piece]) -> dict[str, Piece]:
    """Pieces of a source without ids, with keys that follow from what was said up to each; by their old keys.

    A conversation that has grown since keeps the keys of what it had.

    Args:
        pieces: Parents come before their children.
    """
    found: dict[str, Piece] = {}
    for piece in pieces:
        before = found.get(piece.parent) if piece.parent is not None else None
        parent = before.key if before is not None else None
        key = local_id(parent or "", piece.role, piece.text, piece.reasoning)
        found[piece.key] = replace(piece, key=key, parent=parent)
    return found


def unix_time(value: object) -> float | None:
    """A time in seconds or milliseconds since 1970, or as ISO 8601; ``None`` for anything else."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value[:64].strip()).timestamp()
        except (ValueError, OverflowError, OSError):
            return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e18:
        return None
    seconds = float(value) / (1000 if value > 1e11 else 1)
    return seconds if math.isfinite(seconds) and seconds <= MAX_TIMESTAMP else None


def as_text(value: object) -> str:
    """A text of a file; empty for anything else."""
    return value if isinstance(value, str) else ""


def fenced(text: str, language: str = "") -> str:
    """A text as a code block, whose fence is longer than any in it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language if language.isalnum() else ''}\n{text.strip(chr(10))}\n{fence}"


def attached_file(name: str, text: str) -> str:
    """An attached file, as the app writes it into a message."""
    return f"Attached file {' '.join(name.split()) or 'file'}:\n{fenced(text)}"


def _time(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _name(name: str | None) -> str | None:
    return replace_surrogates(name)[:_MAX_NAME_CHARS] if name else None


def _parents_first(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces by time, each after its parent. With an unknown parent, or in a circle, a branch begins."""
    by_key = {piece.key: piece for piece in pieces}
    children: dict[str | None, list[tuple[float, int, Piece]]] = {}
    for index, piece in enumerate(by_key.values()):
        parent = piece.parent if piece.parent in by_key else None
        children.setdefault(parent, []).append((piece.time or 0.0, index, piece))
    found: dict[str, Piece] = {}
    for start in (None, *by_key):
        # Whatever is not reached from a beginning is in a circle or below one.
        if start is None:
            ready = children.get(None, [])
        elif start not in found:
            ready = [(0.0, 0, by_key[start])]
        else:
            continue
        heapq.heapify(ready)
        while ready:
            _, _, piece = heapq.heappop(ready)
            if piece.key in found:
                continue
            found[piece.key] = replace(piece, parent=piece.parent if piece.parent in found else None)
            for child in children.get(piece.key, []):
                heapq.heappush(ready, child)
    return list(found.values())


def _grouped(pieces: Sequence[Piece]) -> tuple[dict[str, _Group], dict[str, str | None]]:
    """The messages by the key of their first piece, and for each piece the message that it belongs to.

    A piece without text belongs to the message before it.
    """
    kept = {None: None} | {piece.key: piece.key for piece in pieces}
    for piece in pieces:
        if not piece.text.strip() and not piece.reasoning.strip():
            kept[piece.key] = kept[piece.parent]
    follower_count: dict[str | None, int] = {}
    for piece in pieces:
        if kept[piece.key] == piece.key:
            follower_count[kept[piece.parent]] = follower_count.get(kept[piece.parent], 0) + 1
    groups: dict[str, _Group] = {}
    group_of: dict[str, str | None] = {}
    for piece in pieces:
        before = None if kept[piece.parent] is None else group_of[kept[piece.parent]]  # type: ignore[index]
        if kept[piece.key] != piece.key:
            group_of[piece.key] = before
            continue
        joins = (
            before is not None
            and piece.role in ("assistant", "tool")
            and groups[before].first.role in ("assistant", "tool")
            and follower_count[kept[piece.parent]] == 1
        )
        key = before if joins and before is not None else piece.key
        group_of[piece.key] = key
        group = groups.setdefault(key, _Group(piece, before))
        group.last = piece
        if piece.text.strip():
            group.texts.append(piece.text.strip("\n"))
        if piece.reasoning.strip():
            group.reasoning.append(piece.reasoning.strip())
    return groups, group_of

"""Parsing and validation of JSON exports. Files are untrusted: every value is checked."""

from __future__ import annotations

import io
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from typing import IO, Any

from tqchat.errors import TqchatError
from tqchat.kv.scheme import scheme_setting
from tqchat.store import sampling
from tqchat.store.imports.json_stream import BadImport, JsonStream
from tqchat.store.reasoning_tags import split_reasoning
from tqchat.store.records import MAX_TIMESTAMP, MAX_UTC_OFFSET_S, THINKING_CHOICES, Conversation, Message
from tqchat.store.rows import replace_surrogates
from tqchat.text import with_newlines

FORMAT = "tqchat-conversations"
VERSION = 5
"""Version 1 has no draft-model and cache figures of replies, version 2 no reasoning, version 3 no adapters
and no UTC offsets, version 4 no pins."""
REASONING_VERSION = 3
"""Older versions have reasoning in the text of replies."""

_MAX_CONTENT_CHARS = 16 << 20
_MAX_SHOWN_VERSION = 10**9
_NO_EXPORT = "it is not a tqchat export; create one with `tqchat export --format json`"
_MAX_NAME_CHARS = 4096

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)


@dataclass(frozen=True)
class ParsedConversation:
    """A conversation and its messages, parents first."""

    conversation: Conversation
    messages: list[Message]


class _InvalidValue(Exception):
    """A value failed its check; the text completes the sentence "it must be ..."."""


_Check = Callable[[Any], Any]


def _text(longest: int) -> _Check:
    def check(value: Any) -> str:
        if not isinstance(value, str) or len(value) > longest:
            raise _InvalidValue(f"a text of at most {longest:,} characters")
        return with_newlines(replace_surrogates(value))

    return check


def _id(value: Any) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise _InvalidValue("an id of letters, digits, - and _")
    return value


def _one_of(*names: str) -> _Check:
    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise _InvalidValue("one of " + ", ".join(names))
        return value

    return check


def _number(most: float) -> _Check:
    def check(value: Any) -> float:
        # Compare before converting: a very large integer does not fit a float.
        fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most
        if not fits or not math.isfinite(value):
            raise _InvalidValue(f"a number from 0 to {most:g}")
        return float(value)

    return check


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**53:
        raise _InvalidValue("a whole number of at least 0")
    return value


def _utc_offset(value: Any) -> int:
    if type(value) is not int or abs(value) > MAX_UTC_OFFSET_S:
        raise _InvalidValue(f"a whole number of at most {MAX_UTC_OFFSET_S} seconds")
    return value


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _InvalidValue("true or false")
    return value


def _scheme(value: Any) -> str:
    try:
        return scheme_setting(_text(_MAX_NAME_CHARS)(value))
    except TqchatError as error:
        raise _InvalidValue("a cache scheme that this version supports, or auto") from error


def _sampling(value: Any) -> sampling.SamplingChoice:
    if not isinstance(value, dict):
        raise _InvalidValue("an object of sampling settings")
    try:
        return sampling.parse(value)
    except sampling.BadSampling as error:
        raise _InvalidValue(f"valid ({str(error)[:200].rstrip('.')})") from error


def _or_none(check: _Check) -> _Check:
    return lambda value: None if value is None else check(value)


_NAME, _CONTENT, _TIME = _text(_MAX_NAME_CHARS), _text(_MAX_CONTENT_CHARS), _number(MAX_TIMESTAMP)
_MESSAGE: Mapping[str, _Check] = {
    "id": _id,
    "parent_id": _or_none(_id),
    "role": _one_of("system", "user", "assistant"),
    "content": _CONTENT,
    "status": _one_of("complete", "unfinished", "stopped"),
    "created_at": _TIME,
    "tokens": _or_none(_count),
    "tokens_per_second": _or_none(_number(1e300)),
    "first_token_seconds": _or_none(_number(1e300)),
    "scheme": _or_none(_NAME),
    "model": _or_none(_NAME),
    "prompt_tokens": _or_none(_count),
    "drafted": _or_none(_count),
    "accepted": _or_none(_count),
    "cache_bytes": _or_none(_count),
    "fp16_bytes": _or_none(_count),
    "reasoning": _or_none(_CONTENT),
    "reasoning_seconds": _or_none(_number(1e300)),
}
_CONVERSATION: Mapping[str, _Check] = {
    "id": _id,
    "title": _CONTENT,
    "model": _or_none(_NAME),
    "scheme": _scheme,
    "created_at": _TIME,
    "updated_at": _TIME,
    "head_id": _or_none(_id),
    "title_is_automatic": _boolean,
    "system_prompt": _or_none(_CONTENT),
    "sampling": _sampling,
    "draft": _CONTENT,
    "thinking": _or_none(_one_of(*THINKING_CHOICES)),
    "thinking_budget": _or_none(_count),
    "adapter": _or_none(_NAME),
    "utc_offset": _or_none(_utc_offset),
    "pinned_at": _or_none(_TIME),
}


def parse(content: bytes) -> list[ParsedConversation]:
    """Parse and validate a JSON export that is in memory.

    Raises:
        BadImport: naming the first invalid value.
    """
    return list(read_conversations(io.BytesIO(content)))


def read_conversations(file: IO[bytes]) -> Iterator[ParsedConversation]:
    """Parse and validate a JSON export, one conversation at a time. Nested values are never held whole.

    Args:
        file: It must be seekable.

    Raises:
        BadImport: naming the first invalid value.
    """
    try:
        version = _version(JsonStream(file))
        file.seek(0)
        for parsed in _conversations(JsonStream(file)):
            if version < REASONING_VERSION:
                parsed.messages[:] = [_with_reasoning(message) for message in parsed.messages]
            yield parsed
    except UnicodeDecodeError as error:
        raise BadImport("it is not UTF-8 text") from error
    except (ValueError, RecursionError) as error:
        raise BadImport("it is not JSON written by tqchat") from error


def _version(stream: JsonStream) -> int:
    """Version of an export, checked; the other parts of the file are only checked to be there."""
    found: dict[str, Any] = {}
    if stream.peek() != "{":
        raise BadImport(_NO_EXPORT)
    for key in stream.names():
        if key in found or key not in ("format", "version", "conversations"):
            raise BadImport("it is not a tqchat export")
        if key == "conversations":
            if {"format", "version"} <= found.keys():
                found[key] = None
                break
            stream.skip()
        else:
            found[key] = stream.scalar()
            if isinstance(found[key], list | dict):
                raise BadImport("it is not a tqchat export")
        found.setdefault(key)
    version = found.get("version")
    if found.get("format") != FORMAT:
        raise BadImport(_NO_EXPORT)
    if type(version) is int and version > VERSION:
        raise BadImport(
            f"it was written by a newer tqchat (version {version}; this one supports up to {VERSION})"
            if version < _MAX_SHOWN_VERSION
            else "it was written by a newer tqchat"
        )
    if type(version) is not int or version < 1 or "conversations" not in found:
        raise BadImport("it is not a tqchat export")
    return version


def _conversations(stream: JsonStream) -> Iterator[ParsedConversation]:
    seen: set[str] = set()
    for key in stream.names():
        if key in seen or key not in ("format", "version", "conversations"):
            raise BadImport("it is not a tqchat export")
        seen.add(key)
        if key != "conversations":
            stream.skip()
        elif stream.peek() != "[":
            raise BadImport("its conversations must be a list")
        else:
            for number, _ in enumerate(stream.places(), 1):
                yield _conversation(stream, f"conversation {number}")
    stream.expect_end()


def _with_reasoning(message: Message) -> Message:
    """A message of an older version, with the reasoning in its text apart from the answer."""
    if message.role != "assistant":
        return message
    reasoning, answer = split_reasoning(message.content)
    return message if reasoning is None else replace(message, content=answer, reasoning=reasoning)


def _conversation(stream: JsonStream, where: str) -> ParsedConversation:
    messages: list[Message] | None = None
    values: dict[str, Any] = {}
    if stream.peek() != "{":
        raise BadImport(f"{where} must be an object with a list of messages")
    for key in stream.names():
        if key != "messages":
            values[key] = _read_field(stream, key, _CONVERSATION, where)
        elif messages is not None or stream.peek() != "[":
            raise BadImport(f"{where} must be an object with a list of messages")
        else:
            messages = _messages(stream, where)
    if messages is None:
        raise BadImport(f"{where} must be an object with a list of messages")
    conversation = Conversation(**_fields(values, Conversation, _CONVERSATION, where))
    if conversation.head_id is not None and all(one.id != conversation.head_id for one in messages):
        raise BadImport(f"head_id of {where} is not one of its messages")
    for message in messages:
        # They are built before the conversation's id is known, and copies would take as much memory again.
        object.__setattr__(message, "conversation_id", conversation.id)
    return ParsedConversation(conversation, messages)


def _messages(stream: JsonStream, where: str) -> list[Message]:
    messages: list[Message] = []
    seen: dict[str, str] = {}
    for number, _ in enumerate(stream.places(), 1):
        at = f"message {number} of {where}"
        if stream.peek() != "{":
            raise BadImport(f"{at} must be an object")
        values = {key: _read_field(stream, key, _MESSAGE, at) for key in stream.names()}
        found = _fields(values, Message, _MESSAGE, at)
        if found["id"] in seen:
            raise BadImport(f"{at} has the id of an earlier message")
        # Parents first also rules out cycles.
        if (parent := found["parent_id"]) is not None and parent not in seen:
            raise BadImport(f"the parent of {at} does not come before it")
        seen[found["id"]] = found["id"]
        for name in ("parent_id", "scheme", "model", "role", "status"):  # one text instead of thousands
            if (text := found.get(name)) is not None:
                found[name] = seen.get(text) or sys.intern(text)
        messages.append(Message(conversation_id="", **found))
    return messages


def _read_field(stream: JsonStream, key: str, checks: Mapping[str, _Check], where: str) -> Any:
    if key not in checks:
        raise BadImport(f"{where} has an unknown field {_short(key)}")
    if key == "sampling":
        return stream.small()
    value = stream.scalar()
    if isinstance(value, list | dict):
        _check_field(key, value, checks, where)
    return value


def _fields(
    value: dict[str, Any], record: type[Conversation | Message], checks: Mapping[str, _Check], where: str
) -> dict[str, Any]:
    required = {
        one.name for one in fields(record) if one.default is MISSING and one.default_factory is MISSING
    }
    found: dict[str, Any] = {}
    for key in checks:
        if key in value:
            found[key] = _check_field(key, value[key], checks, where)
        elif key in required:
            raise BadImport(f"{where} has no {key}")
    return found


def _check_field(key: str, value: Any, checks: Mapping[str, _Check], where: str) -> Any:
    try:
        return checks[key](value)
    except _InvalidValue as wrong:
        raise BadImport(f"{key} of {where} is {_short(value)}, but must be {wrong}") from None


def _short(value: Any) -> str:
    # The repr of the whole value may be as large as the file.
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = repr(value[:60] if isinstance(value, str) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."

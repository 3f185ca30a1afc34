"""Parsing and validation of JSON exports. Files are untrusted: every value is checked."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

from tqchat.errors import TqchatError
from tqchat.kv.scheme import scheme_setting
from tqchat.store import sampling
from tqchat.store.errors import StoreError
from tqchat.store.reasoning_tags import split_reasoning
from tqchat.store.records import THINKING_CHOICES, Conversation, Message
from tqchat.store.rows import replace_surrogates

FORMAT = "tqchat-conversations"
VERSION = 4
"""Version 1 has no draft-model and cache figures of replies, version 2 no reasoning, version 3 no adapters
and no UTC offsets."""
REASONING_VERSION = 3
"""Older versions have reasoning in the text of replies."""

MAX_FILE_BYTES = 512 << 20
"""Larger files are rejected before parsing."""

_MAX_CONTENT_CHARS = 16 << 20
_MAX_NAME_CHARS = 4096
_MAX_TIMESTAMP = 253_370_764_800.0
"""Unix time of the year 9999, the last that ``datetime`` supports."""

_MAX_UTC_OFFSET_S = 24 * 3600

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)


class BadImport(StoreError):
    """The file is not a valid export; nothing was imported."""

    exit_code = 2

    def __init__(self, reason: str) -> None:
        super().__init__(f"The file cannot be imported: {reason}. Nothing was imported.")


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
        return replace_surrogates(value)

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
    if type(value) is not int or abs(value) > _MAX_UTC_OFFSET_S:
        raise _InvalidValue(f"a whole number of at most {_MAX_UTC_OFFSET_S} seconds")
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


_NAME, _CONTENT, _TIME = _text(_MAX_NAME_CHARS), _text(_MAX_CONTENT_CHARS), _number(_MAX_TIMESTAMP)
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
}


def parse(content: bytes) -> list[ParsedConversation]:
    """Parse and validate a JSON export.

    Raises:
        BadImport: naming the first invalid value.
    """
    if len(content) > MAX_FILE_BYTES:
        raise BadImport(f"it is larger than {MAX_FILE_BYTES >> 20} MiB")
    try:
        whole = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadImport("it is not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise BadImport(f"it is not JSON ({error.msg.lower()} in line {error.lineno})") from error
    except (ValueError, RecursionError) as error:
        raise BadImport("it is not JSON written by tqchat") from error
    if not isinstance(whole, dict) or whole.get("format") != FORMAT:
        raise BadImport("it is not a tqchat export; create one with `tqchat export --format json`")
    version = whole.get("version")
    if type(version) is int and version > VERSION:
        raise BadImport(
            f"it was written by a newer tqchat (version {version}; this one supports up to {VERSION})"
        )
    if (
        type(version) is not int
        or not 1 <= version <= VERSION
        or whole.keys() != {"format", "version", "conversations"}
    ):
        raise BadImport("it is not a tqchat export")
    conversations = whole["conversations"]
    if not isinstance(conversations, list):
        raise BadImport("its conversations must be a list")
    parsed = [_conversation(value, f"conversation {n}") for n, value in enumerate(conversations, 1)]
    if version < REASONING_VERSION:
        for one in parsed:
            one.messages[:] = [_with_reasoning(message) for message in one.messages]
    return parsed


def _with_reasoning(message: Message) -> Message:
    """A message of an older version, with the reasoning in its text apart from the answer."""
    if message.role != "assistant":
        return message
    reasoning, answer = split_reasoning(message.content)
    return message if reasoning is None else replace(message, content=answer, reasoning=reasoning)


def _conversation(value: Any, where: str) -> ParsedConversation:
    if not isinstance(value, dict) or not isinstance(value.get("messages"), list):
        raise BadImport(f"{where} must be an object with a list of messages")
    found = _fields({k: v for k, v in value.items() if k != "messages"}, Conversation, _CONVERSATION, where)
    conversation = Conversation(**found)
    messages: list[Message] = []
    seen: set[str | None] = {None}
    for number, one in enumerate(value["messages"], 1):
        at = f"message {number} of {where}"
        if not isinstance(one, dict):
            raise BadImport(f"{at} must be an object")
        message = Message(conversation_id=conversation.id, **_fields(one, Message, _MESSAGE, at))
        if message.id in seen:
            raise BadImport(f"{at} has the id of an earlier message")
        # Parents first also rules out cycles.
        if message.parent_id not in seen:
            raise BadImport(f"the parent of {at} does not come before it")
        seen.add(message.id)
        messages.append(message)
    if conversation.head_id not in seen:
        raise BadImport(f"head_id of {where} is not one of its messages")
    return ParsedConversation(conversation, messages)


def _fields(
    value: dict[str, Any], record: type[Conversation | Message], checks: Mapping[str, _Check], where: str
) -> dict[str, Any]:
    required = {
        one.name for one in fields(record) if one.default is MISSING and one.default_factory is MISSING
    }
    for key in value:
        if key not in checks:
            raise BadImport(f"{where} has an unknown field {_short(key)}")
    found: dict[str, Any] = {}
    for key, check in checks.items():
        if key in value:
            try:
                found[key] = check(value[key])
            except _InvalidValue as wrong:
                raise BadImport(f"{key} of {where} is {_short(value[key])}, but must be {wrong}") from None
        elif key in required:
            raise BadImport(f"{where} has no {key}")
    return found


def _short(value: Any) -> str:
    # The repr of the whole value may be as large as the file.
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = repr(value[:60] if isinstance(value, str) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."

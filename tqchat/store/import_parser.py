"""Reading a JSON file of conversations that anybody may have written: every value is looked at."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from tqchat.errors import TqchatError
from tqchat.kv.scheme import scheme_setting
from tqchat.store import sampling
from tqchat.store.errors import StoreError
from tqchat.store.records import Conversation, Message
from tqchat.store.rows import storable

FORMAT = "tqchat-conversations"
VERSION = 2
"""Files of version 1 lack a reply's drafted tokens and what its cache took."""

LARGEST_FILE = 512 << 20
"""Bytes. Ten years of talk are less."""

_LONGEST_CONTENT = 16 << 20
_LONGEST_NAME = 4096
_LATEST = 253_370_764_800.0
"""The year 9999: times beyond it cannot be written as dates."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)


class BadImport(StoreError):
    """The file cannot be imported. Nothing of it was."""

    exit_code = 2

    def __init__(self, reason: str) -> None:
        super().__init__(f"The file cannot be imported: {reason}. Nothing was imported.")


@dataclass(frozen=True)
class Parsed:
    """One conversation of a file, and its messages, parents first."""

    conversation: Conversation
    messages: list[Message]


class _Wrong(Exception):
    """A value is not what it must be; the text completes the sentence "it must be ..."."""


_Check = Callable[[Any], Any]


def _text(longest: int) -> _Check:
    def check(value: Any) -> str:
        if not isinstance(value, str) or len(value) > longest:
            raise _Wrong(f"a text of at most {longest:,} characters")
        return storable(value)

    return check


def _id(value: Any) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise _Wrong("an id of letters, digits, - and _")
    return value


def _one_of(*names: str) -> _Check:
    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise _Wrong("one of " + ", ".join(names))
        return value

    return check


def _number(most: float) -> _Check:
    def check(value: Any) -> float:
        # A whole number may be too large to be a float at all; compared, it is only too large.
        fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most
        if not fits or not math.isfinite(value):
            raise _Wrong(f"a number from 0 to {most:g}")
        return float(value)

    return check


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**53:
        raise _Wrong("a whole number that is not negative")
    return value


def _yes_or_no(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Wrong("true or false")
    return value


def _scheme(value: Any) -> str:
    try:
        return scheme_setting(_text(_LONGEST_NAME)(value))
    except TqchatError as error:
        raise _Wrong("a cache scheme that this version knows, or auto") from error


def _sampling(value: Any) -> sampling.SamplingChoice:
    if not isinstance(value, dict):
        raise _Wrong("an object of sampling settings")
    try:
        return sampling.parse(value)
    except sampling.BadSampling as error:
        raise _Wrong(f"right ({str(error)[:200].rstrip('.')})") from error


def _or_none(check: _Check) -> _Check:
    return lambda value: None if value is None else check(value)


_NAME, _CONTENT, _TIME = _text(_LONGEST_NAME), _text(_LONGEST_CONTENT), _number(_LATEST)
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
}
_CONVERSATION: Mapping[str, _Check] = {
    "id": _id,
    "title": _CONTENT,
    "model": _or_none(_NAME),
    "scheme": _scheme,
    "created_at": _TIME,
    "updated_at": _TIME,
    "head_id": _or_none(_id),
    "title_is_automatic": _yes_or_no,
    "system_prompt": _or_none(_CONTENT),
    "sampling": _sampling,
    "draft": _CONTENT,
}


def parse(content: bytes) -> list[Parsed]:
    """The conversations of a JSON file.

    Raises:
        BadImport: naming what is not as it must be.
    """
    if len(content) > LARGEST_FILE:
        raise BadImport(f"it is larger than {LARGEST_FILE >> 20} MiB")
    try:
        whole = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadImport("it is not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise BadImport(f"it is not JSON ({error.msg.lower()} in line {error.lineno})") from error
    except (ValueError, RecursionError) as error:
        raise BadImport("it is not JSON that tqchat wrote") from error
    if not isinstance(whole, dict) or whole.get("format") != FORMAT:
        raise BadImport("it is not an export of tqchat; `tqchat export --format json` makes one")
    version = whole.get("version")
    if type(version) is int and version > VERSION:
        raise BadImport(f"a newer tqchat wrote it (version {version}, this one knows {VERSION})")
    if (
        type(version) is not int
        or not 1 <= version <= VERSION
        or whole.keys() != {"format", "version", "conversations"}
    ):
        raise BadImport("it is not an export of tqchat")
    conversations = whole["conversations"]
    if not isinstance(conversations, list):
        raise BadImport("its conversations must be a list")
    return [_conversation(value, f"conversation {n}") for n, value in enumerate(conversations, 1)]


def _conversation(value: Any, where: str) -> Parsed:
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
            raise BadImport(f"{at} has the id of an earlier one")
        # So there is no circle either.
        if message.parent_id not in seen:
            raise BadImport(f"the parent of {at} does not come before it")
        seen.add(message.id)
        messages.append(message)
    if conversation.head_id not in seen:
        raise BadImport(f"{where} ends in a message that it does not have")
    return Parsed(conversation, messages)


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
            except _Wrong as wrong:
                raise BadImport(f"{key} of {where} is {_short(value[key])}, but must be {wrong}") from None
        elif key in required:
            raise BadImport(f"{where} lacks {key}")
    return found


def _short(value: Any) -> str:
    # Not the repr of all of it: it may be as large as the file.
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = repr(value[:60] if isinstance(value, str) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."

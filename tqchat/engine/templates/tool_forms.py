"""Tool definitions, calls and results in the forms that chat templates take."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import product
from typing import Any

from tqchat.engine.commands import ChatMessage, ToolCall
from tqchat.engine.templates.control_tokens import Disguise
from tqchat.engine.templates.errors import PromptRejected

MAX_DEPTH = 64
"""Levels of a tool definition, or of the arguments of a call."""

_SHORT_ID = re.compile("[A-Za-z0-9]{9}")


@dataclass(frozen=True)
class CallForm:
    """The form in which a template takes calls.

    Attributes:
        as_text: Arguments as JSON text, not as an object.
        short_ids: Ids of nine letters and digits, which Mistral's templates demand.
        no_content: The content of a reply that only calls is null, not an empty text.
    """

    as_text: bool = False
    short_ids: bool = False
    no_content: bool = False


CALL_FORMS = tuple(CallForm(*flags) for flags in sorted(product((False, True), repeat=3), key=sum))
"""Forms to try, the most common first."""


class ToolForms:
    """Tools of one prompt for a template.

    Attributes:
        names: The functions' names.
        definitions: The definitions, with control tokens disguised.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]], form: CallForm, disguise: Disguise) -> None:
        self._form, self._disguise = form, disguise
        self._tools = tools
        self.names = [tool_name(one) for one in tools]
        self.definitions: list[Any] = [disguise.data(one) for one in tools]

    def fields(self, message: ChatMessage) -> dict[str, Any]:
        """Fields of a message besides role, content and reasoning."""
        found: dict[str, Any] = {}
        if message.tool_calls:
            found["tool_calls"] = [self._call(one) for one in message.tool_calls]
            if self._form.no_content and not message.content:
                found["content"] = None
        if message.role == "tool":
            found["tool_call_id"] = self._id(message.tool_call_id)
            found["name"] = self._disguise.content(message.name)
        return found

    def text(self) -> str:
        """The definitions as JSON."""
        return json.dumps(list(self._tools), ensure_ascii=False) if self._tools else ""

    def is_written_as_code(self, messages: Sequence[ChatMessage], text: str) -> bool:
        """Whether a template that expects text wrote the arguments of a call as a Python object."""
        if self._form.as_text:
            return False
        found = (self._arguments(call) for one in messages for call in one.tool_calls)
        return any(arguments and repr(arguments) in text for arguments in found)

    def _call(self, call: ToolCall) -> dict[str, Any]:
        function = {"name": self._disguise.content(call.name), "arguments": self._arguments(call)}
        return {"id": self._id(call.id), "type": "function", "function": function}

    def _arguments(self, call: ToolCall) -> Any:
        if self._form.as_text:
            return self._disguise.content(call.arguments)
        return self._disguise.data(json.loads(call.arguments))

    def _id(self, text: str) -> str:
        if not self._form.short_ids:
            return self._disguise.content(text)
        return self._disguise.word(
            text if _SHORT_ID.fullmatch(text) else sha256(text.encode()).hexdigest()[:9]
        )


def tool_name(tool: Mapping[str, Any]) -> str:
    """The name of a function.

    Raises:
        PromptRejected: if the definition has none.
    """
    function = tool.get("function") if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name.strip():
        raise PromptRejected("A tool needs a function with a name.")
    return name


def valid_tools(tools: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """The definitions without lone surrogates.

    Raises:
        PromptRejected: if one has no name or too many levels.
    """
    found = tuple(_clean(one, "A tool definition") for one in tools)
    for one in found:
        tool_name(one)
    return found


def valid_calls(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The messages with arguments that are JSON objects, and with the names of the functions of results.

    Raises:
        PromptRejected: if the arguments of a call are something else.
    """
    found = []
    names: dict[str, str] = {}
    for one in messages:
        calls = tuple(_valid_call(call) for call in one.tool_calls)
        names |= {call.id: call.name for call in calls}
        if one.role == "tool":
            identity = without_surrogates(one.tool_call_id)
            name = without_surrogates(one.name) or names.get(identity, "")
            one = replace(one, tool_call_id=identity, name=name)
        found.append(replace(one, tool_calls=calls))
    return found


def texts_of(value: Any) -> Iterator[str]:
    """All texts in a definition."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from texts_of(key)
            yield from texts_of(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from texts_of(one)


def without_surrogates(text: str) -> str:
    """Text without lone surrogates, which tokenizers refuse."""
    return _SURROGATES.sub("\ufffd", text)


_SURROGATES = re.compile("[\ud800-\udfff]")


def _valid_call(call: ToolCall) -> ToolCall:
    kind = f"The arguments of the call of {call.name!r}"
    try:
        arguments = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise PromptRejected(f"{kind} are not a JSON object.")
    clean = _clean(arguments, kind)
    text = call.arguments if clean == arguments and call.arguments else json.dumps(clean, ensure_ascii=False)
    return ToolCall(without_surrogates(call.id), without_surrogates(call.name), text)


def _clean(value: Any, kind: str, depth: int = 0) -> Any:
    if depth > MAX_DEPTH:
        raise PromptRejected(f"{kind} has more than {MAX_DEPTH} levels.")
    if isinstance(value, str):
        return without_surrogates(value)
    if isinstance(value, Mapping):
        return {without_surrogates(str(key)): _clean(one, kind, depth + 1) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(one, kind, depth + 1) for one in value]
    return value

"""Tools for models whose chat template has no place for them: all of it as ordinary text.

The definitions are part of the system prompt, with instructions; a call is a JSON object between ``CALL`` and
``CALL_END`` at the end of a reply, which is what many models are trained on; results are a user message.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tqchat.engine.commands import ChatMessage, ToolCall

CALL, CALL_END = "<tool_call>", "</tool_call>"
_RESULT, _RESULT_END = "<tool_response>", "</tool_response>"
_FORM = f"""\
its name and arguments as a JSON object between marks:
{CALL}
{{"name": "function name", "arguments": {{"argument name": "value"}}}}
{CALL_END}
Results are given to you between {_RESULT} and {_RESULT_END}."""


def as_plain_chat(messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]]) -> list[ChatMessage]:
    """A chat without tools that says the same."""
    found: list[ChatMessage] = []
    in_results = False
    for one in messages:
        if one.role == "tool":
            text = f"{_RESULT}\n{one.content}\n{_RESULT_END}"
            if in_results:
                found[-1] = replace(found[-1], content=f"{found[-1].content}\n{text}")
            else:
                found.append(ChatMessage("user", text))
        else:
            found.append(one)
        in_results = one.role == "tool"
    found = with_written_calls(found, lambda calls: json_objects(CALL, CALL_END, calls))
    return with_definitions(found, tools, _FORM) if tools else found


def with_written_calls(
    messages: Sequence[ChatMessage], written: Callable[[Sequence[ToolCall]], str]
) -> list[ChatMessage]:
    """The messages with calls at the end of their text."""
    found = []
    for one in messages:
        if one.tool_calls:
            text = written(one.tool_calls)
            content = f"{one.content}{text}" if one.content else text.lstrip("\n")
            one = replace(one, content=content, tool_calls=())
        found.append(one)
    return found


def json_objects(start: str, end: str, calls: Sequence[ToolCall]) -> str:
    """Calls as JSON objects, each between marks, and on lines of their own."""
    return "".join(f"\n{start}\n{json_object(call)}\n{end}" for call in calls)


def json_object(call: ToolCall) -> str:
    """A call as a JSON object."""
    return f'{{"name": {json.dumps(call.name, ensure_ascii=False)}, "arguments": {call.arguments}}}'


def with_definitions(
    messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]], form: str
) -> list[ChatMessage]:
    """The messages with definitions in the system prompt.

    Args:
        form: How a call is written: the end of a sentence, and an example.
    """
    definitions = "\n".join(json.dumps(one, ensure_ascii=False) for one in tools)
    text = (
        "You can call functions. These are their definitions, one a line:\n"
        f"<tools>\n{definitions}\n</tools>\n"
        f"To call a function, end your reply with {form}"
    )
    if messages and messages[0].role == "system":
        first = messages[0]
        return [replace(first, content=f"{first.content.rstrip()}\n\n{text}".lstrip()), *messages[1:]]
    return [ChatMessage("system", text), *messages]

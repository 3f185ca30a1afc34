"""Tools for models whose chat template has no place for them: all of it as ordinary text.

The definitions are part of the system prompt, with instructions; a call is a JSON object between ``CALL`` and
``CALL_END`` at the end of a reply, which is what many models are trained on; results are a user message.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tqchat.engine.commands import ChatMessage

CALL, CALL_END = "<tool_call>", "</tool_call>"
_RESULT, _RESULT_END = "<tool_response>", "</tool_response>"
_INSTRUCTIONS = f"""\
You can call functions. These are their definitions, one a line:
<tools>
{{definitions}}
</tools>
To call a function, end your reply with its name and arguments as a JSON object between marks:
{CALL}
{{{{"name": "function name", "arguments": {{{{"argument name": "value"}}}}}}}}
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
        elif one.tool_calls:
            text = "\n".join([*filter(None, [one.content]), *map(_call, one.tool_calls)])
            found.append(replace(one, content=text, tool_calls=()))
        else:
            found.append(one)
        in_results = one.role == "tool"
    return _with_definitions(found, tools) if tools else found


def _call(call: Any) -> str:
    name = json.dumps(call.name, ensure_ascii=False)
    return f'{CALL}\n{{"name": {name}, "arguments": {call.arguments}}}\n{CALL_END}'


def _with_definitions(messages: list[ChatMessage], tools: Sequence[Mapping[str, Any]]) -> list[ChatMessage]:
    definitions = "\n".join(json.dumps(one, ensure_ascii=False) for one in tools)
    text = _INSTRUCTIONS.format(definitions=definitions)
    if messages and messages[0].role == "system":
        first = messages[0]
        return [replace(first, content=f"{first.content.rstrip()}\n\n{text}".lstrip()), *messages[1:]]
    return [ChatMessage("system", text), *messages]

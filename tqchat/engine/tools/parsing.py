"""Parses calls. Their text is a model's: whatever a parser does with it, it is text in the worst case."""

from __future__ import annotations

import json
import re
import secrets
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from tqchat.engine.commands import ToolCall
from tqchat.engine.templates.call_formats import Parser

LONGEST_NAME = 256
MAX_STEPS = 4_000_000
"""Beginnings of calls and arguments times characters; legitimate calls of 64,000 characters have up to 60."""

_BEGINNINGS = re.compile(
    r"call:|<function|<param|<invoke|<(?:longcat_)?arg_key|<\|open\|>|<atem:|<\|tool_call_begin|\[ARGS\]"
)
"""Strings from which mlx-lm's parsers search, each time to the end of the text if nothing matches."""


def parsed_calls(parser: Parser, text: str, tools: Sequence[Mapping[str, Any]] = ()) -> list[ToolCall]:
    """The calls in a text; none if it is not wholly made of calls.

    Args:
        tools: Definitions, by which some parsers tell the types of arguments.
    """
    if len(_BEGINNINGS.findall(text)) * len(text) > MAX_STEPS:
        return []
    try:
        with warnings.catch_warnings(action="ignore"):  # Python 3.12 prints one about "\d"
            found = parser(text, list(tools) or None)
        calls = found if isinstance(found, list) else [found]
        return [_call(one, tools) for one in calls]
    except Exception:  # parsers of many formats, on whatever a model writes: it is text then
        return []


def _call(found: Any, tools: Sequence[Mapping[str, Any]]) -> ToolCall:
    if isinstance(found.get("function"), dict):
        found = {**found, **found["function"]}
    name, arguments = found["name"], found.get("arguments", found.get("parameters"))
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if arguments is None:
        arguments = {}
    if not isinstance(name, str) or not name.strip() or not isinstance(arguments, dict):
        raise ValueError("not a call")
    name = name.strip()
    if len(name) > LONGEST_NAME or any(char.isspace() or not char.isprintable() for char in name):
        raise ValueError("not a name")
    if arguments.keys() == {"raw"} and not _knows_raw(name, tools):
        raise ValueError("not parsed")  # how mlx-lm's parser of GLM returns what it cannot parse
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False, default=str)
    text.encode()  # lone surrogates are refused
    identity = found.get("id")
    if not isinstance(identity, str) or not identity.isprintable() or not 0 < len(identity) <= LONGEST_NAME:
        identity = f"call_{secrets.token_hex(12)}"
    return ToolCall(identity, name, text)


def _knows_raw(name: str, tools: Sequence[Mapping[str, Any]]) -> bool:
    for tool in tools:
        function = tool.get("function", {})
        if function.get("name") == name:
            return "raw" in ((function.get("parameters") or {}).get("properties") or {})
    return False

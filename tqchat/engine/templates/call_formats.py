"""Formats of tool calls in replies: marks and parsers, those of mlx-lm where it has them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tqchat.engine.templates.finding import ChatTemplate
from tqchat.engine.templates.plain_tools import CALL, CALL_END

Parser = Callable[[str, Any], Any]
"""Takes the text between the marks and the definitions; returns a call or a list of calls."""

_JSON_MARKS = (("<|tool_call|>", "<|/tool_call|>"), (CALL, CALL_END))
_DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
_FENCED = re.compile(r"([^\n]++)\n```json\n(.*)\n```", re.DOTALL)
_CALL_ID = re.compile(r"\[CALL_ID\]([\w-]++)(?=\[ARGS\])")
_BETWEEN = re.compile(r"[\s;,]*+")


@dataclass(frozen=True)
class ToolFormat:
    """Format of one model's tool calls.

    Attributes:
        start, end: Marks around a call; without an end mark, it ends with the reply.
        parser: Parses what is between them.
        is_whole_reply: A reply that begins with a JSON object is a call too, without marks (Llama 3).
    """

    start: str
    end: str
    parser: Parser
    is_whole_reply: bool = False


PLAIN_FORMAT: ToolFormat
"""The form that ``plain_tools`` asks for."""


def native_format(tokenizer: Any, template: ChatTemplate) -> ToolFormat | None:
    """The format of a model's calls, from mlx-lm or from the template; ``None`` if it is unknown.

    Args:
        tokenizer: mlx-lm's ``TokenizerWrapper``.
    """
    if getattr(tokenizer, "has_tool_calling", False):
        start, parser = tokenizer.tool_call_start, tokenizer.tool_parser
        if start == "[TOOL_CALLS]":
            parser = _with_call_ids(parser)
        return ToolFormat(start, tokenizer.tool_call_end or "", parser)
    written = template.literal_text
    if "<|call|>" in written and "functions." in written:
        return ToolFormat("<|channel|>commentary to=functions.", "<|call|>", _harmony)
    for start, end in _JSON_MARKS:
        if start in written:
            return ToolFormat(start, end if end in written else "", _json)
    if _DEEPSEEK[0] in written:
        return ToolFormat(*_DEEPSEEK, _deepseek)
    if "ipython" in template.source:
        return ToolFormat("<|python_tag|>", "", _several_objects, is_whole_reply=True)
    return None


def _with_call_ids(parser: Parser) -> Parser:
    """mlx-lm's parser for Mistral, which takes an id between name and arguments for the name."""

    def parse(text: str, tools: Any) -> Any:
        found = parser(_CALL_ID.sub("", text), tools)
        calls = found if isinstance(found, list) else [found]
        ids = _CALL_ID.findall(text)
        if len(ids) != len(calls):
            return calls
        return [{**call, "id": one} for call, one in zip(calls, ids, strict=True)]

    return parse


def _json(text: str, _: Any) -> Any:
    return json.loads(text)


def _several_objects(text: str, _: Any) -> Any:
    """JSON objects, with white space, commas or semicolons between them (Llama 3)."""
    decoder, found, at = json.JSONDecoder(), [], 0
    text = text.strip()
    while at < len(text):
        call, at = decoder.raw_decode(text, at)
        found.append(call)
        at += len(_BETWEEN.match(text, at)[0])  # type: ignore[index]
    return found


def _harmony(text: str, _: Any) -> Any:
    """The rest of a header and a JSON object (gpt-oss)."""
    header, _, arguments = text.partition("<|message|>")
    return {"name": header.split()[0], "arguments": json.loads(arguments)}


def _deepseek(text: str, _: Any) -> Any:
    """DeepSeek V3 (arguments in a fence) and V3.1."""
    found = []
    for one in text.split("<｜tool▁call▁begin｜>")[1:]:
        name, _, arguments = one.rpartition("<｜tool▁call▁end｜>")[0].partition("<｜tool▁sep｜>")
        if (fenced := _FENCED.fullmatch(arguments)) is not None:
            name, arguments = fenced[1], fenced[2]
        found.append({"name": name, "arguments": json.loads(arguments)})
    return found


PLAIN_FORMAT = ToolFormat(CALL, CALL_END, _json)

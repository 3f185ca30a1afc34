"""Formats of tool calls in replies: marks and parsers, those of mlx-lm where it has them."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tqchat.engine.commands import ToolCall
from tqchat.engine.templates.finding import ChatTemplate
from tqchat.engine.templates.plain_tools import CALL, CALL_END, json_object, json_objects

Parser = Callable[[str, Any], Any]
"""Takes the text between the marks and the definitions; returns a call or a list of calls."""

Writer = Callable[[str, str, Sequence[ToolCall]], str]
"""Takes the two marks and calls; returns the calls' text with the marks."""

_JSON_MARKS = (
    ("<|tool_call|>", "<|/tool_call|>"),
    ("<|START_ACTION|>", "<|END_ACTION|>"),
    ("<TOOLCALL>", "</TOOLCALL>"),
    ("<tool_calls>", "</tool_calls>"),
    (CALL, CALL_END),
)
_DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
_FENCED = re.compile(r"([^\n]++)\n```json\n(.*)\n```", re.DOTALL)
_CALL_ID = re.compile(r"\[CALL_ID\]([\w-]++)(?=\[ARGS\])")
_NEXT_CALL = re.compile(r"\),\s*+[\w.]++\(")
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
        if start == "<|tool_call_start|>":
            parser = _python_or_json(parser)
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


def writer_for(format: ToolFormat, call: ToolCall) -> Writer | None:
    """The form whose text the format's parser reads as the same call; ``None`` if there is none."""
    forms = (_python_list, json_objects, _json_list) if format.end else (_python_list, _json_list)
    return next((one for one in forms if is_read(format, one("", "", (call,)), call)), None)


def is_read(format: ToolFormat, text: str, call: ToolCall) -> bool:
    """Whether the format's parser reads a text as a call."""
    try:
        found = format.parser(text, None)
        (one,) = found if isinstance(found, list) else [found]
        return bool((one["name"], one["arguments"]) == (call.name, json.loads(call.arguments)))
    except Exception:  # parsers of many formats, on a text that may be none of theirs
        return False


def _json_list(start: str, end: str, calls: Sequence[ToolCall]) -> str:
    return f"{start}[{', '.join(map(json_object, calls))}]{end}"


def _python_list(start: str, end: str, calls: Sequence[ToolCall]) -> str:
    found = []
    for call in calls:
        arguments = (f"{key}={_python(value)}" for key, value in json.loads(call.arguments).items())
        found.append(f"{call.name}({', '.join(arguments)})")
    return f"{start}[{', '.join(found)}]{end}"


def _python(value: Any) -> str:
    """A JSON value as Python, with texts in double quotes."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_python(key)}: {_python(one)}' for key, one in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_python, value))}]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _python_or_json(parser: Parser) -> Parser:
    """mlx-lm's parser of calls as Python, without its guesses that leave out calls or arguments.

    LFM2 writes JSON on request.
    """

    def parse(text: str, tools: Any) -> Any:
        with suppress(json.JSONDecodeError):
            return _json(text, tools)
        found = parser(text, tools)
        try:
            written: Any = ast.parse(text.strip(), mode="eval").body
        except SyntaxError:
            if _NEXT_CALL.search(text):
                raise
            return found
        count = len(found) if isinstance(found, list) else 1
        unnamed = [one.args or any(word.arg is None for word in one.keywords) for one in written.elts]
        if len(unnamed) != count or any(unnamed):
            raise ValueError("more than was found")
        return found

    return parse


def _json(text: str, _: Any) -> Any:
    """A JSON object or a list of them; Cohere's have other keys, and numbers for ids, which begin anew."""
    found = json.loads(text)
    for one in found if isinstance(found, list) else [found]:
        if isinstance(one, dict) and "tool_name" in one:
            one["name"] = one.pop("tool_name")
            one.pop("tool_call_id", None)
    return found


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

"""Text and calls of replies, however they arrive and whatever they contain."""

from __future__ import annotations

import importlib
import json
import random
import warnings
from typing import Any

import pytest

from tests.engine.tools.families import FAMILIES, WEATHER
from tqchat.engine.commands import ToolCall
from tqchat.engine.templates.call_formats import PLAIN_FORMAT, ToolFormat
from tqchat.engine.tools import ToolCallSplitter, parsed_calls
from tqchat.engine.tools.replies import call_format
from tqchat.engine.tools.splitter import MAX_CALL

GOOD = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
PARSERS = (
    *(
        "function_gemma",
        "gemma4",
        "glm47",
        "json_tools",
        "kimi_k2",
        "kimi_k3",
        "laguna",
        "longcat",
        "minicpm5",
    ),
    *("minimax_m2", "mistral", "muse_spark", "pythonic", "qwen3_coder"),
)


def split(
    text: str, format: ToolFormat = PLAIN_FORMAT, sizes: Any = (), cut: bool = False
) -> tuple[str, list[Any]]:
    """Text (calls as ``|``) and calls, of a reply that arrives in chunks."""
    splitter = ToolCallSplitter(format, [WEATHER])
    pieces, at = [], 0
    for size in [*sizes, len(text)]:
        pieces += splitter.feed(text[at : at + size])
        at += size
    pieces += splitter.finish(cut)
    calls = [(one.name, one.arguments) for one in pieces if isinstance(one, ToolCall)]
    return "".join(one if isinstance(one, str) else "|" for one in pieces), calls


@pytest.mark.parametrize(
    ("said", "text", "calls"),
    [
        ("Hello", "Hello", 0),
        ("  ", "  ", 0),
        ("1 < 2 <tool", "1 < 2 <tool", 0),
        (f"Look.\n{GOOD}", "Look.|", 1),
        (f"{GOOD}\n{GOOD}\n", "||", 2),
        (f"{GOOD}\n\nDone.", "|\n\nDone.", 1),
        (f"Write <tool_call> before it: {GOOD}", "Write <tool_call> before it:|", 1),
        (f"<tool_call>nonsense</tool_call>\n{GOOD}", "<tool_call>nonsense</tool_call>|", 1),
        ("a <tool_call>nonsense</tool_call> b", "a <tool_call>nonsense</tool_call> b", 0),
        ('a\n<tool_call>{"name": "f"', 'a\n<tool_call>{"name": "f"', 0),
        ('<tool_call>{"name": "f", "arguments": {"a": "</tool_call>\\""}}</tool_call>', "|", 1),
        ('<tool_call>{"name": "f", "arguments": {"a": "}</tool_call> b', None, 0),
        ('<tool_call>{"name": "f"}</tool_call>', "|", 1),
        ('<tool_call>{"name": "f", "arguments": "{}"}</tool_call>', "|", 1),
        ('<tool_call>{"name": 3, "arguments": {}}</tool_call>', None, 0),
        ('<tool_call>{"name": "f", "arguments": [1]}</tool_call>', None, 0),
        ('<tool_call>{"name": "a b", "arguments": {}}</tool_call>', None, 0),
        ('<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>', None, 0),
        ('<tool_call>{"name": "f", "arguments": {"a": "\\ud800"}}</tool_call>', "|", 1),
    ],
)
def test_the_same_comes_of_every_chunking(said: str, text: str | None, calls: int) -> None:
    found = split(said)
    if calls == 1 and "ud800" in said:
        text, calls = said, 0
    assert (found[0], len(found[1])) == (said if text is None else text, calls)
    for at in range(len(said)):
        assert split(said, sizes=(at,)) == found
    assert split(said, sizes=[1] * len(said)) == found


def test_random_mixtures_lose_nothing() -> None:
    draw = random.Random(1)
    parts = [
        "<tool_call>",
        "</tool_call>",
        GOOD,
        "{",
        '"',
        "\\",
        " ",
        "\n",
        "x",
        '{"name": "f"}',
        "<tool_",
        "</",
    ]
    for _ in range(300):
        said = "".join(draw.choices(parts, k=draw.randrange(1, 12)))
        found = split(said)
        sizes = [draw.randrange(1, 9) for _ in range(len(said))]
        assert split(said, sizes=sizes) == found
        if not found[1]:
            assert found[0] == said


@pytest.mark.parametrize("family", FAMILIES, ids=lambda one: one.name)
def test_every_format_is_split_alike_at_every_position(family: Any) -> None:
    format = call_format(family.tokenizer)
    said = family.written
    found = split(said, format)
    assert json.loads(found[1][0][1]) == {"city": "Paris", "days": 2} and len(found[1]) == 1
    for at in range(0, len(said), 3):
        assert split(said, format, sizes=(at,)) == found
        text, calls = split(said[:at], format, cut=True)
        assert calls or text == said[:at]


@pytest.mark.parametrize("name", PARSERS)
def test_what_a_parser_cannot_take_is_text(name: str) -> None:
    module = importlib.import_module(f"mlx_lm.tool_parsers.{name}")
    format = ToolFormat(module.tool_call_start, module.tool_call_end, module.parse_tool_call)
    draw = random.Random(name)
    parts = [
        "{",
        "}",
        "[",
        "]",
        '"',
        ":",
        ",",
        "<",
        ">",
        "call:",
        "a",
        "1",
        "=",
        "(",
        ")",
        "\\",
        "\n",
        "\x00",
        "😀",
    ]
    parts += [
        "<|open|>",
        "<function=",
        "<arg_key>",
        '<invoke name="',
        "</invoke>",
        "[ARGS]",
        "-",
        "**",
        "__import__",
    ]
    for _ in range(150):
        body = "".join(draw.choices(parts, k=draw.randrange(30)))
        said = f"x{format.start}{body}{format.end}y"
        text, calls = split(said, format)
        assert calls or text == said
        assert all(isinstance(json.loads(arguments), dict) for _, arguments in calls)


@pytest.mark.parametrize("body", ["[" * 20_000, "-" * 20_000, "(" * 20_000, '{"a":' * 10_000, "9" * 20_000])
@pytest.mark.parametrize("name", ["pythonic", "glm47", "json_tools", "mistral", "gemma4"])
def test_deeply_nested_calls_are_text(name: str, body: str) -> None:
    module = importlib.import_module(f"mlx_lm.tool_parsers.{name}")
    prefix = {
        "pythonic": "[f(a=",
        "glm47": "f<arg_key>a</arg_key><arg_value>",
        "mistral": "f[ARGS]",
        "gemma4": "call:f{a:",
    }
    suffix = {"pythonic": ")]", "glm47": "</arg_value>", "gemma4": "}"}
    text = prefix.get(name, "") + body + suffix.get(name, "")
    for call in parsed_calls(module.parse_tool_call, text):
        assert len(call.arguments) < 2 * len(text)


@pytest.mark.parametrize(
    ("body", "calls"),
    [
        ("[f()]", [("f", "{}")]),
        ("[f(city=New York)]", [("f", '{"city": "New York"}')]),
        ('[f(a="x), g(1"), g(b=True)]', [("f", '{"a": "x), g(1"}'), ("g", '{"b": true}')]),
        ('[{"name": "f", "arguments": {"a": null}}]', [("f", '{"a": null}')]),
        ('[{"name": "f"}, 1]', []),
        ('[f("Paris")]', []),
        ("[f(), g(Paris)]", []),
        ("[f(a=1), g(b=Paris)]", []),
        ("[f(a=New York), g(b=1)]", []),
        ("[f(a=1), 2]", []),
        ('[f(a="x]', []),
        ('[f(a="x")', []),
        ("f(a=1)", []),
        ("[f(a=g())]", [("f", '{"a": "g()"}')]),
        ("[f(**{})]", []),
        ("[]", []),
        ("", []),
    ],
)
def test_calls_as_python_are_read_whole_or_not_at_all(body: str, calls: list[Any]) -> None:
    format = call_format(next(one for one in FAMILIES if one.name.startswith("LFM2 and")).tokenizer)
    written = f"{format.start}{body}{format.end}"
    text, found = split(written, format, sizes=[1] * len(written))
    assert found == calls
    assert found or text == written


def test_a_call_as_python_with_an_unknown_escape_is_read_without_a_warning() -> None:
    format = call_format(next(one for one in FAMILIES if one.name.startswith("LFM2 and")).tokenizer)
    with warnings.catch_warnings(record=True, action="always") as warned:
        (call,) = parsed_calls(format.parser, r'[f(pattern="\d+")]')
    assert not warned and json.loads(call.arguments) == {"pattern": r"\d+"}


def test_an_endless_call_is_given_back_before_the_end() -> None:
    splitter = ToolCallSplitter(PLAIN_FORMAT)
    given = "".join(str(one) for _ in range(20) for one in splitter.feed("<tool_call>" + "x" * 10_000))
    assert len(given) > 3 * MAX_CALL // 2


def test_a_json_reply_of_llama_that_is_no_call_is_text() -> None:
    format = call_format(next(one for one in FAMILIES if one.name.startswith("Llama")).tokenizer)
    for said in (
        '{"city": "Paris", "days": [1, 2, 3], "comment": "this is what you asked for"}',
        "{",
        "{x} is a set",
    ):
        assert split(said, format) == (said, [])
    one = '{"name": "f", "parameters": {}}'
    assert split(f"<|python_tag|>{one}; {one}", format)[1] == [("f", "{}")] * 2

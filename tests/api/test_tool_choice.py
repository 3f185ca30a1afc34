"""Requests that say whether functions have to be called."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.client import CHAT, Client
from tests.api.conftest import serving
from tests.engine.scripted_model import scripted
from tqchat.engine.commands import ChatMessage
from tqchat.engine.templates.plain_tools import as_plain_chat


def tool(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
    return {"type": "function", "function": {"name": name, "description": "", "parameters": parameters}}


TOOLS = [tool("look"), tool("find")]
QUESTION = "How is Paris?"
CALLS = [
    f'<tool_call>\n{{"name": "{name}", "arguments": {{"place": "{place}"}}}}\n</tool_call>'
    for name, place in (("look", "Paris"), ("find", "Rome"))
]
NAMED = {"type": "function", "function": {"name": "look"}}


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A server whose model answers the question with two calls and a word, or with "Fine." without tools."""
    folder = tmp_path_factory.mktemp("caller")
    asked = [ChatMessage("user", QUESTION)]
    scripted(folder, [(asked, "Fine."), (as_plain_chat(asked, TOOLS), "\n".join([*CALLS, "Done."]))])
    with serving(folder, tmp_path_factory.mktemp("home")) as server:
        yield Client.of(server)


def asked(client: Client, **fields: Any) -> tuple[list[tuple[str, str]], str | None, str]:
    """Calls, content and the reason of the end: the same as a whole and as a stream."""
    whole = client.chat(QUESTION, tools=TOOLS, max_tokens=200, **fields)
    assert whole.status == 200, whole.body
    (choice,) = whole.json["choices"]
    calls = [one["function"] for one in choice["message"].get("tool_calls", [])]
    content, reason = choice["message"]["content"], choice["finish_reason"]
    stream = client.chat(QUESTION, tools=TOOLS, max_tokens=200, stream=True, **fields).chunks
    deltas = [one["choices"][0]["delta"] for one in stream]
    assert [c["function"] for one in deltas for c in one.get("tool_calls", [])] == calls
    assert "".join(one.get("content", "") for one in deltas) == (content or "")
    assert stream[-1]["choices"][0]["finish_reason"] == reason
    return [(one["name"], one["arguments"]) for one in calls], content, reason


LOOK, FIND = ("look", '{"place": "Paris"}'), ("find", '{"place": "Rome"}')


@pytest.mark.parametrize(
    ("fields", "calls", "content", "reason"),
    [
        ({}, [LOOK, FIND], "Done.", "tool_calls"),
        ({"tool_choice": "auto", "parallel_tool_calls": True}, [LOOK, FIND], "Done.", "tool_calls"),
        ({"parallel_tool_calls": False}, [LOOK], None, "tool_calls"),
        ({"tool_choice": "none"}, [], "Fine.", "stop"),
        ({"tool_choice": "required"}, [LOOK, FIND], "Done.", "tool_calls"),
        ({"tool_choice": "required", "parallel_tool_calls": False}, [LOOK], None, "tool_calls"),
        ({"tool_choice": NAMED}, [LOOK], None, "stop"),
        ({"tool_choice": NAMED, "stop": "name"}, [LOOK], None, "stop"),
    ],
)
def test_a_choice_of_tools(
    caller: Client, fields: dict[str, Any], calls: Any, content: str | None, reason: str
) -> None:
    found, said, why = asked(caller, **fields)
    assert (found, said and said.strip(), why) == (calls, content, reason)


def test_the_turn_after_a_forced_call_reads_only_what_is_new(caller: Client) -> None:
    body = {"messages": [{"role": "user", "content": QUESTION}], "tools": TOOLS, "tool_choice": NAMED}
    body |= {"max_tokens": 100, "temperature": 0}
    first = caller.ask("POST", CHAT, body).json
    message = first["choices"][0]["message"]
    usage = first["usage"]
    held = usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 0
    result = {"role": "tool", "content": "Sunny.", "tool_call_id": message["tool_calls"][0]["id"]}
    second = caller.ask("POST", CHAT, body | {"messages": [*body["messages"], message, result]}).json
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= held - 1


NATIVE = '<|tool_call_start|>[look(place="Paris"), find(place="Rome")]<|tool_call_end|>'
LFM2 = (
    "{% if tools %}<|im_start|>system\nList of tools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A server whose model has marks of its own for calls, and a template that writes definitions only."""
    folder = tmp_path_factory.mktemp("native")
    marks = ("<|tool_call_start|>", "<|tool_call_end|>")
    asked = [ChatMessage("user", QUESTION)]
    scripted(folder, [(asked, f"Let me see.{NATIVE}")], template=LFM2, special=marks, tools=TOOLS)
    with serving(folder, tmp_path_factory.mktemp("home")) as server:
        yield Client.of(server)


def test_calls_in_the_own_form_of_a_model_are_calls_and_no_text(native: Client) -> None:
    assert asked(native) == ([LOOK, FIND], "Let me see.", "tool_calls")


def test_the_turn_after_calls_in_the_own_form_reads_only_what_is_new(native: Client) -> None:
    body = {"messages": [{"role": "user", "content": QUESTION}], "tools": TOOLS}
    first = native.ask("POST", CHAT, body | {"max_tokens": 100}).json
    message = first["choices"][0]["message"]
    results = [
        {"role": "tool", "content": "Sunny.", "tool_call_id": one["id"]} for one in message["tool_calls"]
    ]
    messages = [*body["messages"], message, *results]
    usage = native.ask("POST", CHAT, body | {"messages": messages, "max_tokens": 1}).json["usage"]
    held = first["usage"]["prompt_tokens"] + first["usage"]["completion_tokens"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= held - 1


def test_what_is_no_call_after_all_is_text(client: Client) -> None:
    for choice in ("required", {"type": "function", "function": {"name": "find"}}):
        answer = client.chat(QUESTION, tools=TOOLS, tool_choice=choice, max_tokens=3, logprobs=True)
        (found,) = answer.json["choices"]
        told = "".join(one["token"] for one in found["logprobs"]["content"])
        assert told and found["message"]["content"].endswith(told)
        assert answer.status == 200 and found["finish_reason"] in ("length", "stop")
        assert found["message"]["content"].lstrip().startswith('<tool_call>\n{"name": "')


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tool_choice": NAMED}, "there are no tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "gone"}}, "tools": TOOLS}, "in tools"),
        ({"tool_choice": {"type": "function"}, "tools": TOOLS}, "of type function"),
        ({"tool_choice": {"type": "custom", "custom": {"name": "look"}}, "tools": TOOLS}, "of type function"),
        ({"tool_choice": "any", "tools": TOOLS}, "auto, none, required"),
        ({"parallel_tool_calls": "no", "tools": TOOLS}, "true or false"),
    ],
)
def test_choices_that_cannot_be_met(client: Client, fields: dict[str, Any], says: str) -> None:
    answer = client.chat(**fields)
    assert answer.status == 400 and says in answer.error["message"]
    assert (answer.error["param"] or "").split(".")[0] in ("tool_choice", "parallel_tool_calls")

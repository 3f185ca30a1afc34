"""Replies that have to begin with a call."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tests.engine.templates.families import FAMILIES as PLAIN
from tests.engine.templates.families import Family as PlainFamily
from tests.engine.tools.families import FAMILIES, WEATHER, Family
from tests.engine.tools.test_families import CALL, encoded, said
from tqchat.engine.commands import ChatMessage, ToolCall
from tqchat.engine.reasoning import Ends, ReplyFormat, ReplyStream
from tqchat.engine.templates import render
from tqchat.engine.tools import Opening, ToolCallSplitter, call_opening, reply_stream
from tqchat.engine.tools.replies import call_format

each = pytest.mark.parametrize("family", FAMILIES, ids=lambda one: one.name)


def tool(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"zone": {"type": "string"}}}
    return {
        "type": "function",
        "function": {"name": name, "description": "Something.", "parameters": parameters},
    }


ASKED = ChatMessage("user", "How is Paris?")


def opening(
    family: Family, *tools: Any, on_render: Callable[[Any], None] = lambda tools: None, **variables: Any
) -> Opening:
    def rendered(messages: Sequence[ChatMessage], add_generation_prompt: bool, tools: Any) -> list[int]:
        on_render(tools)
        return render(
            family.tokenizer,
            messages,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            variables=variables,
        )

    model: Any = SimpleNamespace(tokenizer=family.tokenizer, reply_format=reply_format(family))
    return call_opening(model, rendered, tools)


def reply_format(family: Family) -> ReplyFormat:
    return ReplyFormat(family.tokenizer, Ends(frozenset(encoded(family, family.end)[:1])))


def after(family: Family, call: ToolCall, tools: Sequence[Any]) -> list[int]:
    """The prompt of the turn after a call."""
    result = ChatMessage("tool", "It is sunny.", tool_call_id=call.id)
    return render(
        family.tokenizer, [ASKED, ChatMessage("assistant", "", tool_calls=(call,)), result], tools=tools
    )


@each
def test_the_beginning_is_found_without_rendering_long_definitions(family: Family) -> None:
    long = tool("get_weather")
    properties = {"zone": {"type": "integer", "description": "x" * 100_000}} | {
        f"key{n}": {"type": "string"} for n in range(1_000)
    }
    long["function"] |= {"description": "y" * 100_000}
    long["function"]["parameters"] = {"type": "object", "properties": properties}
    rendered: list[int] = []
    begun = opening(family, long, on_render=lambda tools: rendered.append(len(json.dumps(tools))))
    assert begun == opening(family, tool("get_weather")) and begun.call
    assert max(rendered) < 1_000
    for name in ("x" * 100_000, tool("get_weather")["function"]["name"]):
        long["function"] |= {"name": name, "parameters": {"properties": {"z" * 100_000: {}}}}
        opening(family, long, on_render=lambda tools: rendered.append(len(json.dumps(tools))))
    assert max(rendered) < 1_000


@each
def test_a_forced_call_is_parsed_and_found_in_the_prompt_of_the_next_turn(family: Family) -> None:
    tools = [WEATHER, tool("get_time")]
    begun = opening(family, WEATHER)
    prompt = render(family.tokenizer, [ASKED], tools=tools)
    assert begun.call and not begun.thought_end
    assert "get_weather" in family.tokenizer.decode(list(begun.call))
    call = replace(CALL, id=family.identity or "call_0")
    later = after(family, call, tools)
    held = [*begun.after(prompt), *begun.call]
    assert later[: len(held)] == held, family.tokenizer.decode(later)
    # The model goes on to where the template writes the end of the reply, as it was trained to.
    end = encoded(family, family.end)
    ends = next(at for at in range(len(held), len(later)) if later[at : at + len(end)] == end)
    text, calls = said(family, later[len(prompt) : ends])
    assert text.strip() == "" and [replace(one, id="") for one in calls] == [CALL]
    again = after(family, calls[0], tools)
    assert again[:ends] == later[:ends]


@each
def test_a_call_of_any_function_begins_before_their_names_differ(family: Family) -> None:
    tools = [WEATHER, tool("get_time"), tool("find")]
    begun = opening(family, *tools)
    prompt = render(family.tokenizer, [ASKED], tools=tools)
    held = [*begun.after(prompt), *begun.call]
    assert begun.call and "get" not in family.tokenizer.decode(list(begun.call))
    for name, arguments in (("get_weather", '{"city": "Paris"}'), ("get_time", "{}"), ("find", '{"é": 1}')):
        identity = family.identity.replace("get_weather", name) or "call_0"
        assert after(family, ToolCall(identity, name, arguments), tools)[: len(held)] == held


def test_a_thought_that_the_template_opens_is_closed_first() -> None:
    qwen = FAMILIES[0]
    thinking = replace(
        qwen,
        template=qwen.template.replace(
            "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}"
        ),
        plain=(*qwen.plain, "<think>", "</think>"),
    )
    begun = opening(thinking, WEATHER)
    assert begun.call == opening(qwen, WEATHER).call or thinking.tokenizer.decode(
        list(begun.call)
    ).startswith('<tool_call>\n{"name": "get_weather", "arguments": {')
    prompt = render(thinking.tokenizer, [ASKED], tools=[WEATHER])
    format = reply_format(thinking)
    assert ReplyStream(format, prompt).thinking
    assert not ReplyStream(format, begun.after(prompt)).thinking


@pytest.mark.parametrize("plain", PLAIN, ids=lambda one: one.name)
def test_a_forced_call_is_no_thought_in_any_family(plain: PlainFamily) -> None:
    tokenizer = plain.tokenizer()
    format = ReplyFormat(tokenizer, Ends(frozenset([tokenizer.convert_tokens_to_ids(plain.end)])))

    def rendered(messages: Sequence[ChatMessage], add_generation_prompt: bool, tools: Any) -> list[int]:
        return render(tokenizer, messages, add_generation_prompt=add_generation_prompt, tools=tools)

    model: Any = SimpleNamespace(tokenizer=tokenizer, reply_format=format)
    begun = call_opening(model, rendered, [WEATHER])
    prompt = begun.after(rendered([ASKED], True, [WEATHER]))
    stream = reply_stream(model, prompt, [WEATHER])
    assert not stream.thinking
    rest = tokenizer.encode('city": "Paris"}}\n</tool_call>', add_special_tokens=False)
    for token in (*begun.call, *rest):
        stream.add(token)
    stream.finish(cut=False)
    (call,) = ToolCallSplitter(call_format(tokenizer), [WEATHER]).feed(stream.text)
    assert isinstance(call, ToolCall) and call.name == "get_weather" and "Paris" in call.arguments
    assert not stream.reasoning.strip()


def test_a_template_without_a_place_for_tools_or_a_beginning_of_replies_begins_with_both() -> None:
    bare = replace(
        FAMILIES[0], template="{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", plain=()
    )
    begun = bare.tokenizer.decode(list(opening(bare, WEATHER).call))
    assert begun.startswith('assistant: <tool_call>\n{"name": "get_weather", "arguments": {')


def test_a_form_that_is_not_parsed_gives_no_beginning() -> None:
    odd = replace(FAMILIES[0], template=FAMILIES[0].template.replace('"arguments": ', '"arguments" = '))
    assert opening(odd, WEATHER) == Opening()

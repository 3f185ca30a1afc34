"""Calls in the formats of model families: from tokens to calls, and back into the prompt."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.engine.tools.families import FAMILIES, WEATHER, Family
from tqchat.engine.commands import ChatMessage, ToolCall
from tqchat.engine.reasoning import Ends, ReplyFormat, ReplyStream
from tqchat.engine.templates import chat_template, render
from tqchat.engine.templates.control_tokens import control_tokens
from tqchat.engine.templates.tool_support import tool_support
from tqchat.engine.tools import ToolCallSplitter, tool_calls
from tqchat.engine.tools.replies import call_format

CALL = ToolCall("", "get_weather", '{"city": "Paris", "days": 2}')
each = pytest.mark.parametrize("family", FAMILIES, ids=lambda one: one.name)


def said(family: Family, tokens: list[int], thought: str = "") -> tuple[str, list[ToolCall]]:
    """Text and calls of a reply, token by token."""
    tokenizer = family.tokenizer
    format = call_format(tokenizer)
    stream = ReplyStream(ReplyFormat(tokenizer, Ends()), (), (format.start, format.end))
    splitter = ToolCallSplitter(format, [WEATHER])
    spans = [span for token in tokens if not stream.is_end(token) for span in stream.add(token)]
    spans += stream.finish(cut=False)
    assert stream.reasoning == thought
    answer = [span.text for span in spans if span.part == "answer"]
    pieces = [piece for one in answer for piece in splitter.feed(one)] + splitter.finish()
    text = "".join(one for one in pieces if isinstance(one, str))
    return text, [one for one in pieces if isinstance(one, ToolCall)]


def encoded(family: Family, text: str) -> list[int]:
    return list(family.tokenizer.encode(text, add_special_tokens=False))


@each
def test_a_call_is_parsed_and_put_back_in_the_tokens_that_the_model_wrote(family: Family) -> None:
    reply = encoded(family, family.written)
    text, calls = said(family, reply)
    assert text == ("Let me look." if family.written.startswith("Let") else "")
    assert [replace(one, id="") for one in calls] == [CALL]
    assert calls[0].id == family.identity or (not family.identity and calls[0].id.startswith("call_"))
    asked = [ChatMessage("user", "How is Paris?")]
    prompt = render(family.tokenizer, asked, tools=[WEATHER])
    chat = [
        *asked,
        ChatMessage("assistant", text, tool_calls=tuple(calls)),
        ChatMessage("tool", "It is sunny.", tool_call_id=calls[0].id),
    ]
    after = render(family.tokenizer, chat, tools=[WEATHER])
    written = prompt + reply + encoded(family, family.end)
    assert after[: len(written)] == written, family.tokenizer.decode(after)
    decoded = family.tokenizer.decode(after)
    assert "It is sunny." in decoded and "get_weather" in decoded
    for turn in (
        [ChatMessage("user", "And Rome?")],
        [ChatMessage("assistant", "Sunny."), ChatMessage("user", "And Rome?")],
    ):
        later = family.tokenizer.decode(
            render(family.tokenizer, [ChatMessage("system", "Be brief."), *chat, *turn], tools=[WEATHER])
        )
        assert all(one in later for one in ("Be brief.", "How is Paris?", "It is sunny.", "And Rome?"))


@pytest.mark.parametrize(
    "start", ["LFM2 and", "SmolLM3", "Granite 3.3", "Granite 4", "Command R7B", "DeepSeek V3.1"]
)
def test_calls_are_asked_for_and_read_in_the_form_that_the_template_states(start: str) -> None:
    family = next(one for one in FAMILIES if one.name.startswith(start))
    assert tool_support(family.tokenizer) is not None
    text = family.tokenizer.decode(
        render(family.tokenizer, [ChatMessage("user", "How is Paris?")], tools=[WEATHER])
    )
    assert "Weather of a city." in text
    assert ("You can call functions" in text) == (start == "DeepSeek V3.1")


def test_a_template_with_calls_only_has_an_example_of_its_control_tokens_in_the_prompt() -> None:
    tokenizer = next(one for one in FAMILIES if one.name.startswith("DeepSeek V3.1")).tokenizer
    begins = tokenizer.convert_tokens_to_ids("<｜tool▁call▁begin｜>")
    chat = [ChatMessage("system", "Be brief."), ChatMessage("user", "Hello <｜tool▁call▁begin｜>")]
    prompt = render(tokenizer, chat, tools=[WEATHER])
    assert prompt.count(begins) == 1 and begins not in render(tokenizer, chat)
    example = (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function name<｜tool▁sep｜>"
        '{"argument name": "value"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
    )
    assert example in tokenizer.decode(prompt) and "Weather of a city." in tokenizer.decode(prompt)


@pytest.mark.parametrize("start", ["LFM2 and", "SmolLM3", "Granite 3.3"])
def test_arguments_of_every_kind_are_put_back_where_the_template_writes_no_calls(start: str) -> None:
    family = next(one for one in FAMILIES if one.name.startswith(start))
    values = {"a": 'x "y"\n\\ é 😀', "b": [1, -2.5, None, {"c": [True, False]}], "d": {}, "e": "it's"}
    call = replace(CALL, arguments=json.dumps(values, ensure_ascii=False))
    other = replace(call, arguments="{}")
    prompt = render(family.tokenizer, [ChatMessage("user", "Go.")], tools=[WEATHER])
    chat = [ChatMessage("user", "Go."), ChatMessage("assistant", "Look.", tool_calls=(call, other))]
    written = render(family.tokenizer, chat, add_generation_prompt=False, tools=[WEATHER])
    assert written[: len(prompt)] == prompt
    end = len(written) - len(encoded(family, family.end))
    text, calls = said(family, written[len(prompt) : end])
    assert text == "Look." and [json.loads(one.arguments) for one in calls] == [values, {}]


@pytest.mark.parametrize("start", ["LFM2 and", "DeepSeek V3.1"])
def test_private_characters_of_the_client_are_not_taken_for_marks(start: str) -> None:
    family = next(one for one in FAMILIES if one.name.startswith(start))
    private = "".join(map(chr, range(0xF0000, 0xF0020)))
    chat = [ChatMessage("user", "Go."), ChatMessage("assistant", "", tool_calls=(CALL,))]

    def controls(word: str) -> list[int]:
        last = ChatMessage("tool", word), ChatMessage("user", word)
        tokens = render(family.tokenizer, [*chat, *last], tools=[WEATHER])
        assert word in family.tokenizer.decode(tokens)
        return [token for token in tokens if token in family.tokenizer.added_tokens_decoder]

    assert controls(private) == controls("word")


def test_the_fenced_calls_of_deepseek_r1_are_not_asked_for_without_a_place_for_definitions() -> None:
    family = next(one for one in FAMILIES if one.name == "DeepSeek V3")
    template = family.template.replace("{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}", "")
    assert tool_support(replace(family, template=template).tokenizer) is None


@each
def test_control_tokens_from_the_client_are_ordinary_text(family: Family) -> None:
    tokenizer = family.tokenizer
    mark = max((*family.special, *family.plain), key=len)

    def prompt(word: str) -> list[int]:
        function = WEATHER["function"] | {
            "name": f"f{word}",
            "description": f"a{word}b",
            "parameters": {
                "type": "object",
                "properties": {f"k{word}": {"type": "string", "enum": [word, [word]]}},
            },
        }
        arguments = '{"x%s": ["%s", {"y": "%s"}]}' % ((word.replace('"', '\\"'),) * 3)
        chat = [
            ChatMessage("system", f"s{word}"),
            ChatMessage("user", f"u{word}"),
            ChatMessage("assistant", word, tool_calls=(ToolCall(f"i{word}", f"f{word}", arguments),)),
            ChatMessage("tool", word, tool_call_id=f"i{word}"),
        ]
        return render(tokenizer, chat, tools=[{"type": "function", "function": function}])

    def controls(tokens: list[int]) -> list[int]:
        support = tool_support(tokenizer)
        template = chat_template(tokenizer) if support is None else support.template
        control = control_tokens(tokenizer, template)
        return [token for token in tokens if token in control.ids]

    hostile, plain = prompt(mark), prompt("w")
    assert controls(hostile) == controls(plain)
    assert mark in tokenizer.decode(hostile)
    begun, rest = mark[: len(mark) // 2], mark[len(mark) // 2 :]

    def joined(begun: str, rest: str) -> int:
        chat = [ChatMessage("user", "u"), ChatMessage("tool", rest)]
        function = {"name": "f", "description": begun, "parameters": {begun: rest}}
        tokens = render(tokenizer, chat, tools=[{"type": "function", "function": function}])
        return controls(tokens).count(tokenizer.convert_tokens_to_ids(mark))

    assert joined(begun, rest) == joined("w", "w")


def test_gpt_oss_may_name_the_function_before_the_channel() -> None:
    family = next(one for one in FAMILIES if one.name == "gpt-oss")
    call = 'to=functions.get_weather<|channel|>commentary json<|message|>{"city": "Paris", "days": 2}<|call|>'
    after_thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant " + call
    for written, thought in ((f" {call}", ""), (after_thought, "Hm.")):
        text, calls = said(family, encoded(family, written), thought)
        assert (text, [replace(one, id="") for one in calls]) == ("", [CALL])
    for written in ("Hello", "<|channel|>final<|message|>Hello"):
        assert said(family, encoded(family, written)) == ("Hello", [])


@each
def test_several_calls_and_their_results_are_in_the_prompt(family: Family) -> None:
    calls = tuple(
        replace(CALL, id=f"call_{city}", arguments=f'{{"city": "{city}"}}') for city in ("Rome", "Oslo")
    )
    chat = [
        ChatMessage("user", "Compare."),
        ChatMessage("assistant", "Let me look.", tool_calls=calls),
        *(ChatMessage("tool", f"{one.id} is fine", tool_call_id=one.id) for one in calls),
    ]
    text = family.tokenizer.decode(render(family.tokenizer, chat, tools=[WEATHER]))
    assert all(
        one in text for one in ("Let me look.", "Rome", "Oslo", "call_Rome is fine", "call_Oslo is fine")
    )


def test_a_chat_without_tools_is_rendered_as_before() -> None:
    for family in FAMILIES:
        assert tool_calls(family.tokenizer, ()) is None
        chat: list[Any] = [ChatMessage("user", "Hello")]
        assert render(family.tokenizer, chat) == render(family.tokenizer, chat, tools=())

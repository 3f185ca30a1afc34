"""The thinking switch is found in a template, whatever it is called."""

from __future__ import annotations

import pytest

from tests.engine.talk import user
from tqchat.engine.commands import ChatMessage
from tqchat.engine.templates.finding import ChatTemplate
from tqchat.engine.templates.thinking import ThinkingSwitch, thinking_switch

USER = "{% for m in messages %}{{ m.content }}{% endfor %}"


def switch(source: str) -> ThinkingSwitch | None:
    return thinking_switch(ChatTemplate(source, None, ()))


@pytest.mark.parametrize(
    ("source", "kind", "variable", "choices"),
    [
        ("{% if not enable_thinking %}<think></think>{% endif %}", "flag", "enable_thinking", ("off", "on")),
        ("{% if thinking is defined and thinking %}<think>{% endif %}", "flag", "thinking", ("off", "on")),
        (
            "{% if thinking_mode == 'chat' %}x{% elif thinking_mode == 'thinking' %}y{% endif %}",
            "level",
            "thinking_mode",
            ("off", "on"),
        ),
        (
            "{{ 'Reasoning: ' + (reasoning_effort or 'medium') }}",
            "level",
            "reasoning_effort",
            ("low", "medium", "high"),
        ),
        (
            "{% if reasoning_effort in ['none', 'low', 'high'] %}{{ reasoning_effort }}{% endif %}",
            "level",
            "reasoning_effort",
            ("off", "low", "high"),
        ),
        (
            "{% if reasoning_effort == 'no_think' %}a{% elif reasoning_effort|lower == 'high' %}b{% endif %}",
            "level",
            "reasoning_effort",
            ("off", "high"),
        ),
        (
            "{% if reasoning_effort not in ['low', 'high'] %}{{ raise_exception('no') }}{% endif %}"
            "{{ reasoning_effort }}",
            "level",
            "reasoning_effort",
            ("low", "high"),
        ),
        ("{{ thinking_budget }}", "budget", "thinking_budget", ("off", "on", "low", "medium", "high")),
        (
            "{% if '/no_think' in messages[0].content %}<think></think>{% endif %}",
            "message",
            "",
            ("off", "on"),
        ),
        (
            "{% if 'detailed thinking off' in messages[0].content %}<think></think>{% endif %}",
            "message",
            "",
            ("off", "on"),
        ),
    ],
)
def test_a_switch_is_found(source: str, kind: str, variable: str, choices: tuple[str, ...]) -> None:
    found = switch(USER + source)
    assert found is not None
    assert (found.kind, found.variable, found.choices) == (kind, variable, choices)


@pytest.mark.parametrize(
    "source",
    [
        USER,
        USER + "{% if enable_thinking %}{% endif %}",
        USER + "{# /no_think #}",
        USER + "{{ '/no_think' if false }}",
        "{{ raise_exception('no') }}{{ enable_thinking }}",
        "{% if %}",
    ],
)
def test_what_changes_nothing_is_no_switch(source: str) -> None:
    assert switch(source) is None


def test_no_template_has_no_switch() -> None:
    assert thinking_switch(None) is None


def test_a_flag_and_a_level_make_one_switch() -> None:
    found = switch(USER + "{% if enable_thinking %}{{ reasoning_effort }}{% else %}off{% endif %}")
    assert found is not None and found.choices == ("off", "on", "low", "medium", "high")
    assert found.variables("off") == {"enable_thinking": False}
    assert found.variables("high") == {"enable_thinking": True, "reasoning_effort": "high"}


def test_a_choice_that_a_model_does_not_know_becomes_the_closest() -> None:
    flag = ThinkingSwitch("flag", "enable_thinking", ("off", "on"), ({"x": False}, {"x": True}))
    assert flag.nearest("high") == "on" and flag.variables("low") == {"x": True}
    level = ThinkingSwitch("level", "effort", ("low", "high"), ({"x": 1}, {"x": 2}))
    assert level.nearest("on") == "high" and level.nearest("medium") == "high"
    assert level.nearest("off") is None and level.variables("off") == {}


def test_words_go_into_the_system_prompt_once() -> None:
    found = switch(USER + "{% if '/no_think' in messages[0].content %}<think></think>{% endif %}")
    assert found is not None
    alone = found.messages([user("Hi")], "off")
    assert alone == (ChatMessage("system", "/no_think"), user("Hi"))
    with_prompt = found.messages([ChatMessage("system", "Be brief."), user("Hi")], "off")
    assert with_prompt[0].content == "Be brief.\n\n/no_think"
    assert found.messages(with_prompt, "off") == with_prompt
    assert found.variables("off") == {}

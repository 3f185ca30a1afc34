"""Finds and sets a chat template's switch for reasoning.

Templates have different ones: a boolean variable (``enable_thinking``), one that takes words
(``reasoning_effort``), a number of tokens (``thinking_budget``), or words in the system prompt
(``/no_think``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from jinja2 import nodes

from tqchat.engine.commands import ChatMessage
from tqchat.engine.templates.errors import TemplateError, TemplateLimit
from tqchat.engine.templates.finding import ChatTemplate
from tqchat.engine.templates.limits import one_budget
from tqchat.engine.templates.sandbox import syntax_tree

Kind = Literal["flag", "level", "budget", "message"]

CHOICES = ("off", "on", "low", "medium", "high")
"""Every choice that a switch may offer, in the order shown."""

FLAGS = ("enable_thinking", "thinking", "enable_reasoning", "use_thinking", "think", "force_thinking")
LEVELS = ("reasoning_effort", "thinking_effort", "thinking_mode", "reasoning_mode", "reasoning")
BUDGETS = ("thinking_budget", "reasoning_budget")
BUDGET_TOKENS = {"off": 0, "on": -1, "low": 512, "medium": 2048, "high": 16384}
SYSTEM_WORDS = (
    {"off": "/no_think", "on": "/think"},
    {"off": "/nothink", "on": "/think"},
    {"off": "detailed thinking off", "on": "detailed thinking on"},
)

_WORDS = {
    "off": ("off", "none", "no_think", "nothink", "no", "disabled", "disable", "chat", "fast", "false"),
    "on": ("on", "thinking", "think", "enabled", "enable", "slow", "true", "auto", "adaptive"),
    "low": ("low",),
    "medium": ("medium",),
    "high": ("high", "max"),
}
_FALLBACKS = {
    "on": ("medium", "high", "low"),
    "low": ("on", "medium"),
    "medium": ("on", "high", "low"),
    "high": ("on", "medium"),
}


@dataclass(frozen=True)
class ThinkingSwitch:
    """The switch of a model's reasoning.

    Attributes:
        kind: A template variable is set to a boolean (``flag``), a word (``level``) or a number of tokens
            (``budget``); ``message`` adds words to the system prompt.
        variable: The template variable; empty for ``message``.
        choices: What can be chosen, from ``CHOICES``.
        settings: The variables that are set for each choice; for ``message``, the words under ``""``.
    """

    kind: Kind
    variable: str
    choices: tuple[str, ...]
    settings: tuple[Mapping[str, Any], ...]

    def nearest(self, choice: str) -> str | None:
        """The choice, or the closest that the model has (``on`` for ``high``)."""
        for one in (choice, *_FALLBACKS.get(choice, ())):
            if one in self.choices:
                return one
        return None

    def variables(self, choice: str) -> Mapping[str, Any]:
        """Template variables for a choice; none if the model does not have it."""
        return {} if self.kind == "message" else self._setting(choice)

    def messages(self, messages: Sequence[ChatMessage], choice: str) -> tuple[ChatMessage, ...]:
        """The messages for a choice: with its words in the system prompt, if that is where the switch is."""
        words = str(self._setting(choice).get("", "")) if self.kind == "message" else ""
        if not words:
            return tuple(messages)
        if not messages or messages[0].role != "system":
            return (ChatMessage("system", words), *messages)
        first = messages[0]
        if words in first.content:
            return tuple(messages)
        return (replace(first, content=f"{first.content.rstrip()}\n\n{words}".lstrip()), *messages[1:])

    def _setting(self, choice: str) -> Mapping[str, Any]:
        near = self.nearest(choice)
        return {} if near is None else self.settings[self.choices.index(near)]


def thinking_switch(template: ChatTemplate | None) -> ThinkingSwitch | None:
    """The switch of a template, if it changes the rendered prompt."""
    try:
        with one_budget():
            return None if template is None else _first_switch(template)
    except TemplateLimit:
        return None  # rendering a prompt reports it


def default_choice(
    template: ChatTemplate | None, switch: ThinkingSwitch | None, variables: Mapping[str, Any]
) -> str | None:
    """The choice that gives the same prompt as none; ``None`` if there is no such choice.

    Args:
        variables: What the template gets in any case.
    """
    if template is None or switch is None:
        return None
    try:
        with one_budget():
            plain = replace(switch, kind="flag", choices=("",), settings=(variables,))
            unset = _prompt(template, plain, "")
            for choice, setting in zip(switch.choices, switch.settings, strict=True):
                full = setting if switch.kind == "message" else {**variables, **setting}
                if _prompt(template, replace(switch, choices=(choice,), settings=(full,)), choice) == unset:
                    return choice
    except TemplateLimit:
        pass
    return None


def _first_switch(template: ChatTemplate) -> ThinkingSwitch | None:
    flag = _switch_off_and_on(template)
    for name in LEVELS:
        if name in template.variables and (level := _levels(template, name, flag)) is not None:
            return level
    if flag is not None:
        return flag
    for name in BUDGETS:
        if name in template.variables:
            table: dict[str, Mapping[str, Any]]
            table = {choice: {name: tokens} for choice, tokens in BUDGET_TOKENS.items()}
            if (budget := _working(template, "budget", name, table)) is not None:
                return budget
    for words in SYSTEM_WORDS:
        if words["off"] in template.literal_text:
            table = {choice: {"": text} for choice, text in words.items()}
            if (message := _working(template, "message", "", table)) is not None:
                return message
    return None


def _switch_off_and_on(template: ChatTemplate) -> ThinkingSwitch | None:
    names = FLAGS[:1] if template.function is not None else [n for n in FLAGS if n in template.variables]
    for name in names:
        table = {"off": {name: False}, "on": {name: True}}
        if (switch := _working(template, "flag", name, table)) is not None:
            return switch
    return None


def _levels(template: ChatTemplate, name: str, flag: ThinkingSwitch | None) -> ThinkingSwitch | None:
    """A switch whose values are the words that the template compares the variable with."""
    words = {word.casefold(): word for word in _compared_words(template.source, name)}
    table: dict[str, Mapping[str, Any]] = {}
    for choice, known in _WORDS.items():
        if (word := next((word for word in known if word in words), None)) is not None:
            table[choice] = {name: words[word]}
    if not table.keys() & {"low", "medium", "high"} and name.endswith("_effort"):
        # A template that only passes the word on (gpt-oss) compares it with nothing.
        table |= {choice: {name: choice} for choice in ("low", "medium", "high")}
    if flag is not None:
        off, on = flag.settings
        table = {choice: {**on, **setting} for choice, setting in table.items() if choice != "off"}
        table = {"off": off, "on": on, **table}
    return _working(template, "level", name, table)


def _working(
    template: ChatTemplate, kind: Kind, variable: str, table: Mapping[str, Mapping[str, Any]]
) -> ThinkingSwitch | None:
    """The switch with the choices that the template accepts; ``None`` if they all render the same prompt."""
    choices = tuple(choice for choice in CHOICES if choice in table)
    switch = ThinkingSwitch(kind, variable, choices, tuple(table[choice] for choice in choices))
    written = {choice: _prompt(template, switch, choice) for choice in choices}
    taken = tuple(choice for choice in choices if written[choice] is not None)
    if len({written[choice] for choice in taken}) < 2:
        return None
    return replace(switch, choices=taken, settings=tuple(table[choice] for choice in taken))


def _prompt(template: ChatTemplate, switch: ThinkingSwitch, choice: str) -> str | None:
    """A short prompt, without the switch's own words; ``None`` if the template refuses the choice."""
    said = switch.messages((ChatMessage("user", "Hello"),), choice)
    as_text = [{"role": one.role, "content": one.content} for one in said]
    as_parts = [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in as_text]
    for messages in (as_text, as_parts):
        try:
            text = template.render(
                messages, add_generation_prompt=True, variables=switch.variables(choice), began=0.0
            )
        except TemplateLimit:
            raise
        except TemplateError:
            continue
        return text.replace(said[0].content, "") if switch.kind == "message" else text
    return None


def _compared_words(source: str, name: str) -> set[str]:
    """String constants that a variable is compared with or looked for in."""
    found: set[str] = set()
    for comparison in syntax_tree(source).find_all(nodes.Compare):
        parts = [comparison.expr, *(operand.expr for operand in comparison.ops)]
        if any(_is_variable(part, name) for part in parts):
            for part in parts:
                constants = [part] if isinstance(part, nodes.Const) else part.find_all(nodes.Const)
                found |= {one.value for one in constants if isinstance(one.value, str)}
    return found


def _is_variable(node: nodes.Node, name: str) -> bool:
    if isinstance(node, nodes.Filter) and node.node is not None:
        return _is_variable(node.node, name)
    return isinstance(node, nodes.Name) and node.name == name

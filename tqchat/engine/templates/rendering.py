"""Renders a transcript to token ids with the model's chat template."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tqchat.engine.commands import ChatMessage
from tqchat.engine.templates.control_tokens import Disguise, control_tokens
from tqchat.engine.templates.errors import PromptRejected
from tqchat.engine.templates.finding import chat_template
from tqchat.engine.templates.plain_tools import as_plain_chat
from tqchat.engine.templates.tool_forms import (
    ToolForms,
    texts_of,
    valid_calls,
    valid_tools,
    without_surrogates,
)
from tqchat.engine.templates.tool_support import ToolSupport, tool_support
from tqchat.engine.templates.writer import TemplateWriter

PLAIN_STOP = "\nUser:"
"""Stop sequence for a model without a chat template."""

_PLAIN_NAMES = {"user": "User: ", "assistant": "Assistant: ", "system": ""}


@dataclass(frozen=True)
class Rendered:
    """A prompt's text with control tokens in contents escaped, and the ``Disguise`` that escaped them."""

    disguised: str
    disguise: Disguise

    @property
    def text(self) -> str:
        """The text without escapes."""
        return self.disguise.restored(self.disguised)


def render(
    tokenizer: Any,
    messages: Sequence[ChatMessage],
    *,
    add_generation_prompt: bool = True,
    variables: Mapping[str, Any] | None = None,
    began: float | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
) -> list[int]:
    """The token ids of a transcript, as the model's chat template writes it.

    The template gets the messages in the role order and content form that it supports (``arrangements``); it
    must write their contents. Contents are ordinary text: only the template writes control tokens. The
    beginning-of-sequence token is there once, if either the template or the tokenizer writes it. A model
    without a template gets ``plain_text``. Tools are ordinary text if the template has no place for them
    (``plain_tools``).

    Args:
        tokenizer: mlx-lm's ``TokenizerWrapper``.
        add_generation_prompt: Whether the tokens end where the reply begins.
        variables: Template variables, e.g. ``{"enable_thinking": False}``.
        began: Current time as the template sees it, from ``wall_clock``; ``None`` is now.
        tools: Definitions of functions that the model may call, as OpenAI's interface has them.

    Raises:
        PromptRejected: if there are no messages, or the template refuses them or leaves them out.
    """
    template = chat_template(tokenizer)
    rendered = rendered_text(
        tokenizer,
        messages,
        add_generation_prompt=add_generation_prompt,
        variables=variables,
        began=began,
        tools=tools,
    )
    return with_bos(tokenizer, encoded(rendered), plain=template is None)


def rendered_text(
    tokenizer: Any,
    messages: Sequence[ChatMessage],
    *,
    add_generation_prompt: bool = True,
    variables: Mapping[str, Any] | None = None,
    began: float | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
) -> Rendered:
    """The text that ``render`` encodes.

    Raises:
        PromptRejected: as ``render`` does.
    """
    if not messages:
        raise PromptRejected("There is no message to answer yet.")
    messages = [_valid(one) for one in messages]
    support: ToolSupport | None = None
    if tools or any(one.role == "tool" or one.tool_calls for one in messages):
        messages, tools = valid_calls(messages), valid_tools(tools)
        support = tool_support(tokenizer)
        if support is None:
            messages, tools = as_plain_chat(messages, tools), ()
    template = chat_template(tokenizer) if support is None else support.template
    control = control_tokens(tokenizer, template)
    texts = [text for one in messages for text in (one.content, one.reasoning)]
    if support is not None:
        texts += [*texts_of(tools), *(text for one in messages for text in _tool_texts(one))]
    disguise = Disguise(control, texts)
    if support is not None:
        messages, tools = support.placed(messages, tools, disguise)
    if template is None:
        disguised = [replace(one, content=disguise.content(one.content)) for one in messages]
        return Rendered(plain_text(disguised, add_generation_prompt), disguise)
    variables = {**default_variables(tokenizer), **(variables or {})}
    forms = ToolForms(tools, support.form, disguise) if support is not None else None
    writer = TemplateWriter(template, add_generation_prompt, variables, began, disguise, forms)
    return Rendered(disguise.with_trusted(writer.written(messages)), disguise)


def _valid(message: ChatMessage) -> ChatMessage:
    """A message without lone surrogates, which tokenizers refuse and arguments that are not UTF-8 have."""
    content, reasoning = map(without_surrogates, (message.content, message.reasoning))
    return replace(message, content=content, reasoning=reasoning)


def _tool_texts(message: ChatMessage) -> Iterator[str]:
    yield from (message.name, message.tool_call_id)
    for call in message.tool_calls:
        # Also as JSON reads it: its escapes may stand for private characters.
        yield from (call.id, call.name, call.arguments, *texts_of(json.loads(call.arguments)))


def encoded(rendered: Rendered) -> list[int]:
    """Token ids of a prompt's text, without the tokenizer's own prefix and suffix."""
    return rendered.disguise.encode(rendered.disguised)


def default_variables(tokenizer: Any) -> dict[str, Any]:
    """The template variable that mlx-lm passes: whether the vocabulary has reasoning marks."""
    name = getattr(tokenizer, "_thinking_kwarg", None) or "enable_thinking"
    return {name: bool(getattr(tokenizer, "has_thinking", False))}


def plain_text(messages: Sequence[ChatMessage], add_generation_prompt: bool) -> str:
    """Plain form for models without a chat template: ``User: ...``, ``Assistant: ...``."""
    parts = [_PLAIN_NAMES[one.role] + one.content.strip() for one in messages]
    if add_generation_prompt:
        parts.append("Assistant:")
    return "\n\n".join(parts)


def with_bos(tokenizer: Any, tokens: list[int], plain: bool = False) -> list[int]:
    """The tokens with exactly one beginning-of-sequence token in front, if the template or the tokenizer
    writes one.

    Args:
        plain: Whether there is no template; then all tokens that the tokenizer puts in front are added.
    """
    bos = getattr(tokenizer, "bos_token_id", None)
    prefix = _own_prefix(tokenizer)
    if plain and tokens[: len(prefix)] != prefix:
        return prefix + tokens
    if bos is None:
        return tokens
    start = 0
    while start < len(tokens) and tokens[start] == bos:
        start += 1
    return [bos, *tokens[start:]] if start or bos in prefix[:1] else tokens


def _own_prefix(tokenizer: Any) -> list[int]:
    """Tokens that the tokenizer puts before a text by itself."""
    bare = list(tokenizer.encode("a", add_special_tokens=False))
    full = list(tokenizer.encode("a"))
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start]
    return []

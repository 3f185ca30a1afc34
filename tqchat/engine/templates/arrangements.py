"""Message orders and content forms (text or a list of parts) that chat templates accept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from tqchat.engine.commands import ChatMessage, Role
from tqchat.engine.templates.tool_forms import ToolForms

Messages = tuple[ChatMessage, ...]
Arrangement = Callable[[Messages], Messages]
Form = dict[Role, bool]
"""Roles whose content is passed as a list of parts."""

_ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")
_OPENERS = ("", "...")
"""Contents of a user turn that is inserted before a leading reply."""


_NO_ANSWER = "..."
"""Content of a reply that is inserted between a tool's result and a user turn."""

_SYSTEM_PROMPTS = ("", "You are a helpful assistant.")
"""System prompts that are inserted for templates that demand one."""


def system_in_user(messages: Messages) -> Messages:
    """Move system prompts to the front of the first user message."""
    system = [one.content.strip() for one in messages if one.role == "system"]
    rest = [one for one in messages if one.role != "system"]
    if not system:
        return messages
    text = "\n\n".join(system)
    for index, one in enumerate(rest):
        if one.role == "user":
            rest[index] = replace(one, content=f"{text}\n\n{one.content}")
            return tuple(rest)
    return (ChatMessage("user", text), *rest)


def alternating(messages: Messages) -> Messages:
    """Join neighbours of the same role into one message."""
    joined: list[ChatMessage] = []
    for one in messages:
        if joined and joined[-1].role == one.role != "tool":
            before = joined[-1]
            joined[-1] = replace(
                one,
                content=_paragraphs(before, one),
                reasoning="\n\n".join(filter(None, (before.reasoning, one.reasoning))),
                tool_calls=before.tool_calls + one.tool_calls,
            )
        else:
            joined.append(one)
    return tuple(joined)


def _paragraphs(before: ChatMessage, after: ChatMessage) -> str:
    if before.tool_calls or after.tool_calls:
        return "\n\n".join(filter(None, (before.content, after.content)))
    return f"{before.content}\n\n{after.content}"


def one_call_each(messages: Messages) -> Messages:
    """Give each call a reply of its own, followed by its result: some templates take one call at a time."""
    found: list[ChatMessage] = []
    results = {one.tool_call_id: one for one in messages if one.role == "tool"}
    moved: set[str] = set()
    for one in messages:
        if len(one.tool_calls) < 2:
            if one.role != "tool" or one.tool_call_id not in moved:
                found.append(one)
            continue
        said = one
        for call in one.tool_calls:
            found.append(replace(said, tool_calls=(call,)))
            said = ChatMessage("assistant", "")
            if call.id in results and call.id not in moved:
                found.append(results[call.id])
                moved.add(call.id)
    return tuple(found)


def words_before_calls(messages: Messages) -> Messages:
    """Split replies with words and calls: some templates write only one of the two."""
    found: list[ChatMessage] = []
    for one in messages:
        if one.tool_calls and one.content:
            found.append(replace(one, tool_calls=()))
            one = replace(one, content="", reasoning="")
        found.append(one)
    return tuple(found)


def answered_results(messages: Messages) -> Messages:
    """Insert a reply between results and a user turn: some templates demand one."""
    found: list[ChatMessage] = []
    for one in messages:
        if found and found[-1].role == "tool" and one.role == "user":
            found.append(ChatMessage("assistant", _NO_ANSWER))
        found.append(one)
    return tuple(found)


def user_first(messages: Messages, text: str) -> Messages:
    """Insert a user turn before a reply that begins the conversation."""
    at = next((index for index, one in enumerate(messages) if one.role != "system"), len(messages))
    if at < len(messages) and messages[at].role == "user":
        return messages
    return (*messages[:at], ChatMessage("user", text), *messages[at:])


def with_system(messages: Messages, text: str) -> Messages:
    """Put a system prompt in front of a conversation that has none."""
    if any(one.role == "system" for one in messages):
        return messages
    return (ChatMessage("system", text), *messages)


def _system_first(text: str) -> Arrangement:
    return lambda messages: with_system(messages, text)


def _user_turn_first(text: str) -> Arrangement:
    return lambda messages: user_first(alternating(messages), text)


def _then(first: Arrangement, second: Arrangement) -> Arrangement:
    return lambda messages: second(first(messages))


_ORDERS: tuple[Arrangement, ...] = (
    lambda messages: messages,
    alternating,
    *(_user_turn_first(text) for text in _OPENERS),
)
_WITHOUT_SYSTEM = tuple(_then(system_in_user, order) for order in _ORDERS)
ARRANGEMENTS: tuple[Arrangement, ...] = (
    *_ORDERS,
    *_WITHOUT_SYSTEM,
    *(_then(_system_first(text), order) for text in _SYSTEM_PROMPTS for order in _ORDERS),
)
"""Message orders to try, the given one first.

Some templates refuse a system message or drop it: it is put in front of the first user message. Some require
alternating roles: neighbours of one role are joined. Some require a user turn first, or a system prompt: an
empty one is inserted, or a neutral one where that is refused too.
"""


ARRANGEMENTS_WITH_TOOLS: tuple[Arrangement, ...] = (
    *ARRANGEMENTS,
    *(
        _then(first, order)
        for first in (
            answered_results,
            one_call_each,
            words_before_calls,
            _then(words_before_calls, one_call_each),
            _then(answered_results, _then(words_before_calls, one_call_each)),
        )
        for order in (*_ORDERS, *_WITHOUT_SYSTEM)
    ),
)
"""Message orders to try for chats with calls and results."""


def forms(messages: Sequence[ChatMessage]) -> list[Form]:
    """Content forms for the roles that occur: all text, all parts, then mixed."""
    present = [role for role in _ROLES if any(one.role == role for one in messages)]
    choices = [
        dict(zip(present, parts, strict=True)) for parts in product((False, True), repeat=len(present))
    ]
    return sorted(choices, key=lambda form: (len(set(form.values())) > 1, sum(form.values())))


def as_template_messages(
    messages: Sequence[ChatMessage], form: Form, tools: ToolForms | None = None
) -> list[dict[str, Any]]:
    """Messages as dicts for the template.

    Args:
        tools: Needed for calls and results.
    """
    found = []
    for one in messages:
        content: Any = [{"type": "text", "text": one.content}] if form[one.role] else one.content
        message: dict[str, Any] = {"role": one.role, "content": content}
        if one.reasoning:
            # ``thinking`` is what gpt-oss's template reads.
            message |= {"reasoning_content": one.reasoning, "thinking": one.reasoning}
        if tools is not None:
            message |= tools.fields(one)
        found.append(message)
    return found

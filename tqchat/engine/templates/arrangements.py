"""Role orders that chat templates insist on, and content as they want it: text or a list of parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from tqchat.engine.commands import ChatMessage, Role

Messages = tuple[ChatMessage, ...]
Arrangement = Callable[[Messages], Messages]
Form = dict[Role, bool]
"""Which roles get their content as a list of parts."""

_ROLES: tuple[Role, ...] = ("system", "user", "assistant")
_OPENERS = ("", "...")
"""What stands for a user turn before a reply that has none."""


def system_in_user(messages: Messages) -> Messages:
    """System prompts moved to the front of the first user message."""
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
    """Neighbours of the same role joined into one message."""
    joined: list[ChatMessage] = []
    for one in messages:
        if joined and joined[-1].role == one.role:
            joined[-1] = replace(one, content=f"{joined[-1].content}\n\n{one.content}")
        else:
            joined.append(one)
    return tuple(joined)


def user_first(messages: Messages, text: str) -> Messages:
    """A user turn before a reply that begins the conversation."""
    at = next((index for index, one in enumerate(messages) if one.role != "system"), len(messages))
    if at < len(messages) and messages[at].role == "user":
        return messages
    return (*messages[:at], ChatMessage("user", text), *messages[at:])


def _user_turn_first(text: str) -> Arrangement:
    return lambda messages: user_first(alternating(messages), text)


def _then(first: Arrangement, second: Arrangement) -> Arrangement:
    return lambda messages: second(first(messages))


_ORDERS: tuple[Arrangement, ...] = (
    lambda messages: messages,
    alternating,
    *(_user_turn_first(text) for text in _OPENERS),
)
ARRANGEMENTS: tuple[Arrangement, ...] = (*_ORDERS, *(_then(system_in_user, order) for order in _ORDERS))
"""Orders of the messages that strict templates take, the given one first.

Templates that refuse a system message (or leave it out) get it in front of the first user message; ones that
insist on alternating roles get neighbours of one role joined; ones that want the user to begin get an empty
user turn.
"""


def forms(messages: Sequence[ChatMessage]) -> list[Form]:
    """Every choice of text or parts for the roles that occur: all text first, then all parts, then mixed."""
    present = [role for role in _ROLES if any(one.role == role for one in messages)]
    choices = [
        dict(zip(present, parts, strict=True)) for parts in product((False, True), repeat=len(present))
    ]
    return sorted(choices, key=lambda form: (len(set(form.values())) > 1, sum(form.values())))


def as_template_messages(messages: Sequence[ChatMessage], form: Form) -> list[dict[str, Any]]:
    """What the template is given."""
    found = []
    for one in messages:
        content: Any = [{"type": "text", "text": one.content}] if form[one.role] else one.content
        told: dict[str, Any] = {"role": one.role, "content": content}
        if one.reasoning:
            # ``thinking`` is what gpt-oss's template reads.
            told |= {"reasoning_content": one.reasoning, "thinking": one.reasoning}
        found.append(told)
    return found

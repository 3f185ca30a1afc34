"""Summaries that replace the older messages of a conversation."""

from __future__ import annotations

from collections.abc import Sequence

from tqchat.engine.commands import ChatMessage
from tqchat.store.database import Message

ANSWER_MAX_TOKENS = 700
SUMMARY_HEADING = "This is what we said before, summed up:\n\n"
ACKNOWLEDGEMENT = "I will continue from there."
"""The assistant's message after the summary, so that roles alternate."""
_REQUEST = (
    "Summarise this conversation so that it can go on from your summary alone: facts, names, numbers, "
    "decisions, code that matters, and what is still open. Answer with the summary alone.\n\n"
)


def spoken(message: Message) -> str:
    """A message with its speaker, without the model's reasoning."""
    return f"{'User' if message.role == 'user' else 'Assistant'}: {message.content.strip()}"


def summary_request(messages: Sequence[Message]) -> tuple[ChatMessage, ...]:
    """The prompt for a summary. Repeated at the end: a long prompt's beginning may be cut."""
    transcript = "\n\n".join(spoken(message) for message in messages)
    return (ChatMessage("user", f"{_REQUEST}{transcript}\n\n{_REQUEST.strip()}"),)


def newest_messages(messages: Sequence[Message], characters: int) -> list[Message]:
    """The last messages that fit into so many characters, beginning with a user message.

    The last user message and its reply are always included, however long they are.
    """
    start = len(messages)
    total = 0
    for index in range(len(messages) - 1, -1, -1):
        total += len(messages[index].content)
        if total > characters and start < len(messages):
            break
        if messages[index].role == "user":
            start = index
    return list(messages[start:])

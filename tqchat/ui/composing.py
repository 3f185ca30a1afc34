"""What a model is asked to write about a conversation, and what is made of its answer."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tqchat.engine.commands import ChatMessage
from tqchat.store.database import Message
from tqchat.text import one_line
from tqchat.ui.widgets.chat.thinking import split

LEAST_WEIGHTS = 400_000_000
"""Bytes of weights below which a model's titles are worse than the first words: measured on the starter."""
TITLE_TOKENS, SUMMARY_TOKENS = 160, 700
"""The longest answers; a title's leaves room for a model that thinks first."""
LONGEST_TITLE, MOST_WORDS = 60, 10
_AROUND = " \"'“”‘’*_`#"
_EXCERPT = 1_500
_TITLE = "Write a title of two to six words for this conversation. Answer with the title alone.\n\n"
_SUMMARY = (
    "Summarise this conversation so that it can go on from your summary alone: facts, names, numbers, "
    "decisions, code that matters, and what is still open. Answer with the summary alone.\n\n"
)
SUMMED_UP = "This is what we said before, summed up:\n\n"
ACKNOWLEDGED = "I go on from there."


def title_request(messages: Sequence[Message]) -> tuple[ChatMessage, ...]:
    """What to ask for a title of these messages."""
    said = "\n\n".join(_line(message)[:_EXCERPT] for message in messages[:2])
    return (ChatMessage("user", _TITLE + said),)


def summary_request(messages: Sequence[Message]) -> tuple[ChatMessage, ...]:
    """What to ask for a summary of these messages. Said at the end as well: the beginning may be cut."""
    said = "\n\n".join(_line(message) for message in messages)
    return (ChatMessage("user", f"{_SUMMARY}{said}\n\n{_SUMMARY.strip()}"),)


def _line(message: Message) -> str:
    text = message.content if message.role == "user" else split(message.content)[1]
    return f"{'User' if message.role == 'user' else 'Assistant'}: {text.strip()}"


def title_from_answer(answer: str) -> str | None:
    """The title in a model's answer, if there is one that can stand in a list."""
    said = split(answer)[1].strip()
    line = one_line(said.partition("\n")[0])
    line = re.sub(r"^title:\s*", "", line.strip(_AROUND), flags=re.IGNORECASE)
    line = line.strip(_AROUND).rstrip(".")
    good = 2 <= len(line) <= LONGEST_TITLE and len(line.split()) <= MOST_WORDS
    return line if good else None


def summary_from_answer(answer: str) -> str:
    """The summary in a model's answer."""
    return split(answer)[1].strip()


def newest(messages: Sequence[Message], characters: int) -> list[Message]:
    """The last messages that fit into so many characters, from a message of the person's on.

    Always the last one, and the person's before it, however long they are.
    """
    start = len(messages)
    held = 0
    for index in range(len(messages) - 1, -1, -1):
        held += len(messages[index].content)
        if held > characters and start < len(messages):
            break
        if messages[index].role == "user":
            start = index
    return list(messages[start:])

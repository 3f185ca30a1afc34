"""Titles of conversations: from the first message, and from a model."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tqchat.engine.commands import ChatMessage
from tqchat.store.database import Message
from tqchat.text import one_line
from tqchat.ui.controller.texts.summaries import spoken

UNTITLED = "New conversation"
MESSAGE_TITLE_MAX_CHARACTERS = 48
MODEL_TITLE_MAX_CHARACTERS, MODEL_TITLE_MAX_WORDS = 60, 10
ANSWER_MAX_TOKENS = 160
"""Leaves room for a model that reasons first."""
_EXCERPT_CHARACTERS = 1_500
_DECORATION = " \"'“”‘’*_`#"
_REQUEST = "Write a title of two to six words for this conversation. Answer with the title alone.\n\n"


def title_from_message(text: str) -> str:
    """A title from the first line that is not blank, cut at a word."""
    words = next((line for line in text.splitlines() if line.strip()), "").split()
    title = ""
    for word in words:
        longer = f"{title} {word}".strip()
        if len(longer) > MESSAGE_TITLE_MAX_CHARACTERS:
            return (title or word[: MESSAGE_TITLE_MAX_CHARACTERS - 1]).rstrip(" ,.;:") + "…"
        title = longer
    return title or UNTITLED


def title_request(messages: Sequence[Message]) -> tuple[ChatMessage, ...]:
    """The prompt for a title, from the first two messages."""
    excerpt = "\n\n".join(spoken(message)[:_EXCERPT_CHARACTERS] for message in messages[:2])
    return (ChatMessage("user", _REQUEST + excerpt),)


def title_from_answer(answer: str) -> str | None:
    """The title in a model's answer; ``None`` if it is not fit for a list."""
    line = one_line(answer.strip().partition("\n")[0])
    line = re.sub(r"^title:\s*", "", line.strip(_DECORATION), flags=re.IGNORECASE)
    line = line.strip(_DECORATION).rstrip(".")
    fits = 2 <= len(line) <= MODEL_TITLE_MAX_CHARACTERS and len(line.split()) <= MODEL_TITLE_MAX_WORDS
    return line if fits else None

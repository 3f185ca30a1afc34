"""From stored messages to what the engine reads, and to a title."""

from __future__ import annotations

from collections.abc import Sequence

from tqchat.engine.commands import ChatMessage
from tqchat.store.database import Message

TITLE_LENGTH = 48
UNTITLED = "New conversation"


def for_engine(messages: Sequence[Message], system_prompt: str | None = None) -> tuple[ChatMessage, ...]:
    """The transcript as the chat template takes it.

    Many templates insist on turns that alternate. A reply that never came would leave two user turns in a
    row, so neighbours of the same role become one turn, and empty replies are left out.
    """
    turns = [ChatMessage("system", system_prompt)] if system_prompt else []
    for message in messages:
        if message.role == "assistant" and not message.content.strip():
            continue
        if turns and turns[-1].role == message.role:
            turns[-1] = ChatMessage(message.role, f"{turns[-1].content}\n\n{message.content}")
        else:
            turns.append(ChatMessage(message.role, message.content))
    return tuple(turns)


def title_from(text: str) -> str:
    """A conversation's first title: the first line that says something, cut at a word."""
    words = next((line for line in text.splitlines() if line.strip()), "").split()
    title = ""
    for word in words:
        longer = f"{title} {word}".strip()
        if len(longer) > TITLE_LENGTH:
            return (title or word[: TITLE_LENGTH - 1]).rstrip(" ,.;:") + "…"
        title = longer
    return title or UNTITLED


def as_markdown(messages: Sequence[Message], assistant: str) -> str:
    """The transcript for people: a heading for each message, its words as they were written."""
    return "\n\n".join(
        f"**{'you' if message.role == 'user' else message.model or assistant}**\n\n{message.content.strip()}"
        for message in messages
        if message.role != "system"
    )


def code_blocks(markdown: str) -> list[tuple[str, str]]:
    """The blocks of code in a text: language (or nothing) and code of each."""
    from markdown_it import MarkdownIt

    tokens = MarkdownIt().disable("inline").parse(markdown)
    blocks = [token for token in tokens if token.type in ("fence", "code_block")]
    return [(token.info.strip().partition(" ")[0], token.content.rstrip("\n")) for token in blocks]


def last_user(messages: Sequence[Message]) -> int | None:
    """The index of the last user message, if there is one."""
    for index in range(len(messages) - 1, -1, -1):
        if messages[index].role == "user":
            return index
    return None

"""Transcripts for the engine and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from tqchat.engine.commands import ChatMessage
from tqchat.store.database import Message


def for_engine(messages: Sequence[Message], system_prompt: str | None = None) -> tuple[ChatMessage, ...]:
    """The messages for the chat template.

    Many templates require alternating roles. An unanswered message would leave two user messages in a row, so
    neighbours of the same role are joined, and empty replies are left out. A last reply that is only
    reasoning stays, so that it can be continued.
    """
    turns = [ChatMessage("system", system_prompt)] if system_prompt else []
    for message in messages:
        thought = message.reasoning or ""
        can_go_on = message is messages[-1] and thought
        if message.role == "assistant" and not message.content.strip() and not can_go_on:
            continue
        if turns and turns[-1].role == message.role:
            joined = "\n\n".join(text for text in (turns[-1].content, message.content) if text)
            turns[-1] = ChatMessage(message.role, joined, turns[-1].reasoning or thought)
        else:
            turns.append(ChatMessage(message.role, message.content, thought))
    return tuple(turns)


def as_markdown(messages: Sequence[Message], assistant: str) -> str:
    """The transcript as Markdown with a heading for each message; ``assistant`` names unnamed models."""
    return "\n\n".join(
        f"**{'you' if message.role == 'user' else message.model or assistant}**\n\n{message.content.strip()}"
        for message in messages
        if message.role != "system"
    )


def code_blocks(markdown: str) -> list[tuple[str, str]]:
    """Language (may be empty) and code of each code block."""
    # Imported late: the parser is not needed to draw an empty chat.
    from tqchat.ui.markdown.parser import block_parser

    tokens = block_parser().parse(markdown)
    blocks = [token for token in tokens if token.type in ("fence", "code_block")]
    return [(token.info.strip().partition(" ")[0], token.content.rstrip("\n")) for token in blocks]


def tables(markdown: str) -> list[str]:
    """Each table as lines of cells separated by tabs (TSV)."""
    from tqchat.ui.widgets.chat.blocks import tables as parsed

    return [
        "\n".join("\t".join(" ".join(cell.plain.split()) for cell in row) for row in table.rows)
        for table in parsed(markdown)
    ]


def last_user_index(messages: Sequence[Message]) -> int | None:
    """The index of the last user message, if there is one."""
    for index in range(len(messages) - 1, -1, -1):
        if messages[index].role == "user":
            return index
    return None

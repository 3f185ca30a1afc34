"""Transcripts for the engine and for people."""

from __future__ import annotations

from dataclasses import replace

from tqchat.engine.commands import ChatMessage
from tqchat.store.database import Message
from tqchat.ui.controller.texts.transcript import as_markdown, code_blocks, for_engine, last_user_index

QUESTION = Message("q", "c", None, "user", "Why?", "complete", 0.0)
REPLY = Message("r", "c", "q", "assistant", "Because.", "complete", 0.0, model="tiny")


def test_the_engine_gets_alternating_roles() -> None:
    empty = replace(REPLY, content=" ")
    again = replace(QUESTION, content="Hello?")
    assert for_engine([QUESTION, empty, again, REPLY], "Be brief.") == (
        ChatMessage("system", "Be brief."),
        ChatMessage("user", "Why?\n\nHello?"),
        ChatMessage("assistant", "Because."),
    )


def test_markdown_names_the_speakers() -> None:
    unnamed = replace(REPLY, model=None)
    system = replace(QUESTION, role="system")
    assert as_markdown([system, QUESTION, REPLY, unnamed], "assistant") == (
        "**you**\n\nWhy?\n\n**tiny**\n\nBecause.\n\n**assistant**\n\nBecause."
    )


def test_code_blocks_have_a_language_and_code() -> None:
    text = "Text\n\n```python title\nprint(1)\n```\n\n    indented\n"
    assert code_blocks(text) == [("python", "print(1)"), ("", "indented")]


def test_the_last_user_message_is_found() -> None:
    assert last_user_index([QUESTION, REPLY]) == 0
    assert last_user_index([REPLY]) is None

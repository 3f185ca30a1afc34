"""Splits a reply's text into reasoning and answer."""

from __future__ import annotations

import re

from tqchat.store.database import Message
from tqchat.text import stable_width

TAGS = ("think", "thinking", "thought", "reasoning", "longcat_think", "seed:think")
"""Names of reasoning tags. Markers that are special tokens do not reach the text."""

_OPEN = re.compile(rf"\s*<({'|'.join(TAGS)})>\n?")
_STARTS = tuple(f"<{tag}>" for tag in TAGS)
_CLOSE = re.compile(rf"</({'|'.join(TAGS)})>\s*")


def split(text: str) -> tuple[str, str]:
    """Reasoning and answer of a complete reply.

    Some chat templates write the opening tag: then the text has only the closing one.
    """
    opening = _OPEN.match(text)
    start = opening.end() if opening else 0
    closing = _CLOSE.search(text, start)
    if closing is None:
        return (text[start:].rstrip(), "") if opening else ("", text)
    if opening is None and "<" + closing[1] + ">" in text[: closing.start()]:
        return "", text  # the answer mentions the tags
    return text[start : closing.start()].rstrip(), text[closing.end() :]


def parts(message: Message) -> tuple[str, str]:
    """Reasoning and answer of a stored reply."""
    if message.reasoning:
        return stable_width(message.reasoning), stable_width(message.content)
    return split(stable_width(message.content))


class Splitter:
    """``split`` for streamed text."""

    def __init__(self) -> None:
        self._held = ""
        self._state = "start"
        self._close = ""

    @property
    def thinking(self) -> bool:
        """Whether reasoning has begun and not ended."""
        return self._state == "thinking"

    def feed(self, piece: str) -> tuple[str, str]:
        """Add text; returns its reasoning part and its answer part."""
        if self._state == "answer":
            return "", piece
        self._held += piece
        if self._state == "start":
            opening = _OPEN.match(self._held)
            if opening is None:
                begun = self._held.lstrip()
                if any(start.startswith(begun) for start in _STARTS):
                    return "", ""
                self._state = "answer"
                return "", self._take(len(self._held))
            self._state, self._close = "thinking", f"</{opening[1]}>"
            self._held = self._held[opening.end() :]
        at = self._held.find(self._close)
        if at < 0:
            keep = next(
                (n for n in range(len(self._close) - 1, 0, -1) if self._held.endswith(self._close[:n])), 0
            )
            return self._take(len(self._held) - keep), ""
        thought = self._take(at)
        self._state = "answer"
        return thought, self._take(len(self._held))[len(self._close) :].lstrip()

    def _take(self, count: int) -> str:
        taken, self._held = self._held[:count], self._held[count:]
        return taken

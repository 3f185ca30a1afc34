"""Control tokens of tool calls, which are text to the parser of calls."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tqchat.engine.reasoning.splitter import Span

if TYPE_CHECKING:
    from tqchat.engine.reasoning.stream import ReplyFormat


class CallTokens:
    """Follows the answer of a reply, to tell where a call begins and ends.

    Attributes:
        start, end: The marks around a call; without an end mark, a call ends with the reply.
        inside: Whether a call has begun and not ended.
    """

    def __init__(self, format: ReplyFormat, start: str, end: str) -> None:
        self.start, self.end = start, end
        self.inside = False
        self._format = format
        self._texts = {token: text for text, token in format.controls.added.items()}
        self._tail = ""

    def control(self, token: int) -> str | None:
        """The text of a control token that belongs to a call; ``None`` for other tokens."""
        format = self._format
        is_mark = format.controls.character(token) is not None
        if not is_mark and token not in format.special:
            return None
        text = self._texts.get(token)
        if self.inside or text is None:
            return text
        return text if not is_mark and (text in self.start or text in self.end) else None

    def follow(self, spans: Iterable[Span]) -> None:
        """Note the text that was added to the answer."""
        for span in spans:
            if span.part == "answer":
                self._follow(span.text)

    def _follow(self, text: str) -> None:
        self._tail += text
        while True:
            mark = self.end if self.inside else self.start
            at = self._tail.find(mark) if mark else -1
            if at < 0:
                break
            self._tail = self._tail[at + len(mark) :]
            self.inside = not self.inside
        keep = max(len(self.start), len(self.end))
        self._tail = self._tail[-keep:]

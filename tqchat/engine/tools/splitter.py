"""Splits the answer of a reply into text and calls of tools."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tqchat.engine.commands import ToolCall
from tqchat.engine.templates.call_formats import ToolFormat
from tqchat.engine.tools.parsing import parsed_calls

MAX_CALL = 1 << 16
"""Characters of a call: some parsers take time in proportion to the square."""

_NAME_WITHIN = 64
"""Characters within which a reply that is a call without marks has its name."""
_NO_QUOTE = re.compile(r'\\.|[^"\\]++', re.DOTALL)

Piece = str | ToolCall


class ToolCallSplitter:
    """Text that may be the beginning of a call is held back. What is no call after all is text.

    White space around calls is dropped: chat templates write their own.
    """

    def __init__(self, format: ToolFormat, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        self._format, self._tools = format, tools
        self.calls = 0
        self._end = format.end
        self._space = ""
        self._buffer = ""
        self._inside = False
        self._without_mark = False
        self._searched = 0
        self._begun = False
        self._in_text = False
        self._in_string = False
        self._quotes_at = 0

    def feed(self, text: str) -> list[Piece]:
        """Add text of the answer; returns what no later text can change."""
        self._buffer += text
        return _joined(self._pieces())

    def finish(self, cut: bool = False) -> list[Piece]:
        """End the reply; returns what was held back.

        Args:
            cut: Whether the reply was cut off: a call without its end mark is then text.
        """
        found = self._pieces()
        while self._inside:
            body, complete = self._buffer, not self._format.end or not cut
            calls = self._parsed(body) if complete and len(body) <= MAX_CALL else []
            if calls:
                found += calls
                self._inside, self._buffer, self._space = False, "", ""
            else:
                found += self._begin_later(len(body)) or self._give_up(len(body))
        if self._buffer or not self.calls:
            found.append(self._space + self._buffer)
        self._buffer = self._space = ""
        return _joined(found)

    def _pieces(self) -> list[Piece]:
        found: list[Piece] = []
        while True:
            step = self._call_step() if self._inside else self._text_step()
            if step is None:
                return found
            found += step

    def _text_step(self) -> list[Piece] | None:
        """Outside calls; ``None`` if more text is needed first."""
        start = self._format.start
        if not self._begun and self._format.is_whole_reply:
            said = self._buffer.lstrip()
            if not said:
                return None
            self._begun = True
            if said[0] == "{":
                self._space = self._buffer[: len(self._buffer) - len(said)]
                self._begin(said)
                self._without_mark = True
                return []
        at = self._buffer.find(start, 0)
        if at >= 0:
            text = self._space + self._buffer[:at]
            kept = text.rstrip()
            self._space = text[len(kept) :]
            self._begin(self._buffer[at + len(start) :])
            return [kept]
        keep = _begun_at(self._buffer, start)
        text = self._space + self._buffer[:keep]
        self._buffer = self._buffer[keep:]
        kept = text.rstrip()
        self._space = text[len(kept) :]
        return [kept] if kept else None

    def _call_step(self) -> list[Piece] | None:
        """Inside a call; ``None`` if more text is needed first."""
        if (
            self._without_mark
            and len(self._buffer) > _NAME_WITHIN
            and '"name"' not in self._buffer[:_NAME_WITHIN]
        ):
            return self._give_up()
        end = self._format.end
        at = self._buffer.find(end, self._searched) if end else -1
        if at < 0:
            self._searched = max(0, len(self._buffer) - len(end) + 1)
            return self._give_up() if len(self._buffer) > MAX_CALL else None
        if at > MAX_CALL:
            return self._give_up()
        if self._is_in_string(at):
            self._searched = at + len(end)
            return []
        body = self._buffer[:at]
        calls = self._parsed(body)
        if not calls:
            return self._begin_later(at) or self._give_up(at + len(end))
        self._buffer = self._buffer[at + len(end) :]
        self._inside, self._space = False, ""
        return list(calls)

    def _is_in_string(self, at: int) -> bool:
        """Whether the end mark at this place is in a text of a JSON object."""
        if not self._buffer.lstrip().startswith("{"):
            return False
        self._in_string ^= _NO_QUOTE.sub("", self._buffer[self._quotes_at : at]).count('"') % 2 == 1
        self._quotes_at = at
        return self._in_string

    def _begin(self, rest: str) -> None:
        self._inside, self._without_mark, self._begun = True, False, True
        self._buffer, self._searched, self._in_string, self._quotes_at = rest, 0, False, 0

    def _give_up(self, length: int = 0) -> list[Piece]:
        """What seemed a call is text: its mark and this many characters, the rest is looked at again."""
        mark = "" if self._without_mark else self._format.start
        text = self._space + mark + self._buffer[:length]
        self._buffer = self._buffer[length:]
        self._inside, self._without_mark, self._space = False, False, ""
        return [text]

    def _begin_later(self, end: int) -> list[Piece]:
        """Take the last start mark before ``end`` for that of the call: the one before was mentioned only."""
        start = self._format.start
        at = self._buffer.rfind(start, 0, end)
        if at < 0:
            return []
        mark = "" if self._without_mark else start
        text = self._space + mark + self._buffer[:at]
        kept = text.rstrip()
        self._space = text[len(kept) :]
        self._begin(self._buffer[at + len(start) :])
        return [kept]

    def _parsed(self, body: str) -> list[ToolCall]:
        calls = parsed_calls(self._format.parser, body, self._tools)
        self.calls += len(calls)
        return calls


def _begun_at(text: str, mark: str) -> int:
    """Index from which the end of a text may be the beginning of a mark; its length if none."""
    for at in range(max(0, len(text) - len(mark) + 1), len(text)):
        if mark.startswith(text[at:]):
            return at
    return len(text)


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Neighbouring texts as one, without empty ones."""
    found: list[Piece] = []
    for one in pieces:
        if isinstance(one, str) and found and isinstance(before := found[-1], str):
            found[-1] = before + one
        elif one:
            found.append(one)
    return found

"""Incremental Markdown: complete blocks are parsed once, only the last is parsed again with each piece."""

from __future__ import annotations

import re
from dataclasses import replace

from textual.content import Content

from tqchat.ui.widgets.chat.blocks import (
    Block,
    Code,
    Items,
    Paragraph,
    blocks_with_lines,
    code,
    last_item_line,
)
from tqchat.ui.widgets.chat.inline import MAX_INLINE_CHARACTERS

MAX_OPEN_LINES = 40
"""Lines above which the beginning of an unfinished list or code block counts as complete."""
_FENCE = re.compile(r"( *)(?:`{3,}|~{3,})(.*)")
_PARAGRAPH_ENDS = re.compile(r"\n[ \t]*\n")


class Stream:
    """Splits streamed text into complete blocks and the last ones, which can still change.

    A complete line can only change the last block of a document. The line that is being written may turn out
    to belong to the block before it: ``2`` after an empty line to a list, when it becomes ``2. two``. So may
    a formula that is not closed. Only what can change is kept as text. A very long block is cut between lines
    of code, list items or words.
    """

    def __init__(self) -> None:
        self.source = ""
        self._rest = ""
        self._continues = self._plain = self._gap = False
        self._next: int | None = None
        """The number of the first item in the rest, if the list that was cut has counted numbers."""

    def feed(self, text: str) -> tuple[list[Block], list[Block]]:
        """Add text; returns newly complete blocks, and those that may still change (two at most)."""
        self.source += text
        self._rest += text
        done: list[Block] = []
        while True:
            if self._plain:
                done += self._plain_blocks()
                if self._rest and self._plain:
                    return done, [Paragraph(Content(self._rest), continues=True)]
            found = blocks_with_lines(self._rest)
            if not found:
                return done, []
            lines = [line for line, _ in found]
            found_blocks = [self._joined(found[0][1]), *(block for _, block in found[1:])]
            is_written = lines[-1] == self._rest.count("\n")
            is_open = len(found) > 1 and (is_written or getattr(found[-1][1], "is_open", False))
            keep = len(found) - (2 if is_open else 1)
            if keep:
                done += found_blocks[:keep]
                self._rest = _from_line(self._rest, lines[keep])
                self._continues = False
            if is_open:
                return done, found_blocks[keep:]
            self._rest = _from_line(self._rest, 0 if keep else lines[0])
            if (beginning := self._cut(found_blocks[-1])) is None:
                return done, found_blocks[-1:]
            done.append(beginning)
            self._continues = True

    def _joined(self, block: Block) -> Block:
        """The block, marked as a continuation if its beginning was cut off."""
        if not self._continues:
            return block
        if isinstance(block, Items):
            first, *others = block.items
            items = (replace(first, gap=self._gap), *others)
            if self._next is not None:
                items = tuple(
                    replace(item, marker=number, written=number)
                    for index, item in enumerate(items)
                    for number in [f"{self._next + index}{item.marker[-1]}"]
                )
            return replace(block, items=items, continues=True)
        return replace(block, continues=True) if isinstance(block, Code) else block

    @property
    def _long(self) -> bool:
        return self._rest.count("\n") > MAX_OPEN_LINES + 1

    def _cut(self, last: Block) -> Block | None:
        """Cut off the beginning of a block that has grown too long; the rest stays as text."""
        match last:
            case Code() if self._long and (opening := _FENCE.match(self._rest)):
                first, *lines = self._rest.split("\n")
                body = [line.removeprefix(opening[1]) for line in lines[:MAX_OPEN_LINES]]
                self._rest = "\n".join([first, *lines[MAX_OPEN_LINES:]])
                return code("\n".join(body), opening[2], last.continues)
            case Items() if self._long and len(last.items) > 1:
                *items, kept = last.items
                self._gap = kept.gap
                is_counted = last.counted or (last.continues and self._next is not None)
                self._next = int(kept.marker.split()[0][:-1]) if is_counted else None
                self._rest = _from_line(self._rest, last_item_line(self._rest))
                return replace(last, items=tuple(items))
            case Paragraph() if len(self._rest) > MAX_INLINE_CHARACTERS:
                # As in blocks(): so long a paragraph is not parsed for inline markup.
                self._plain = True
                return self._words(continues=False)
        return None

    def _plain_blocks(self) -> list[Block]:
        """Complete parts of a paragraph that is too long for inline parsing."""
        done: list[Block] = []
        end = _PARAGRAPH_ENDS.search(self._rest)
        while len(self._rest) > MAX_INLINE_CHARACTERS and (
            end is None or end.start() > MAX_INLINE_CHARACTERS
        ):
            done.append(self._words(continues=True))
            end = _PARAGRAPH_ENDS.search(self._rest)
        if end is not None:
            done.append(Paragraph(Content(self._rest[: end.start()]), continues=True))
            self._rest = self._rest[end.end() :]
            self._plain = self._continues = False
        return done

    def _words(self, continues: bool) -> Block:
        """Remove up to ``MAX_INLINE_CHARACTERS / 2`` characters from the rest, and return them as a block."""
        half = MAX_INLINE_CHARACTERS // 2
        at = self._rest.rfind(" ", 0, half) + 1 or half
        words, self._rest = self._rest[:at], self._rest[at:]
        return Paragraph(Content(words), continues=continues)


def _from_line(text: str, line: int) -> str:
    """The text from line ``line`` (from 0) on."""
    at = 0
    for _ in range(line):
        at = text.index("\n", at) + 1
    return text[at:]

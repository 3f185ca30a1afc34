"""Incremental Markdown: complete blocks are parsed once, only the last is parsed again with each piece."""

from __future__ import annotations

import re
from dataclasses import replace

from textual.content import Content

from tqchat.ui.widgets.chat.blocks import (
    MAX_INLINE_CHARACTERS,
    Block,
    Code,
    Env,
    Items,
    Paragraph,
    blocks_with_lines,
    code,
    last_item_line,
)

MAX_OPEN_LINES = 40
"""Lines above which the beginning of an unfinished list or code block counts as complete."""
_FENCE = re.compile(r"( *)(?:`{3,}|~{3,})(.*)")
_PARAGRAPH_ENDS = re.compile(r"\n[ \t]*\n")


class Stream:
    """Splits streamed text into complete blocks and the last, still changing one.

    More text can only change the last block of a document, so only that one is kept as text. A very long one
    is cut between lines of code, list items or words.
    """

    def __init__(self) -> None:
        self.source = ""
        self._rest = ""
        self._env: Env = {}
        self._continues = self._plain = self._loose = False
        self._next: int | None = None

    @property
    def has_link_references(self) -> bool:
        """Whether the text defines link references, which change links in earlier blocks."""
        return bool(self._env.get("references"))

    def feed(self, text: str) -> tuple[list[Block], list[Block]]:
        """Add text; returns newly complete blocks, and the block that may still change (one or none)."""
        self.source += text
        self._rest += text
        done: list[Block] = []
        while True:
            if self._plain:
                done += self._plain_blocks()
                if self._rest and self._plain:
                    return done, [Paragraph(Content(self._rest), continues=True)]
            found = blocks_with_lines(self._rest, self._env)
            if not found:
                return done, []
            *before, last = [block for _, block in found]
            self._rest = _from_line(self._rest, found[-1][0])
            if before:
                done += [self._joined(before[0]), *before[1:]]
                self._continues = False
            last = self._joined(last)
            if (beginning := self._cut(last)) is None:
                return done, [last]
            done.append(beginning)
            self._continues = True

    def _joined(self, block: Block) -> Block:
        """The block, marked as a continuation if its beginning was cut off."""
        if not self._continues:
            return block
        if isinstance(block, Items):
            markers = block.markers
            if self._next is not None:
                markers = tuple(f"{self._next + index}." for index in range(len(markers)))
            return replace(block, continues=True, loose=block.loose or self._loose, markers=markers)
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
                self._loose = last.loose
                number = last.markers[-1].removesuffix(".")
                self._next = int(number) if number.isdecimal() else None
                self._rest = _from_line(self._rest, last_item_line(self._rest))
                return replace(last, markers=last.markers[:-1], items=last.items[:-1])
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

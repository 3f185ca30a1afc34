"""Markdown that arrives in pieces: what is complete is parsed once, only its end again and again."""

from __future__ import annotations

import re
from dataclasses import replace

from textual.content import Content

from tqchat.ui.widgets.chat.blocks import (
    LONGEST_INLINE,
    Block,
    Code,
    Env,
    Items,
    Paragraph,
    code,
    last_item,
    placed,
)

LONGEST_OPEN = 40
"""Lines of an unfinished list or block of code that are parsed with every piece; those before are not."""
_FENCE = re.compile(r"( *)(?:`{3,}|~{3,})(.*)")
_PARAGRAPH_ENDS = re.compile(r"\n[ \t]*\n")


class Stream:
    """Takes text and tells which blocks are complete, and how the rest looks so far.

    More text can only change the last block of a document, so that one alone is kept as text. A very long one
    is cut: between lines of code, between items, between words.
    """

    def __init__(self) -> None:
        self.source = ""
        self._rest = ""
        self._env: Env = {}
        self._goes_on = self._plain = self._loose = False
        self._next: int | None = None

    @property
    def has_names(self) -> bool:
        """Whether links were given names: those that were used before that look different now."""
        return bool(self._env.get("references"))

    def feed(self, text: str) -> tuple[list[Block], list[Block]]:
        """The blocks that are complete now, and the one that may still change (a list of one or none)."""
        self.source += text
        self._rest += text
        done: list[Block] = []
        while True:
            if self._plain:
                done += self._plain_blocks()
                if self._rest and self._plain:
                    return done, [Paragraph(Content(self._rest), goes_on=True)]
            found = placed(self._rest, self._env)
            if not found:
                return done, []
            *before, last = [block for _, block in found]
            self._rest = _from_line(self._rest, found[-1][0])
            if before:
                done += [self._joined(before[0]), *before[1:]]
                self._goes_on = False
            last = self._joined(last)
            if (beginning := self._cut(last)) is None:
                return done, [last]
            done.append(beginning)
            self._goes_on = True

    def _joined(self, block: Block) -> Block:
        """The block, as the rest of what was cut before it if it is that."""
        if not self._goes_on:
            return block
        if isinstance(block, Items):
            markers = block.markers
            if self._next is not None:
                markers = tuple(f"{self._next + index}." for index in range(len(markers)))
            return replace(block, goes_on=True, loose=block.loose or self._loose, markers=markers)
        return replace(block, goes_on=True) if isinstance(block, Code) else block

    @property
    def _long(self) -> bool:
        return self._rest.count("\n") > LONGEST_OPEN + 1

    def _cut(self, last: Block) -> Block | None:
        """The beginning of a block that has grown too long; what remains as text is the rest of it."""
        match last:
            case Code() if self._long and (opening := _FENCE.match(self._rest)):
                first, *lines = self._rest.split("\n")
                body = [line.removeprefix(opening[1]) for line in lines[:LONGEST_OPEN]]
                self._rest = "\n".join([first, *lines[LONGEST_OPEN:]])
                return code("\n".join(body), opening[2], last.goes_on)
            case Items() if self._long and len(last.items) > 1:
                self._loose = last.loose
                number = last.markers[-1].removesuffix(".")
                self._next = int(number) if number.isdecimal() else None
                self._rest = _from_line(self._rest, last_item(self._rest))
                return replace(last, markers=last.markers[:-1], items=last.items[:-1])
            case Paragraph() if len(self._rest) > LONGEST_INLINE:
                # As the whole document would have it: no marks are looked for in so long a paragraph.
                self._plain = True
                return self._words(goes_on=False)
        return None

    def _plain_blocks(self) -> list[Block]:
        """What is complete of a paragraph that is too long to be looked into."""
        done: list[Block] = []
        end = _PARAGRAPH_ENDS.search(self._rest)
        while len(self._rest) > LONGEST_INLINE and (end is None or end.start() > LONGEST_INLINE):
            done.append(self._words(goes_on=True))
            end = _PARAGRAPH_ENDS.search(self._rest)
        if end is not None:
            done.append(Paragraph(Content(self._rest[: end.start()]), goes_on=True))
            self._rest = self._rest[end.end() :]
            self._plain = self._goes_on = False
        return done

    def _words(self, goes_on: bool) -> Block:
        """The first few thousand characters of the rest, which are taken from it."""
        half = LONGEST_INLINE // 2
        at = self._rest.rfind(" ", 0, half) + 1 or half
        words, self._rest = self._rest[:at], self._rest[at:]
        return Paragraph(Content(words), goes_on=goes_on)


def _from_line(text: str, line: int) -> str:
    """The text from its ``line`` on, counted from 0."""
    at = 0
    for _ in range(line):
        at = text.index("\n", at) + 1
    return text[at:]

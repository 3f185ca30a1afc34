"""Parses Markdown into blocks, independent of the width that they are drawn in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from markdown_it.token import Token
from textual.content import Content

from tqchat.text import one_line
from tqchat.ui.markdown import latex
from tqchat.ui.markdown.parser import block_parser
from tqchat.ui.widgets.chat.highlighting import highlighted
from tqchat.ui.widgets.chat.inline import inline

_LINE_BREAK = re.compile(r"\r\n?|\n")


@dataclass(frozen=True)
class Paragraph:
    """Wrapped text.

    ``continues``: it continues the block before it. ``is_open``: a formula that is not closed yet. ``aside``:
    it is about the message and no part of it.
    """

    content: Content
    continues: bool = False
    is_open: bool = False
    aside: bool = False


@dataclass(frozen=True)
class Line:
    """A line without space around it, such as a message's heading or footer. ``aside`` as for a paragraph."""

    content: Content
    aside: bool = False


@dataclass(frozen=True)
class Code:
    """Preformatted lines. ``continues`` as for a paragraph."""

    content: Content
    label: str = ""
    continues: bool = False


@dataclass(frozen=True)
class Quote:
    """A block quote."""

    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Item:
    """An item of a list.

    Attributes:
        marker: Its sign or number on the screen.
        written: The marker as it was written.
        gap: Whether an empty line separates it from the item before.
        spaced: Whether empty lines separate its blocks.
    """

    marker: str
    written: str
    blocks: tuple[Block, ...]
    gap: bool = False
    spaced: bool = False


@dataclass(frozen=True)
class Items:
    """A list. ``counted``: its numbers are counted, not those written. ``continues`` as for a paragraph."""

    items: tuple[Item, ...]
    counted: bool = False
    continues: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells, the first ``heads`` of them headers; ``aligns`` has one of ``<^>`` per column."""

    rows: tuple[tuple[Content, ...], ...]
    heads: int
    aligns: str


@dataclass(frozen=True)
class Rule:
    """A horizontal rule."""


Block = Paragraph | Line | Code | Quote | Items | Table | Rule


def separated(before: Block, block: Block) -> bool:
    """Whether two blocks are separated by an empty line."""
    return not (isinstance(before, Line) or isinstance(block, Line) or getattr(block, "continues", False))


def blocks(markdown: str) -> list[Block]:
    """The blocks of a whole document."""
    return [block for _, block in blocks_with_lines(markdown)]


def blocks_with_lines(markdown: str) -> list[tuple[int, Block]]:
    """Blocks of a document or a part of it, each with its first line (from 0)."""
    tokens = block_parser().parse(markdown)
    lines = _LINE_BREAK.split(markdown)
    return [(_first_line(part[0]), block) for part in _parts(tokens) for block in _block(part, lines)]


def tables(markdown: str) -> list[Table]:
    """All tables of a document, those in lists and quotes too."""
    tokens = block_parser().parse(markdown)
    opened = [index for index, token in enumerate(tokens) if token.type == "table_open"]
    return [_table(next(iter(_parts(tokens[index:])))[1:-1]) for index in opened]


def last_item_line(markdown: str) -> int:
    """First line (from 0) of the last item of the list at the start of a text."""
    tokens = block_parser().parse(markdown)
    items = (token for token in tokens if token.type == "list_item_open" and token.level == 1)
    return max(item.map[0] for item in items if item.map)


def code(text: str, info: str = "", continues: bool = False) -> Code:
    """A code block, highlighted if its language is known."""
    language = info.split()[0].strip("{.}") if info.strip() else ""
    return Code(highlighted(text.removesuffix("\n"), language), one_line(info), continues)


def _parts(tokens: Sequence[Token]) -> Iterator[Sequence[Token]]:
    """The tokens of each block, up to the one that closes it."""
    begin = depth = 0
    for index, token in enumerate(tokens):
        depth += token.nesting
        if depth == 0:
            yield tokens[begin : index + 1]
            begin = index + 1


def _first_line(token: Token) -> int:
    return token.map[0] if token.map else 0


def _blocks(tokens: Sequence[Token], lines: Sequence[str], depth: int) -> tuple[Block, ...]:
    return tuple(block for part in _parts(tokens) for block in _block(part, lines, depth))


def _block(tokens: Sequence[Token], lines: Sequence[str], depth: int = 0) -> Iterator[Block]:
    """Convert the tokens of one block; ``depth`` is the nesting depth of lists."""
    first, inside = tokens[0], tokens[1:-1]
    match first.type:
        case "paragraph_open":
            yield Paragraph(inline(inside[0].content))
        case "heading_open":
            style = {"h1": "bold underline $accent", "h2": "bold $accent"}.get(first.tag, "bold")
            yield Paragraph(inline(inside[0].content).stylize(style))
        case "fence" | "code_block":
            yield code(first.content, first.info)
        case latex.BLOCK:
            yield Paragraph(Content(first.content), is_open=first.info == latex.OPEN)
        case "blockquote_open":
            yield Quote(_blocks(inside, lines, depth))
        case "bullet_list_open" | "ordered_list_open":
            yield _list(inside, lines, depth)
        case "table_open":
            yield _table(inside)
        case "hr":
            yield Rule()


def _list(tokens: Sequence[Token], lines: Sequence[str], depth: int) -> Items:
    parts = list(_parts(tokens))
    numbers = [int(part[0].info or 1) for part in parts]
    # Who writes 1. 1. 1. wants the items to be counted; other numbers may mean something.
    counted = bool(parts[0][0].info) and len(numbers) > 1 and numbers[0] == numbers[1]
    items = []
    for index, part in enumerate(parts):
        number = str(numbers[0] + index) if counted else part[0].info
        item = _item(part, lines, depth, number)
        items.append(replace(item, gap=index > 0 and _is_blank(lines, _first_line(part[0]) - 1)))
    return Items(tuple(items), counted)


def _item(tokens: Sequence[Token], lines: Sequence[str], depth: int, number: str) -> Item:
    opening, inside = tokens[0], tokens[1:-1]
    found = _blocks(inside, lines, depth + 1)
    starts = [_first_line(part[0]) for part in _parts(inside)][1:]
    spaced = any(_is_blank(lines, start - 1) for start in starts)
    is_ordered = bool(number)
    marker = f"{number}{opening.markup}" if is_ordered else "•◦▪"[depth % 3]
    written = marker if is_ordered else opening.markup
    if found and isinstance(found[0], Paragraph) and found[0].content.plain[:4] in ("[ ] ", "[x] ", "[X] "):
        first = found[0].content
        box = "☐" if first.plain[1] == " " else "☑"
        marker, written = f"{marker} {box}" if is_ordered else box, f"{written} {first.plain[:3]}"
        found = (replace(found[0], content=first[4:]), *found[1:])
    return Item(marker, written, found, spaced=spaced)


def _is_blank(lines: Sequence[str], line: int) -> bool:
    """Whether a source line is empty, in a quote too."""
    return not lines[line].strip(" \t>")


def _table(tokens: Sequence[Token]) -> Table:
    rows: list[list[Content]] = []
    heads = 0
    aligns: list[str] = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "th_open":
            wanted = str(token.attrs.get("style", ""))
            aligns.append(">" if "right" in wanted else "^" if "center" in wanted else "<")
        elif token.type == "inline" and rows:
            # A tab has no width of its own, of which columns are made.
            rows[-1].append(inline(token.content.replace("\t", " ")))
        elif token.type == "thead_close":
            heads = len(rows)
    return Table(tuple(tuple(row) for row in rows), heads, "".join(aligns))

"""Markdown as plain blocks, before anything is known of the width that they are drawn in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token
from textual.content import Content
from textual.highlight import highlight

LONGEST_INLINE = 6_000
"""Characters of one paragraph or cell in which marks are looked for: beyond that it is plain text.

Looking for links and emphasis takes time that grows with the square of what is there."""
LONGEST_CODE = 40_000
"""Characters of one block of code that are coloured."""
_SCHEME = re.compile(r"\Ahttps?://|\Amailto:")
_INLINE = {"em_open": "italic", "strong_open": "bold", "s_open": "strike", "link_open": "underline"}


@dataclass(frozen=True)
class Paragraph:
    """Words that are wrapped. ``goes_on``: the block before it is its beginning."""

    content: Content
    goes_on: bool = False


@dataclass(frozen=True)
class Line:
    """What stands directly above or below its neighbours: who speaks, how it went."""

    content: Content


@dataclass(frozen=True)
class Code:
    """Lines that stay as they are. ``goes_on`` as for a paragraph."""

    content: Content
    language: str = ""
    goes_on: bool = False


@dataclass(frozen=True)
class Quote:
    """Somebody else's words."""

    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Items:
    """A list: what stands before each item, and the item. ``goes_on`` as for a paragraph."""

    markers: tuple[str, ...]
    items: tuple[tuple[Block, ...], ...]
    loose: bool = False
    goes_on: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells, the first ``heads`` of them headings; ``aligns`` is one of ``<^>`` for each column."""

    rows: tuple[tuple[Content, ...], ...]
    heads: int
    aligns: str


@dataclass(frozen=True)
class Rule:
    """A line across."""


Block = Paragraph | Line | Code | Quote | Items | Table | Rule
Env = dict[str, Any]
"""What one part of a document tells the others: where named links lead."""


@cache
def _parser() -> MarkdownIt:
    # HTML is text: rendered it would vanish from the reply.
    return MarkdownIt("gfm-like", {"html": False})


@cache
def _outline() -> MarkdownIt:
    return MarkdownIt("gfm-like", {"html": False}).disable(["inline", "linkify", "text_join"], True)


def apart(before: Block, block: Block) -> bool:
    """Whether an empty line stands between two blocks."""
    return not (isinstance(before, Line) or isinstance(block, Line) or getattr(block, "goes_on", False))


def blocks(markdown: str) -> list[Block]:
    """The blocks of a whole document."""
    return [block for _, block in placed(markdown, {})]


def placed(markdown: str, env: Env) -> list[tuple[int, Block]]:
    """The blocks of a document or of a part of one, each with the line (from 0) that it begins at."""
    tokens = _outline().parse(markdown, env)
    found: list[tuple[int, Block]] = []
    position = 0
    while position < len(tokens):
        end = _closing(tokens, position)
        line = (tokens[position].map or [0])[0]
        found += [(line, block) for block in _blocks(tokens[position : end + 1], env)]
        position = end + 1
    return found


def last_item(markdown: str) -> int:
    """The line (from 0) that the last item of the list at the beginning of a text begins at."""
    tokens = _outline().parse(markdown)
    items = (token for token in tokens if token.type == "list_item_open" and token.level == 1)
    return max(item.map[0] for item in items if item.map)


def _blocks(tokens: Sequence[Token], env: Env, depth: int = 0) -> Iterator[Block]:
    """``depth`` counts the lists around."""
    position = 0
    while position < len(tokens):
        token = tokens[position]
        end = _closing(tokens, position)
        inside = tokens[position + 1 : end]
        match token.type:
            case "paragraph_open":
                yield Paragraph(_inline(inside[0], env))
            case "heading_open":
                style = {"h1": "bold underline $accent", "h2": "bold $accent"}.get(token.tag, "bold")
                yield Paragraph(_inline(inside[0], env).stylize(style))
            case "fence" | "code_block":
                yield code(token.content, token.info)
            case "blockquote_open":
                yield Quote(tuple(_blocks(inside, env, depth)))
            case "bullet_list_open" | "ordered_list_open":
                yield _list(inside, token, env, depth)
            case "table_open":
                yield _table(inside, env)
            case "hr":
                yield Rule()
        position = end + 1


def code(text: str, info: str = "", goes_on: bool = False) -> Code:
    """A block of code, coloured if its language is known."""
    language = info.split()[0].strip("{.}") if info.strip() else ""
    text = text.removesuffix("\n")
    if not language or len(text) > LONGEST_CODE:
        return Code(Content(text), language, goes_on)
    return Code(highlight(text, language=language), language, goes_on)


def _closing(tokens: Sequence[Token], position: int) -> int:
    """The index of the token that closes the one at ``position``; its own where nothing needs closing."""
    if tokens[position].nesting != 1:
        return position
    depth = 0
    for index in range(position, len(tokens)):
        depth += tokens[index].nesting
        if depth == 0:
            return index
    return len(tokens) - 1


def _inline(token: Token, env: Env) -> Content:
    if len(token.content) > LONGEST_INLINE:
        return Content(token.content)
    (parsed,) = _parser().parseInline(token.content, env)
    parts: list[Content] = []
    styles: list[str] = []
    link = ""
    for child in parsed.children or ():
        if child.type in _INLINE:
            styles.append(_INLINE[child.type])
            link = str(child.attrs.get("href", "")) if child.type == "link_open" else link
        elif child.type.endswith("_close"):
            styles.pop()
            if child.type == "link_close" and not _says(parts[-1].plain if parts else "", link):
                # Nobody can follow it here; whoever wants to can see where it leads, and copy it.
                parts.append(Content.styled(f" ({link})", "$quiet"))
        else:
            text = {"softbreak": " ", "hardbreak": "\n"}.get(child.type, child.content)
            own = ""
            if child.type == "image":
                text, own = f"[image: {child.content or child.attrs.get('src', '')}]", "$quiet"
            elif child.type == "code_inline":
                own = "$warning"
            parts.append(Content.styled(text, " ".join([*styles, own]).strip()))
    return Content("").join(parts)


def _says(text: str, link: str) -> bool:
    """Whether a link's text is where it leads."""
    shown, real = (_SCHEME.sub("", one).rstrip("/") for one in (text, link))
    return not link or shown == real


def _list(tokens: Sequence[Token], opening: Token, env: Env, depth: int) -> Items:
    ordered = opening.type.startswith("ordered")
    number = int(opening.attrGet("start") or 1) if ordered else 1
    markers: list[str] = []
    items: list[tuple[Block, ...]] = []
    loose = False
    position = 0
    while position < len(tokens):
        end = _closing(tokens, position)
        inside = tokens[position + 1 : end]
        # In a tight list markdown-it hides the paragraphs.
        loose = loose or any(token.type == "paragraph_open" and not token.hidden for token in inside[:1])
        item = tuple(_blocks(inside, env, depth + 1))
        mark = f"{number}." if ordered else "•◦▪"[depth % 3]
        if item and isinstance(item[0], Paragraph) and item[0].content.plain[:4] in ("[ ] ", "[x] ", "[X] "):
            first = item[0].content
            mark = "☐" if first.plain[1] == " " else "☑"
            item = (replace(item[0], content=first[4:]), *item[1:])
        markers.append(mark)
        items.append(item)
        number += 1
        position = end + 1
    return Items(tuple(markers), tuple(items), loose)


def _table(tokens: Sequence[Token], env: Env) -> Table:
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
            rows[-1].append(_inline(token, env))
        elif token.type == "thead_close":
            heads = len(rows)
    return Table(tuple(tuple(row) for row in rows), heads, "".join(aligns))

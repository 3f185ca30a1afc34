"""Parses Markdown into blocks, independent of the width that they are drawn in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markdown_it.token import Token
from textual.content import Content
from textual.highlight import highlight

from tqchat.text import one_line, stable_width
from tqchat.ui.markdown import block_parser, inline_parser

MAX_INLINE_CHARACTERS = 6_000
"""Longer paragraphs and cells stay plain text: inline parsing takes time quadratic in their length."""
MAX_HIGHLIGHTED_CHARACTERS = 40_000
"""Longer code blocks are not highlighted."""
HIGHLIGHTED_AT_ONCE = 4_000
"""Characters of a long code block that are highlighted together."""
_URL_SCHEME = re.compile(r"\Ahttps?://|\Amailto:")
_INLINE_STYLES = {"em_open": "italic", "strong_open": "bold", "s_open": "strike", "link_open": "underline"}


@dataclass(frozen=True)
class Paragraph:
    """Wrapped text. ``continues``: it continues the block before it."""

    content: Content
    continues: bool = False


@dataclass(frozen=True)
class Line:
    """A line without space around it, such as a message's heading or footer."""

    content: Content


@dataclass(frozen=True)
class Code:
    """Preformatted lines. ``continues`` as for a paragraph."""

    content: Content
    language: str = ""
    continues: bool = False


@dataclass(frozen=True)
class Quote:
    """A block quote."""

    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Items:
    """A list: markers and items. ``loose``: empty lines between items. ``continues`` as for a paragraph."""

    markers: tuple[str, ...]
    items: tuple[tuple[Block, ...], ...]
    loose: bool = False
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
Env = dict[str, Any]
"""markdown-it's environment: link references, shared by the parts of a document."""


def separated(before: Block, block: Block) -> bool:
    """Whether two blocks are separated by an empty line."""
    return not (isinstance(before, Line) or isinstance(block, Line) or getattr(block, "continues", False))


def blocks(markdown: str) -> list[Block]:
    """The blocks of a whole document."""
    return [block for _, block in blocks_with_lines(markdown, {})]


def blocks_with_lines(markdown: str, env: Env) -> list[tuple[int, Block]]:
    """Blocks of a document or a part of it, each with its first line (from 0)."""
    tokens = block_parser().parse(markdown, env)
    found: list[tuple[int, Block]] = []
    position = 0
    while position < len(tokens):
        end = _closing(tokens, position)
        line = (tokens[position].map or [0])[0]
        found += [(line, block) for block in _blocks(tokens[position : end + 1], env)]
        position = end + 1
    return found


def last_item_line(markdown: str) -> int:
    """First line (from 0) of the last item of the list at the start of a text."""
    tokens = block_parser().parse(markdown)
    items = (token for token in tokens if token.type == "list_item_open" and token.level == 1)
    return max(item.map[0] for item in items if item.map)


def _blocks(tokens: Sequence[Token], env: Env, depth: int = 0) -> Iterator[Block]:
    """Convert tokens to blocks; ``depth`` is the nesting depth of lists."""
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


def code(text: str, info: str = "", continues: bool = False) -> Code:
    """A code block, highlighted if its language is known."""
    language = one_line(info.split()[0].strip("{.}")) if info.strip() else ""
    text = text.removesuffix("\n")
    if not language or len(text) > MAX_HIGHLIGHTED_CHARACTERS:
        return Code(Content(text), language, continues)
    return Code(Content("\n").join(_highlighted(text, language)), language, continues)


def _highlighted(text: str, language: str) -> Iterator[Content]:
    """The parts of a text, highlighted one by one: many lexers take time quadratic in the length."""
    lines = text.split("\n")
    begin, size = 0, 0
    for number, line in enumerate(lines):
        size += len(line) + 1
        last = number == len(lines) - 1
        # Preferably between paragraphs: a string or comment that is cut is highlighted wrongly.
        if last or size > HIGHLIGHTED_AT_ONCE or (size > HIGHLIGHTED_AT_ONCE // 2 and not line.strip()):
            part = "\n".join(lines[begin : number + 1])
            if size > 2 * HIGHLIGHTED_AT_ONCE:
                yield Content(part)
            else:
                # highlight() drops line breaks at the end, and counts a tab as several characters.
                code = part.rstrip("\n")
                yield Content.assemble(highlight(code, language=language, tab_size=0), part[len(code) :])
            begin, size = number + 1, 0


def _closing(tokens: Sequence[Token], position: int) -> int:
    """Index of the token that closes the one at ``position``; ``position`` itself if it needs no closing."""
    if tokens[position].nesting != 1:
        return position
    depth = 0
    for index in range(position, len(tokens)):
        depth += tokens[index].nesting
        if depth == 0:
            return index
    return len(tokens) - 1


def _inline(token: Token, env: Env) -> Content:
    if len(token.content) > MAX_INLINE_CHARACTERS:
        return Content(token.content)
    (parsed,) = inline_parser().parseInline(token.content, env)
    parts: list[Content] = []
    styles: list[str] = []
    link = ""
    for child in parsed.children or ():
        if child.type in _INLINE_STYLES:
            styles.append(_INLINE_STYLES[child.type])
            link = str(child.attrs.get("href", "")) if child.type == "link_open" else link
        elif child.type.endswith("_close"):
            styles.pop()
            if child.type == "link_close" and not _shows_target(parts[-1].plain if parts else "", link):
                # Links cannot be opened here, so show the target.
                parts.append(Content.styled(f" ({one_line(link)})", "$quiet"))
        else:
            text = {"softbreak": " ", "hardbreak": "\n"}.get(child.type, child.content)
            own = ""
            if child.type == "image":
                text, own = f"[image: {child.content or child.attrs.get('src', '')}]", "$quiet"
            elif child.type == "code_inline":
                own = "$warning"
            # The parser has replaced character references, such as that of a bidirectional override.
            text = stable_width(text) if "&" in token.content else text
            parts.append(Content.styled(text, " ".join([*styles, own]).strip()))
    return Content("").join(parts)


def _shows_target(text: str, link: str) -> bool:
    """Whether a link's text shows its target."""
    shown, real = (_URL_SCHEME.sub("", one).rstrip("/") for one in (text, link))
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

"""Markdown as one piece of content: what an old message costs is one widget, whatever it holds.

A live ``Markdown`` widget is a widget for every paragraph, list item and cell; a long chat of those lags.
Looks are kept close to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.cells import cell_len
from textual.content import Content
from textual.highlight import highlight

BULLETS = "•▪‣⭑◦"
_INLINE = {"em_open": "italic", "strong_open": "bold", "s_open": "strike", "link_open": "underline"}


def parser() -> MarkdownIt:
    """The parser for all that a model writes. HTML is text: rendered it would vanish from the reply."""
    return MarkdownIt("gfm-like", {"html": False})


def frozen(markdown: str) -> Content:
    """The Markdown as styled text, ready for one ``Static``."""
    return Content("\n\n").join([block for block in _blocks(parser().parse(markdown)) if block.plain.strip()])


def _blocks(tokens: Sequence[Token], depth: int = 0) -> Iterator[Content]:
    """The blocks of a document or of a part of one; ``depth`` counts the bullet lists around it."""
    position = 0
    while position < len(tokens):
        token = tokens[position]
        end = _closing(tokens, position)
        inside = tokens[position + 1 : end]
        match token.type:
            case "paragraph_open":
                yield _inline(inside[0])
            case "heading_open":
                style = "bold underline" if token.tag == "h1" else "bold"
                yield _inline(inside[0]).stylize(style)
            case "fence" | "code_block":
                yield _prefixed(_code(token), "  ", "  ")
            case "blockquote_open":
                quoted = Content("\n\n").join(list(_blocks(inside, depth)))
                yield _prefixed(quoted, "▌ ", "▌ ", "$quiet")
            case "bullet_list_open" | "ordered_list_open":
                yield _list(inside, token, depth)
            case "table_open":
                yield _table(inside)
            case "hr":
                yield Content.styled("─" * 24, "$faint")
            case "inline":
                yield _inline(token)
        position = end + 1


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


def _inline(token: Token) -> Content:
    parts: list[Content] = []
    styles: list[str] = []
    for child in token.children or ():
        if child.type in _INLINE:
            styles.append(_INLINE[child.type])
        elif child.type.endswith("_close"):
            styles.pop()
        else:
            text = {"softbreak": " ", "hardbreak": "\n"}.get(child.type, child.content)
            if child.type == "image":
                text = f"🖼  {child.content}"
            own = "$warning" if child.type == "code_inline" else ""
            parts.append(Content.styled(text, " ".join([*styles, own]).strip()))
    return Content("").join(parts)


def _code(token: Token) -> Content:
    language = token.info.split()[0] if token.info.strip() else None
    return highlight(token.content.rstrip(), language=language or "text")


def _list(tokens: Sequence[Token], opening: Token, depth: int) -> Content:
    ordered = opening.type.startswith("ordered")
    items: list[Content] = []
    number = int(opening.attrGet("start") or 1)
    position = 0
    while position < len(tokens):
        end = _closing(tokens, position)
        marker = f" {number}. " if ordered else f"{BULLETS[depth % len(BULLETS)]} "
        item = Content("\n").join(list(_blocks(tokens[position + 1 : end], depth + (not ordered))))
        items.append(_prefixed(item, marker, " " * len(marker), "$accent"))
        number += 1
        position = end + 1
    return Content("\n").join(items)


def _table(tokens: Sequence[Token]) -> Content:
    rows: list[list[Content]] = []
    header_rows = 0
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows:
            rows[-1].append(_inline(token))
        elif token.type == "thead_close":
            header_rows = len(rows)
    columns = max((len(row) for row in rows), default=0)
    widths = [
        max((cell_len(row[i].plain) for row in rows if i < len(row)), default=0) for i in range(columns)
    ]
    lines: list[Content] = []
    for index, row in enumerate(rows):
        cells = [cell.pad_right(widths[i] - cell_len(cell.plain)) for i, cell in enumerate(row)]
        line = Content("  ").join(cells)
        lines.append(line.stylize("bold") if index < header_rows else line)
        if index == header_rows - 1:
            lines.append(Content.styled("  ".join("─" * width for width in widths), "$faint"))
    return Content("\n").join(lines)


def _prefixed(content: Content, first: str, rest: str, style: str = "") -> Content:
    """Every line with something before it: a bullet, a quotation's bar, an indentation."""
    return Content("\n").join(
        [
            Content.assemble((first if index == 0 else rest, style), line)
            for index, line in enumerate(content.split("\n", allow_blank=True))
        ]
    )

"""Lays blocks out as lines; no line is wider than the given width, whatever a model writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from textual.content import Content

from tqchat.ui.widgets.chat.blocks import (
    Block,
    Code,
    Item,
    Items,
    Line,
    Paragraph,
    Quote,
    Rule,
    Table,
    separated,
)
from tqchat.ui.widgets.chat.rows import Row, blank, selected, wrapped

MIN_INDENTED_WIDTH = 16
"""Cells left for text below which lists and quotes are not indented."""
WRAP_MARK = "↳ "
"""Begins a line that continues a line of code."""
_COLUMN_GAP = 2
"""Cells between table columns."""
_MIN_COLUMN_WIDTH = 6
"""Average cells per column below which a table's rows are stacked."""
_BLANK = Content("")
_PLAIN_WIDTH = 200
"""A width for text that is not drawn."""


def plain_text(blocks: Sequence[Block]) -> str:
    """Blocks as plain text: what is copied if all of them are selected."""
    return selected(rows(blocks, _PLAIN_WIDTH), None, None)


def lines(blocks: Sequence[Block], width: int) -> list[Content]:
    """Lines of several blocks."""
    return [row.content for row in rows(blocks, width)]


def rows(blocks: Sequence[Block], width: int) -> list[Row]:
    """Lines of several blocks, with empty lines between separated ones."""
    laid: list[Row] = []
    for index, block in enumerate(blocks):
        if index and separated(blocks[index - 1], block):
            laid.append(blank())
        laid += block_rows(block, width)
    return laid


def block_rows(block: Block, width: int) -> list[Row]:
    """The lines of one block."""
    match block:
        case Paragraph():
            first, *others = _aside(wrapped(block.content, width), block.aside)
            return [replace(first, joint=" " if block.continues else None), *others]
        case Line():
            return _aside(wrapped(block.content, width), block.aside)
        case Code():
            return _code(block, width)
        case Quote():
            return _quote(block, width)
        case Items():
            return _items(block, width)
        case Table():
            return _table(block, width)
        case Rule():
            return [Row(Content.styled("─" * width, "$faint"), 0, width, record="---")]


def _aside(rows: list[Row], aside: bool) -> list[Row]:
    return [replace(row, aside=True) for row in rows] if aside else rows


def _quote(block: Quote, width: int) -> list[Row]:
    mark = "▌ "
    available = width - len(mark)
    if available < MIN_INDENTED_WIDTH:
        return [row.within("", "", "> ") for row in rows(block.blocks, width)]
    return [row.within(mark, "$accent", "> ") for row in rows(block.blocks, available)]


def _code(block: Code, width: int) -> list[Row]:
    available = max(width - 2, 1)
    laid = wrapped(block.content, available, WRAP_MARK if available > len(WRAP_MARK) + 1 else " ")
    if block.label and not block.continues:
        label = Content.styled(block.label, "$quiet").truncate(available, ellipsis=True)
        first = laid[0]
        space = available - first.content.cell_length - label.cell_length
        if space >= 2:
            laid[0] = replace(first, content=Content.assemble(first.content, " " * space, label))
        else:
            space = available - label.cell_length
            laid.insert(0, Row(Content.assemble(" " * space, label), aside=True))
    return [_on_surface(row.within(" ", "", ""), width) for row in laid]


def _on_surface(row: Row, width: int) -> Row:
    padding = " " * (width - row.content.cell_length)
    return replace(row, content=Content.assemble(row.content, padding).stylize_before("on $surface"))


def _items(block: Items, width: int) -> list[Row]:
    indent = max((len(item.marker) for item in block.items), default=0) + 1
    laid: list[Row] = []
    for item in block.items:
        if item.gap:
            laid.append(blank())
        laid += _item(item, indent, width)
    return laid


def _item(item: Item, indent: int, width: int) -> list[Row]:
    is_narrow = width - indent < MIN_INDENTED_WIDTH
    available = width if is_narrow else width - indent
    if item.spaced:
        inside = rows(item.blocks, available)
    else:
        inside = [row for block in item.blocks for row in block_rows(block, available)]
    written = f"{item.written} "
    prefixes = [written, *[" " * len(written)] * (len(inside) - 1)]
    if is_narrow:
        marker = Row(Content.styled(item.marker, "$accent").truncate(width), aside=True)
        return [marker, *(row.within("", "", prefix) for row, prefix in zip(inside, prefixes, strict=False))]
    marks = [f"{item.marker:>{indent - 1}} ", *[" " * indent] * (len(inside) - 1)]
    return [
        row.within(mark, "$accent", prefix)
        for row, mark, prefix in zip(inside or [blank()], marks, prefixes, strict=True)
    ]


def _table(block: Table, width: int) -> list[Row]:
    columns = max((len(row) for row in block.rows), default=0)
    if not columns:
        return []
    wanted = [
        max((_widest(row[column]) for row in block.rows if column < len(row)), default=0)
        for column in range(columns)
    ]
    widths = _column_widths(wanted, width - _COLUMN_GAP * (columns - 1))
    if widths is None:
        return _stacked(block, width)
    cells = [
        [wrapped(row[i], widths[i]) if i < len(row) else [blank()] for i in range(columns)]
        for row in block.rows
    ]
    # Rules between rows if any row takes several lines.
    tall = any(len(cell) > 1 for row in cells for cell in row)
    rule = (" " * _COLUMN_GAP).join("─" * size for size in widths)
    laid: list[Row] = []
    for index, row in enumerate(cells):
        record = table_record(block.rows[index])
        for height in range(max(map(len, row))):
            parts: list[Content | str] = []
            for column, cell in enumerate(row):
                text = cell[height].content.rstrip() if height < len(cell) else _BLANK
                parts += [
                    _aligned(text, widths[column], block.aligns[column : column + 1]),
                    " " * _COLUMN_GAP,
                ]
            line = Content.assemble(*parts[:-1])
            line = line.stylize("bold") if index < block.heads else line
            laid.append(Row(line, 0, len(line.plain.rstrip()), record=record))
        if index == block.heads - 1:
            laid.append(Row(Content.styled(rule, "$quiet"), 0, len(rule), record=_delimiters(block)))
        elif tall and index < len(cells) - 1:
            laid.append(Row(Content.styled(rule, "$faint"), aside=True))
    return laid


def table_record(row: Sequence[Content]) -> str:
    """A row of a table as Markdown."""
    cells = [cell.plain.replace("|", "\\|").replace("\n", " ") for cell in row]
    return f"| {' | '.join(cells)} |"


def _delimiters(block: Table) -> str:
    marks = {"<": "---", "^": ":-:", ">": "--:"}
    return f"| {' | '.join(marks[align] for align in block.aligns)} |"


def _widest(cell: Content) -> int:
    return max((line.cell_length for line in cell.split(allow_blank=True)), default=0)


def _column_widths(wanted: Sequence[int], available: int) -> list[int] | None:
    """Column widths within ``available``: narrow columns keep theirs, wide ones share the rest."""
    if available < _MIN_COLUMN_WIDTH * len(wanted) and available < sum(wanted):
        return None
    widths = list(wanted)
    while sum(widths) > available:
        widest = max(widths)
        second = max((size for size in widths if size < widest), default=0)
        at = [index for index, size in enumerate(widths) if size == widest]
        surplus = sum(widths) - available
        step = max(1, min(widest - second, -(-surplus // len(at))))
        for index in at:
            if sum(widths) > available:
                widths[index] -= min(step, sum(widths) - available)
    return widths


def _aligned(text: Content, width: int, align: str) -> Content:
    spare = max(width - text.cell_length, 0)
    left = {"^": spare // 2, ">": spare}.get(align, 0)
    return Content.assemble(" " * left, text, " " * (spare - left))


def _stacked(block: Table, width: int) -> list[Row]:
    """A table too wide for columns: each row as ``name: cell`` lines."""
    names = block.rows[0] if block.heads else ()
    head = f"{table_record(names)}\n{_delimiters(block)}"
    if len(block.rows) == block.heads:
        return [replace(row, record=head) for name in names for row in wrapped(name, width)]
    laid: list[Row] = []
    for number, cells in enumerate(block.rows[block.heads :]):
        record = table_record(cells)
        if number:
            laid.append(Row(Content.styled("─" * width, "$faint"), aside=True))
        elif block.heads:
            record = f"{head}\n{record}"
        for index, cell in enumerate(cells):
            name = names[index].stylize("bold") if index < len(names) else _BLANK
            said = Content.assemble(name, ": " if name.plain else "", cell)
            laid += [replace(row, record=record) for row in wrapped(said, width)]
    return laid

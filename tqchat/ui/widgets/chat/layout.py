"""Lays blocks out as lines; no line is wider than the given width, whatever a model writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from textual.content import Content

from tqchat.ui.widgets.chat.blocks import Block, Code, Items, Line, Paragraph, Quote, Rule, Table, separated

MIN_INDENTED_WIDTH = 16
"""Cells left for text below which lists and quotes are not indented."""
_COLUMN_GAP = 2
"""Cells between table columns."""
_MIN_COLUMN_WIDTH = 6
"""Average cells per column below which a table's rows are stacked."""
_BLANK = Content("")


def lines(blocks: Sequence[Block], width: int) -> list[Content]:
    """Lines of several blocks, with empty lines between separated ones."""
    laid: list[Content] = []
    for index, block in enumerate(blocks):
        if index and separated(blocks[index - 1], block):
            laid.append(_BLANK)
        laid += block_lines(block, width)
    return laid


def block_lines(block: Block, width: int) -> list[Content]:
    """The lines of one block."""
    match block:
        case Paragraph() | Line():
            return _wrapped(block.content, width)
        case Code():
            return _code(block, width)
        case Quote():
            return _prefixed("▌ ", "▌ ", "$accent", lambda available: lines(block.blocks, available), width)
        case Items():
            return _items(block, width)
        case Table():
            return _table(block, width)
        case Rule():
            return [Content.styled("─" * width, "$faint")]


def _wrapped(content: Content, width: int) -> list[Content]:
    return content.wrap(max(width, 1)) or [_BLANK]


def _prefixed(
    first: str, rest: str, style: str, inside: Callable[[int], list[Content]], width: int
) -> list[Content]:
    """Lines with a prefix, left out if the width is too small."""
    available = width - len(first)
    if available < MIN_INDENTED_WIDTH:
        return inside(width)
    found = inside(available)
    return [
        Content.assemble((first if index == 0 else rest, style), line) for index, line in enumerate(found)
    ]


def _code(block: Code, width: int) -> list[Content]:
    available = max(width - 2, 1)
    laid: list[Content] = []
    for line in block.content.expand_tabs(4).split(allow_blank=True):
        laid += line.fold(available) if line.cell_length > available else [line]
    if block.language and not block.continues:
        label = Content.styled(block.language[:available], "$quiet")
        fits = laid and laid[0].cell_length + label.cell_length + 2 <= available
        if fits:
            laid[0] = Content.assemble(
                laid[0], " " * (available - laid[0].cell_length - label.cell_length), label
            )
        else:
            laid.insert(0, Content.assemble(" " * (available - label.cell_length), label))
    return [
        Content.assemble(" ", line, " " * (width - 1 - line.cell_length)).stylize_before("on $surface")
        for line in laid
    ]


def _items(block: Items, width: int) -> list[Content]:
    indent = max((len(marker) for marker in block.markers), default=0) + 1
    laid: list[Content] = []
    for marker, item in zip(block.markers, block.items, strict=True):
        if block.loose and (laid or block.continues):
            laid.append(_BLANK)

        def inside(available: int, item: Sequence[Block] = item) -> list[Content]:
            if block.loose:
                return lines(item, available) or [_BLANK]
            return [line for one in item for line in block_lines(one, available)] or [_BLANK]

        mark = f"{marker:>{indent - 1}} "
        if width - indent < MIN_INDENTED_WIDTH:
            mark = f"{marker} "
            laid += _wrapped(Content.styled(mark, "$accent"), width) + inside(width)
        else:
            laid += _prefixed(mark, " " * indent, "$accent", inside, width)
    return laid


def _table(block: Table, width: int) -> list[Content]:
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
    wrapped = [
        [_wrapped(row[i], widths[i]) if i < len(row) else [_BLANK] for i in range(columns)]
        for row in block.rows
    ]
    # Rules between rows if any row takes several lines.
    tall = any(len(cell) > 1 for row in wrapped for cell in row)
    rule = (" " * _COLUMN_GAP).join("─" * size for size in widths)
    laid: list[Content] = []
    for index, cells in enumerate(wrapped):
        for height in range(max(map(len, cells))):
            parts: list[Content | str] = []
            for column, cell in enumerate(cells):
                text = cell[height].rstrip() if height < len(cell) else _BLANK
                parts += [
                    _aligned(text, widths[column], block.aligns[column : column + 1]),
                    " " * _COLUMN_GAP,
                ]
            line = Content.assemble(*parts[:-1])
            laid.append(line.stylize("bold") if index < block.heads else line)
        if index == block.heads - 1:
            laid.append(Content.styled(rule, "$quiet"))
        elif tall and index < len(wrapped) - 1:
            laid.append(Content.styled(rule, "$faint"))
    return laid


def _widest(cell: Content) -> int:
    return max((line.cell_length for line in cell.split(allow_blank=True)), default=0)


def _column_widths(wanted: Sequence[int], available: int) -> list[int] | None:
    """Column widths within ``available``: narrow columns keep theirs, wide ones share the rest."""
    if available < 6 * len(wanted) and available < sum(wanted):
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


def _stacked(block: Table, width: int) -> list[Content]:
    """A table too wide for columns: each row as ``name: cell`` lines."""
    names = block.rows[0] if block.heads else ()
    laid: list[Content] = []
    for row in block.rows[block.heads :]:
        if laid:
            laid.append(Content.styled("─" * width, "$faint"))
        for index, cell in enumerate(row):
            name = names[index].stylize("bold") if index < len(names) else _BLANK
            laid += _wrapped(Content.assemble(name, ": " if name.plain else "", cell), width)
    return laid or [line for name in names for line in _wrapped(name, width)]

"""Drawn lines, and the text that each stands for when it is copied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from textual.content import Content
from textual.geometry import Offset

TAB_SIZE = 4


@dataclass(frozen=True)
class Row:
    """One drawn line.

    Attributes:
        content: What is drawn.
        start, end: The characters between are the text; those around are margin, label and padding.
        text: The text as it was written, if it is drawn differently: with tabs, for instance.
        columns: For such a text, its position for each position in the drawn one.
        prefix: What stands for the margin when the line is copied from its beginning: ``- `` for a bullet.
        joint: What joins the row to the one before: ``None`` for a line break that was written, else the
            spaces, if any, at which the line was wrapped.
        aside: Whether it is no part of the text, such as a heading or a label on a line of its own.
        record: A row of a table as Markdown, which several drawn lines may share. It is copied as a whole
            unless only one drawn line is selected.
    """

    content: Content
    start: int = 0
    end: int = 0
    text: str | None = None
    columns: tuple[int, ...] | None = None
    prefix: str = ""
    joint: str | None = None
    aside: bool = False
    record: str | None = None

    def copied(self, begin: int, end: int | None) -> str:
        """The text from one drawn character to another."""
        begin, end = max(begin, self.start), self.end if end is None else min(end, self.end)
        if begin >= end:
            return ""
        if self.text is None:
            return self.content.plain[begin:end]
        assert self.columns is not None
        columns = self.columns
        return self.text[columns[begin - self.start] : columns[end - self.start]]

    def within(self, mark: str, style: str, prefix: str) -> Row:
        """The row with a mark before it, and what the mark is copied as."""
        return replace(
            self,
            content=Content.assemble((mark, style), self.content),
            start=self.start + len(mark),
            end=self.end + len(mark),
            prefix=prefix + self.prefix,
        )


def blank() -> Row:
    """An empty line."""
    return Row(Content(""))


def wrapped(content: Content, width: int, mark: str = "") -> list[Row]:
    """Text in lines of at most ``width`` cells, wrapped between words where possible.

    With a ``mark``, for code: wrapped anywhere, and each line that continues another begins with the mark.
    """
    lines = content.split(allow_blank=True) or [Content("")]
    return [row for line in lines for row in _wrapped_line(line, max(width, 1), mark)]


def selected(rows: Sequence[Row], start: Offset | None, stop: Offset | None, asides: bool = False) -> str:
    """The text of the rows from one place to another, ``None`` for the first and the last.

    A place is the number of a character and that of a row. ``asides``: take the rows beside the text instead.
    """
    first = start.y if start else 0
    last = min(stop.y if stop else len(rows), len(rows) - 1)
    pieces = [
        (row, start.x if start and y == first else 0, stop.x if stop and y == stop.y else None)
        for y, row in enumerate(rows[first : last + 1], first)
        if row.aside == asides
    ]
    return _joined(pieces)


def _joined(pieces: Sequence[tuple[Row, int, int | None]]) -> str:
    said: list[str] = []
    record: str | None = None
    indent = 0
    for index, (row, begin, end) in enumerate(pieces):
        before, record = record, row.record if len(pieces) > 1 else None
        if record is not None and record is before:
            continue
        text = row.copied(begin, end) if record is None else record
        prefix = row.prefix
        if index == 0 and (begin >= row.start or not prefix.strip()):
            # Not copied from its margin: then the lines below are not indented by it either.
            indent, prefix = len(prefix), ""
        elif index and row.joint is not None:
            prefix = ""
        else:
            prefix = prefix[min(indent, len(prefix) - len(prefix.lstrip())) :]
        text = text.replace("\n", f"\n{' ' * len(prefix)}")
        said += ["\n" if row.joint is None else row.joint, prefix + text if text else prefix.rstrip()]
    return "".join(said[1:]).strip("\n")


def _wrapped_line(line: Content, width: int, mark: str) -> list[Row]:
    shown, columns = _with_tabs_expanded(line)
    pieces = _folded(shown, width, mark) if mark else shown.wrap(width) or [shown]
    rows: list[Row] = []
    position = 0
    for index, piece in enumerate(pieces):
        text = piece.plain if mark else piece.plain.rstrip()
        begin = position
        # Spaces at the end of a wrapped line are not drawn.
        while not shown.plain.startswith(text, position):
            position += 1
        start = len(mark) if index else 0
        drawn = Row(
            Content.assemble((mark, "$quiet"), piece) if start else piece,
            start,
            start + len(text),
            joint=shown.plain[begin:position] if index else None,
        )
        if columns is not None:
            own = columns[position : position + len(text) + 1]
            inside = tuple(column - own[0] for column in own)
            drawn = replace(drawn, text=line.plain[own[0] : own[-1]], columns=inside)
        rows.append(drawn)
        position += len(text)
    return rows


def _folded(line: Content, width: int, mark: str) -> list[Content]:
    """A line of code in pieces: the first one of ``width`` cells, the others leave room for the mark."""
    if line.cell_length <= width:
        return [line]
    first = line.fold(width)[0]
    return [first, *line[len(first.plain) :].fold(max(width - len(mark), 2))]


def _with_tabs_expanded(line: Content) -> tuple[Content, list[int] | None]:
    """A line with spaces for tabs, and the position in it as written for each drawn character."""
    if "\t" not in line.plain:
        return line, None
    parts: list[Content | str] = []
    columns: list[int] = []
    cells = written = 0
    for index, part in enumerate(line.split("\t", allow_blank=True)):
        if index:
            size = TAB_SIZE - cells % TAB_SIZE
            parts.append(" " * size)
            columns += [written] * size
            cells, written = cells + size, written + 1
        parts.append(part)
        columns += range(written, written + len(part.plain))
        cells, written = cells + part.cell_length, written + len(part.plain)
    return Content.assemble(*parts), [*columns, written]

"""Widget for blocks of text: lays them out for its width and draws only the visible lines."""

from __future__ import annotations

import re
from collections.abc import Sequence

from textual.content import Content
from textual.events import Click
from textual.geometry import Offset, Size
from textual.selection import Selection
from textual.strip import Strip
from textual.style import Style
from textual.visual import Visual
from textual.widget import Widget

from tqchat.text import word_character
from tqchat.ui.widgets.chat.blocks import Block, separated
from tqchat.ui.widgets.chat.layout import block_rows
from tqchat.ui.widgets.chat.rows import Row, blank, selected

FOLDS = ("▸", "▾")
"""Begin the title of something that is folded, or unfolded."""


class Body(Widget):
    """Blocks below each other in one widget, because the number of widgets slows a long chat down.

    ``before`` is the last block of the widget above, if the text continues from there.
    """

    DEFAULT_CSS = "Body { height: auto; width: 1fr; }"

    def __init__(
        self, blocks: Sequence[Block] = (), before: Block | None = None, classes: str | None = None
    ) -> None:
        super().__init__(classes=classes)
        self.auto_links = False
        self._before = before
        self._words: re.Pattern[str] | None = None
        self._blocks = list(blocks)
        self._laid: list[list[Row]] = []
        self._rows: list[Row] = []
        self._width = 0

    @property
    def blocks(self) -> Sequence[Block]:
        """The blocks shown."""
        return self._blocks

    def put(self, blocks: Sequence[Block]) -> None:
        """Show these blocks; unchanged leading blocks are not laid out again."""
        kept = 0
        while kept < min(len(blocks), len(self._laid)) and blocks[kept] is self._blocks[kept]:
            kept += 1
        self._blocks = list(blocks)
        del self._laid[kept:]
        self._join()
        self.refresh(layout=True)

    @property
    def joint(self) -> str:
        """Separator between its text and that of the widget above when both are copied."""
        before, blocks = self._before, self._blocks
        if before is None or not blocks or separated(before, blocks[0]):
            return "\n\n"
        return (self._rows[0].joint if self._rows else None) or "\n"

    def lines(self, width: int) -> list[Content]:
        """Lines at a width in cells."""
        return [row.content for row in self.rows(width)]

    def rows(self, width: int) -> list[Row]:
        """All lines at a width in cells."""
        if width != self._width:
            self._width = width
            self._laid.clear()
        if len(self._laid) < len(self._blocks):
            self._laid += [block_rows(block, width) for block in self._blocks[len(self._laid) :]]
            self._join()
        return self._rows

    def emphasise(self, words: re.Pattern[str] | None) -> None:
        """Highlight search matches."""
        self._words = words
        self.refresh()

    def _join(self) -> None:
        self._rows = []
        before = self._before
        for block, laid in zip(self._blocks, self._laid, strict=False):
            if before is not None and separated(before, block):
                self._rows.append(blank())
            self._rows += laid
            before = block

    # Textual's interface

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Number of lines at this width."""
        return len(self.rows(width)) if width > 0 else 0

    def render_line(self, y: int) -> Strip:
        """One line."""
        width, style = self.size.width, self.visual_style
        rows = self.rows(width) if width > 0 else []
        if y >= len(rows):
            return Strip.blank(width, style.rich_style)
        row, line = rows[y], rows[y].content
        if self._words is not None:
            for match in self._words.finditer(line.plain):
                line = line.stylize("bold reverse", *match.span())
        if (selection := self.text_selection) is not None and (span := selection.get_span(y)) is not None:
            begin, end = max(span[0], row.start), row.end if span[1] == -1 else min(span[1], row.end)
            marked = Style.from_styles(self.screen.get_component_styles("screen--selection"))
            line = line.stylize(marked, begin, end) if begin < end else line
        strips = Visual.to_strips(self, line, width, 1, style, apply_selection=False, pad=True)
        strip = strips[0] if strips else Strip.blank(width, style.rich_style)
        return strip.crop(0, width).apply_offsets(0, y)

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """The selected text as it was written."""
        return self.selected_text(selection) or self.selected_text(selection, asides=True), "\n"

    def selected_text(self, selection: Selection, asides: bool = False) -> str:
        """The selected text as it was written; with ``asides``, what is selected beside it instead."""
        return selected(self._rows, selection.start, selection.end, asides)

    def is_fold(self, y: int) -> bool:
        """Whether a line is the title of something that unfolds."""
        return y < len(self._rows) and self._rows[y].aside and self._rows[y].content.plain[:1] in FOLDS

    async def _on_click(self, event: Click) -> None:
        # Textual selects the whole widget with two clicks, and its container with three.
        if event.chain > 1:
            event.prevent_default()
            _, place = self.screen.get_widget_and_offset_at(event.screen_x, event.screen_y)
            if place is not None and place.y < len(self._rows):
                found = self._word_at(place) if event.chain == 2 else self._line_at(place.y)
                self.screen.selections = {self: found}

    def _word_at(self, place: Offset) -> Selection:
        for word in re.finditer(f"{word_character()}+", self._rows[place.y].content.plain):
            if word.start() <= place.x < word.end():
                return Selection(Offset(word.start(), place.y), Offset(word.end(), place.y))
        return Selection(place, Offset(place.x + 1, place.y))

    def _line_at(self, y: int) -> Selection:
        """The whole line as it was written, of which one drawn line is part."""
        first = last = y
        while first and self._rows[first].joint is not None:
            first -= 1
        while last + 1 < len(self._rows) and self._rows[last + 1].joint is not None:
            last += 1
        return Selection(Offset(self._rows[first].start, first), Offset(self._rows[last].end, last))

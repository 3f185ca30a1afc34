"""The input fields of all screens: whatever enters one is printable, so what is sent or saved is shown.

Keys, pastes, unsent texts, earlier messages, system prompts, presets and completions pass the methods below.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from rich.cells import split_graphemes
from rich.segment import Segment
from textual import events
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Input, TextArea
from textual.widgets.input import Selection as LineSelection
from textual.widgets.text_area import Edit, EditResult, Location, Selection

from tqchat.text import printable, single_line, with_newlines, word_character

_FLAG = re.compile("[\U0001f1e6-\U0001f1ff]{2}")


def entered(text: str) -> str:
    """The text as a field takes it: printable; line breaks that terminals paste as carriage returns stay."""
    return printable(with_newlines(text))


async def run_own_binding(field: Widget, event: events.Key) -> None:
    """Run a field's own key binding at once.

    Textual passes a key that inserts nothing to the app first: a backspace would be handled after the text
    that was typed behind it.
    """
    for binding in () if event.is_printable else field._bindings.key_to_bindings.get(event.key, ()):
        if not binding.priority and await field.app.run_action(binding.action, field):
            event.stop()
            event.prevent_default()
            return


def outside_characters(text: str, position: int, after: bool = False) -> int:
    """A position, or the beginning of the visible character that it is inside of; with ``after`` its end.

    A letter with combining marks, a flag and a joined emoji are one visible character each.
    """
    if 0 < position < len(text) and not text[position - 1 : position + 1].isascii():
        for begin, end in _characters(text):
            if begin < position < end:
                return end if after else begin
    return position


def _characters(text: str) -> Iterator[tuple[int, int]]:
    """Begin and end of the visible characters; those of one code point may be left out."""
    yield from (flag.span() for flag in _FLAG.finditer(text))
    yield from ((begin, end) for begin, end, _ in split_graphemes(text)[0])


def _with_whole_characters(strip: Strip) -> Strip:
    """A drawn line whose visible characters have one style each.

    Textual draws the cursor on a code point, which would tear a visible character apart.
    """
    text, segments, position = strip.text, list[Segment](), 0
    if text.isascii():
        return strip
    for part, style, _ in strip:
        rest = outside_characters(text, position, after=True) - position
        position += len(part)
        if rest and segments:
            segments[-1] = Segment(segments[-1].text + part[:rest], segments[-1].style)
            part = part[rest:]
        segments.append(Segment(part, style))
    return Strip(segments).adjust_cell_length(strip.cell_length, segments[-1].style)


class LineField(Input):
    """A field of one line."""

    def on_mount(self) -> None:
        """Words contain marks and joiners."""
        word = word_character()
        self._WORD_START = re.compile(rf"(?!\A)(?<!{word}){word}")

    async def _on_key(self, event: events.Key) -> None:
        await run_own_binding(self, event)

    def validate_selection(self, selection: LineSelection) -> LineSelection:
        """Called by Textual for every movement: the cursor is never inside a visible character."""
        start, end = super().validate_selection(selection)
        after = end > self.selection.end
        return LineSelection(*(outside_characters(self.value, place, after) for place in (start, end)))

    def render_line(self, y: int) -> Strip:
        """One drawn line."""
        return _with_whole_characters(super().render_line(y))

    def delete(self, start: int, end: int) -> None:
        """Delete whole visible characters."""
        value = self.value
        super().delete(outside_characters(value, start), outside_characters(value, end, after=True))

    def validate_value(self, value: str) -> str:
        """Called by Textual for every new value."""
        return single_line(value)


class TextField(TextArea):
    """A field of several lines."""

    def on_mount(self) -> None:
        """Words contain marks and joiners."""
        word = word_character()
        self._word_pattern = re.compile(rf"(?!\A)(?<!{word})(?={word})|(?<={word})(?!{word}|\Z)")

    async def _on_key(self, event: events.Key) -> None:
        await run_own_binding(self, event)

    def validate_selection(self, selection: Selection) -> Selection:
        """Called by Textual for every movement: the cursor is never inside a visible character."""
        after = selection.end > self.selection.end
        return Selection(*(self._outside_characters(place, after) for place in selection))

    def get_cursor_left_location(self) -> Location:
        """Where the cursor moves to the left, and how far Backspace deletes."""
        return self._outside_characters(super().get_cursor_left_location())

    def get_cursor_right_location(self) -> Location:
        """Where the cursor moves to the right, and how far Delete deletes."""
        return self._outside_characters(super().get_cursor_right_location(), after=True)

    def _outside_characters(self, place: Location, after: bool = False) -> Location:
        row, column = place
        # A new document may be shorter than the one that the selection was for.
        line = self.document.get_line(row) if column and row < self.document.line_count else ""
        return row, outside_characters(line, column, after)

    def _render_line(self, y: int) -> Strip:
        return _with_whole_characters(super()._render_line(y))

    def edit(self, edit: Edit) -> EditResult:
        """Called by Textual for everything that is inserted."""
        edit.text = entered(edit.text)
        return super().edit(edit)

    def _set_document(self, text: str, language: str | None) -> None:
        # Called by Textual for every text that replaces the whole.
        super()._set_document(entered(text), language)

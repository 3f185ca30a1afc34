"""The way of all widgets to the terminal: no control characters, wherever a text came from."""

from __future__ import annotations

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

from tqchat.text import without_controls


class PrintableOnly(LineFilter):
    """Removes control characters and bidirectional overrides from all drawn lines.

    They take no cells, so that a line keeps its width. Of an escape sequence the rest stays as text, so texts
    that may contain sequences are cleaned before they are laid out.
    """

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The segments with printable text."""
        if all(text.isprintable() for text, _, _ in segments):
            return segments
        return [
            segment if segment.text.isprintable() else Segment(without_controls(segment.text), segment.style)
            for segment in segments
        ]

"""Completions for the text in the prompt."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from textual.content import Content
from textual.widgets import Static

from tqchat.text import one_line
from tqchat.ui.input.completion import Completion

MAX_ROWS = 6


class Suggestions(Static):
    """Lines above the prompt: arrows select, Tab accepts."""

    def __init__(self) -> None:
        super().__init__("", id="suggestions", markup=False)
        self.display = False
        self._completions: Sequence[Completion] = ()
        self._at = 0
        self.moved = False
        """Whether the user has moved the selection."""

    @property
    def chosen(self) -> Completion | None:
        """The selected completion."""
        return self._completions[self._at] if self._completions else None

    def show(self, completions: Sequence[Completion]) -> None:
        """Show these completions; none hides the widget."""
        self._completions, self._at, self.moved = completions, 0, False
        self.display = bool(completions)
        self._draw()

    def move(self, step: int) -> None:
        """Move the selection."""
        if self._completions:
            self._at, self.moved = (self._at + step) % len(self._completions), True
            self._draw()

    def _draw(self) -> None:
        first = max(0, min(self._at - MAX_ROWS // 2, len(self._completions) - MAX_ROWS))
        shown = self._completions[first : first + MAX_ROWS]
        labels = [one_line(completion.label) for completion in shown]
        width = max((cell_len(label) for label in labels), default=0)
        rows: list[Content] = []
        for index, (completion, label) in enumerate(zip(shown, labels, strict=True), first):
            here = index == self._at
            rows.append(
                Content.assemble(
                    ("▌ " if here else "  ", "$accent"),
                    (label + " " * (width - cell_len(label)), "$accent bold" if here else "$accent"),
                    (f"  {completion.help}", "$quiet"),
                    ("  Tab" if here else "", "$accent"),
                )
            )
        if len(self._completions) > MAX_ROWS:
            rows.append(Content.styled(f"  {self._at + 1} of {len(self._completions)}  ↑ ↓", "$quiet"))
        self.update(Content("\n").join(rows))

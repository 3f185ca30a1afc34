"""Completions for the text in the prompt."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from textual.content import Content
from textual.widgets import Static

from tqchat.text import one_line
from tqchat.ui.input.completion import Offer

MAX_ROWS = 6


class Suggestions(Static):
    """Lines above the prompt: arrows select, Tab accepts."""

    def __init__(self) -> None:
        super().__init__("", id="suggestions", markup=False)
        self.display = False
        self._offers: Sequence[Offer] = ()
        self._at = 0
        self.moved = False
        """Whether the user has moved the selection."""

    @property
    def chosen(self) -> Offer | None:
        """The selected completion."""
        return self._offers[self._at] if self._offers else None

    def show(self, offers: Sequence[Offer]) -> None:
        """Show these completions; none hides the widget."""
        self._offers, self._at, self.moved = offers, 0, False
        self.display = bool(offers)
        self._draw()

    def move(self, step: int) -> None:
        """Move the selection."""
        if self._offers:
            self._at, self.moved = (self._at + step) % len(self._offers), True
            self._draw()

    def _draw(self) -> None:
        first = max(0, min(self._at - MAX_ROWS // 2, len(self._offers) - MAX_ROWS))
        shown = self._offers[first : first + MAX_ROWS]
        labels = [one_line(offer.label) for offer in shown]
        width = max((cell_len(label) for label in labels), default=0)
        rows: list[Content] = []
        for index, (offer, label) in enumerate(zip(shown, labels, strict=True), first):
            here = index == self._at
            rows.append(
                Content.assemble(
                    ("▌ " if here else "  ", "$accent"),
                    (label + " " * (width - cell_len(label)), "$accent bold" if here else "$accent"),
                    (f"  {offer.help}", "$quiet"),
                    ("  Tab" if here else "", "$accent"),
                )
            )
        if len(self._offers) > MAX_ROWS:
            rows.append(Content.styled(f"  {self._at + 1} of {len(self._offers)}  ↑ ↓", "$quiet"))
        self.update(Content("\n").join(rows))

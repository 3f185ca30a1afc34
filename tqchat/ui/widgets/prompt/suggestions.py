"""What a command in the prompt may become."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content
from textual.widgets import Static

from tqchat.ui.slash import described

SHOWN = 6


class Suggestions(Static):
    """Lines above the prompt; Tab takes the first."""

    def __init__(self) -> None:
        super().__init__("", id="suggestions", markup=False)
        self.display = False
        self._lines: Sequence[str] = ()

    @property
    def first(self) -> str | None:
        """What Tab completes to."""
        return self._lines[0] if self._lines else None

    def show(self, lines: Sequence[str]) -> None:
        """Offer these, or nothing."""
        self._lines = lines
        self.display = bool(lines)
        rows = [
            Content.assemble((f"{line:<12}", "$accent"), (f"  {described(line)}", "$quiet"))
            for line in lines[:SHOWN]
        ]
        if len(lines) > SHOWN:
            rows.append(Content.styled(f"and {len(lines) - SHOWN} more", "$quiet"))
        if rows:
            rows[0] = Content.assemble(rows[0], ("  Tab", "$accent"))
        self.update(Content("\n").join(rows))

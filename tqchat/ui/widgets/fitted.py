"""Text that is laid out for the width at which it is drawn."""

from __future__ import annotations

from collections.abc import Callable

from textual.content import Content
from textual.css.styles import RulesMap
from textual.strip import Strip
from textual.style import Style
from textual.visual import RenderOptions, Visual


class Fitted(Visual):
    """Text that ``fit`` lays out for a width in cells, in ``lines`` lines; ``None``: as many as that gives.

    A hidden widget has no width, and Textual does not report every change of it
    to a widget that is shown again, so that laying out in advance can be wrong.
    """

    def __init__(self, lines: int | None, fit: Callable[[int], Content]) -> None:
        self.lines, self.fit = lines, fit

    def render_strips(
        self, width: int, height: int | None, style: Style, options: RenderOptions
    ) -> list[Strip]:
        """The lines at a width in cells."""
        return self.fit(width).render_strips(width, height, style, options)

    def get_optimal_width(self, rules: RulesMap, container_width: int) -> int:
        """All the width there is, in cells."""
        return container_width

    def get_height(self, rules: RulesMap, width: int) -> int:
        """Number of lines."""
        return self.fit(width).get_height(rules, width) if self.lines is None else self.lines

"""Theme picker with a live preview."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.timer import Timer
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from tqchat.text import one_line

PREVIEW_DELAY_S = 0.08
"""Delay before the marked theme is previewed, so that held arrow keys stay fast."""


class ThemePicker(ModalScreen[str | None]):
    """A list of themes; the app behind it shows the marked one."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "cancel", "Back")]

    def __init__(self, names: Sequence[str], current: str) -> None:
        super().__init__(classes="dialog themes")
        self._names, self._current = names, current
        self._timer: Timer | None = None

    def compose(self) -> ComposeResult:
        """Names, where to put own themes, keys."""
        with Vertical(classes="box") as box:
            box.border_title = "Theme"
            yield OptionList(*(Option(self._line(name), id=name) for name in self._names), compact=True)
            own = "Your own: themes/NAME.toml beside config.toml, reloaded when it changes."
            yield Static(own, classes="legend", markup=False)
            keys = Content.assemble(("Enter", "$accent"), " applies   ", ("Esc", "$accent"), " goes back")
            yield Static(keys, classes="answers")

    def on_mount(self) -> None:
        """Start at the current theme."""
        self.query_one(OptionList).highlighted = self._names.index(self._current)

    def _line(self, name: str) -> Content:
        current = name == self._current
        return Content.assemble(("▌ " if current else "  ", "$accent"), (one_line(name), "bold" * current))

    @on(OptionList.OptionHighlighted)
    def _schedule_preview(self, event: OptionList.OptionHighlighted) -> None:
        if self._timer is not None:
            self._timer.stop()
        name = event.option.id
        assert name is not None
        self._timer = self.set_timer(PREVIEW_DELAY_S, lambda: self._preview(name))

    def _preview(self, name: str) -> None:
        if self.is_current:
            self.app.theme = name

    @on(OptionList.OptionSelected)
    def _keep(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option.id)

    def action_cancel(self) -> None:
        """Close; the app restores the previous theme."""
        self.dismiss(None)

"""Small modal dialogs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from tqchat.text import one_line
from tqchat.ui.actions.keys import bind
from tqchat.ui.widgets.fields import LineField


class Confirm(ModalScreen[bool]):
    """A yes/no question. Only y means yes, so that Enter cannot delete anything by accident.

    ``also``: other keys that mean yes, for a question about nothing that could be lost.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes"),
        Binding("n,escape,enter", "answer(False)", "No"),
    ]

    def __init__(
        self, title: str, question: str, yes: str, no: str = "keep it", also: str | None = None
    ) -> None:
        super().__init__(classes="dialog")
        self._title, self._question, self._yes, self._no = title, question, yes, no
        if also:
            bind(self, [Binding(also, "answer(True)", "Yes")])

    def compose(self) -> ComposeResult:
        """The question and its answers."""
        with Vertical(classes="box") as box:
            box.border_title = Content(self._title)
            yield Static(Content(self._question), markup=False)
            yield Static(
                Content.assemble(
                    ("y", "$error bold"), (f" {self._yes}   ", ""), ("Esc", "$accent"), (f" {self._no}", "")
                ),
                classes="answers",
            )

    def action_answer(self, answer: bool) -> None:
        """Close with the answer."""
        self.dismiss(answer)


class Ask(ModalScreen[str | None]):
    """Asks for one line of text; ``None`` if cancelled or empty."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "cancel", "Back")]

    def __init__(self, title: str, value: str = "", explanation: str = "", placeholder: str = "") -> None:
        super().__init__(classes="dialog")
        self._title, self._value, self._explanation, self._placeholder = (
            title,
            value,
            explanation,
            placeholder,
        )

    def compose(self) -> ComposeResult:
        """Input, explanation, keys."""
        with Vertical(classes="box") as box:
            box.border_title = Content(self._title)
            yield LineField(self._value, placeholder=self._placeholder, compact=True)
            yield Static(
                Content.assemble(
                    (f"{self._explanation}\n" if self._explanation else "", "$quiet"),
                    ("Enter", "$accent"), (" accepts   ", ""), ("Esc", "$accent"), (" goes back", ""),
                ),
                classes="answers",
            )  # fmt: skip

    @on(LineField.Submitted)
    def _take(self, event: LineField.Submitted) -> None:
        self.dismiss(event.value.strip() or None)

    def action_cancel(self) -> None:
        """Cancel."""
        self.dismiss(None)


class Choose(ModalScreen[str | None]):
    """A choice of options with descriptions."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "cancel", "Back")]

    def __init__(self, title: str, options: Sequence[tuple[str, str]], current: str) -> None:
        super().__init__(classes="dialog choose")
        self._title, self._options, self._current = title, options, current

    def compose(self) -> ComposeResult:
        """The list and its keys."""
        shown = [(name, one_line(name), one_line(what)) for name, what in self._options]
        width = max(len(label) for _, label, _ in shown)
        with Vertical(classes="box") as box:
            box.border_title = Content(self._title)
            yield OptionList(
                *(
                    Option(
                        Content.assemble(
                            ("▌ " if name == self._current else "  ", "$accent"),
                            (f"{label:<{width}}  ", "bold" if name == self._current else ""),
                            (what, "$quiet"),
                        ),
                        id=name,
                    )
                    for name, label, what in shown
                ),
                compact=True,
                markup=False,
            )
            yield Static(
                Content.assemble(("Enter", "$accent"), " selects   ", ("Esc", "$accent"), " goes back"),
                classes="answers",
            )

    def on_mount(self) -> None:
        """Start at the current option."""
        names = [name for name, _ in self._options]
        if self._current in names:
            self.query_one(OptionList).highlighted = names.index(self._current)

    @on(OptionList.OptionSelected)
    def _take(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option.id)

    def action_cancel(self) -> None:
        """Cancel."""
        self.dismiss(None)


class SavingDialog(ModalScreen[None]):
    """Shown while the cache is saved on quitting."""

    def compose(self) -> ComposeResult:
        """A sentence and the key to quit at once."""
        with Vertical(classes="box"):
            yield Static(
                "Saving the cache, so that this conversation need not be re-read next time…", markup=False
            )
            yield Static(
                Content.assemble(("^Q", "$accent"), (" quits without it; no message is lost.", "$quiet")),
                classes="answers",
            )

    def __init__(self) -> None:
        super().__init__(classes="dialog")

"""Small questions in the middle of the screen."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, Static


class Confirm(ModalScreen[bool]):
    """Yes by one key, no by any of the usual ones. Enter means no: what is deleted does not come back."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes"),
        Binding("n,escape,enter", "answer(False)", "No"),
    ]

    def __init__(self, title: str, question: str, yes: str) -> None:
        super().__init__(classes="dialog")
        self._title, self._question, self._yes = title, question, yes

    def compose(self) -> ComposeResult:
        """The question and its two answers."""
        with Vertical(classes="box") as box:
            box.border_title = Content(self._title)
            yield Static(Content(self._question), markup=False)
            yield Static(
                Content.assemble(
                    ("y", "$error bold"), (f" {self._yes}   ", ""), ("Esc", "$accent"), (" keep it", "")
                ),
                classes="answers",
            )

    def action_answer(self, answer: bool) -> None:
        """Leave with the answer."""
        self.dismiss(answer)


class Ask(ModalScreen[str | None]):
    """One line of text; ``None`` if the person goes back."""

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
        """A line to write on, and what may be written."""
        with Vertical(classes="box") as box:
            box.border_title = Content(self._title)
            yield Input(self._value, placeholder=self._placeholder, compact=True)
            yield Static(
                Content.assemble(
                    (f"{self._explanation}\n" if self._explanation else "", "$quiet"),
                    ("Enter", "$accent"), (" takes it   ", ""), ("Esc", "$accent"), (" goes back", ""),
                ),
                classes="answers",
            )  # fmt: skip

    @on(Input.Submitted)
    def _take(self, event: Input.Submitted) -> None:
        self.dismiss(event.value.strip() or None)

    def action_cancel(self) -> None:
        """Leave without."""
        self.dismiss(None)


class Leaving(ModalScreen[None]):
    """Shown while the cache is being saved on the way out."""

    def compose(self) -> ComposeResult:
        """One sentence."""
        with Vertical(classes="box"):
            yield Static(
                "Saving the cache, so that this conversation goes on at once next time…", markup=False
            )
            yield Static(
                Content.assemble(("^Q", "$accent"), (" leaves without it; no message is lost.", "$quiet")),
                classes="answers",
            )

    def __init__(self) -> None:
        super().__init__(classes="dialog")

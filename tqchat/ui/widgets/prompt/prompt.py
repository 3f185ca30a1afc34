"""Where a message is written."""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea

LONG_PASTE, LONG_PASTE_LINES = 1_500, 15
"""Characters or lines from which on a pasted text is folded."""


class Prompt(TextArea):
    """Several lines of text; Enter sends.

    Up at the first line goes back through earlier messages, down at the last comes forward.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "send", "Send", show=False),
        Binding("shift+enter,ctrl+j,alt+enter", "newline", "New line", show=False),
    ]

    class Submitted(Message):
        """The person sends the text. It stays until ``Prompt.clear_sent`` says that it is on disk."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    class Completing(Message):
        """The person asks for the rest of what is written: Tab."""

    def __init__(self) -> None:
        super().__init__(
            id="prompt",
            compact=True,
            highlight_cursor_line=False,
            placeholder="Write a message, or /command",
        )
        self._history: list[str] = []
        self._position: int | None = None
        self._draft = ""
        self._pasted: dict[str, str] = {}

    @property
    def whole(self) -> str:
        """The text, with what was pasted in place of what stands for it."""
        text = self.text
        for chip, pasted in self._pasted.items():
            text = text.replace(chip, pasted)
        return text

    def remember(self, texts: list[str]) -> None:
        """The earlier messages that up goes through, oldest first."""
        self._history = texts
        self._position = None

    def put(self, text: str) -> None:
        """Replace the text, with the cursor at its end."""
        self.text = text
        self.move_cursor(self.document.end)

    def take_back(self, text: str) -> None:
        """A message that was not answered returns, before whatever has been written since."""
        written = self.text
        self.put(f"{text}\n\n{written}" if written.strip() else text)

    def clear_sent(self) -> None:
        """The text was sent."""
        self._history.append(self.whole)
        self._position, self._draft = None, ""
        self._pasted.clear()
        self.clear()

    def action_send(self) -> None:
        """Hand the text over, if there is any."""
        if self.text.strip():
            self.post_message(self.Submitted(self.whole))

    def action_newline(self) -> None:
        """Break the line here."""
        self.insert("\n")

    async def _on_key(self, event: events.Key) -> None:
        # TextArea takes Enter as text before bindings are looked at.
        if event.key == "enter":
            event.stop()
            event.prevent_default()
            self.action_send()
            return
        if event.key == "tab":
            event.stop()
            event.prevent_default()
            self.post_message(self.Completing())
            return
        await super()._on_key(event)

    async def _on_paste(self, event: events.Paste) -> None:
        # A long text is one mark in the prompt: what is being written stays in view.
        if len(event.text) > LONG_PASTE or event.text.count("\n") >= LONG_PASTE_LINES:
            event.stop()
            event.prevent_default()
            chip = f"[pasted text {len(self._pasted) + 1}: {len(event.text):,} characters]"
            self._pasted[chip] = event.text
            self.insert(chip)
            return
        await super()._on_paste(event)

    def action_cursor_up(self, select: bool = False) -> None:
        """Up, or to the message before where there is no line above."""
        if not select and self._at_first_row() and self._recall(-1):
            return
        super().action_cursor_up(select)

    def action_cursor_down(self, select: bool = False) -> None:
        """Down, or to the message after where there is no line below."""
        if not select and self._at_last_row() and self._recall(1):
            return
        super().action_cursor_down(select)

    def _at_first_row(self) -> bool:
        return bool(self.navigator.is_first_wrapped_line(self.cursor_location))

    def _at_last_row(self) -> bool:
        return bool(self.navigator.is_last_wrapped_line(self.cursor_location))

    def _recall(self, step: int) -> bool:
        """Go ``step`` through the history; what was being written comes back after its end."""
        here = len(self._history) if self._position is None else self._position
        there = here + step
        if not 0 <= there <= len(self._history) or (step > 0 and self._position is None):
            return False
        if self._position is None:
            self._draft = self.text
        self._position = None if there == len(self._history) else there
        self.put(self._draft if self._position is None else self._history[there])
        return True

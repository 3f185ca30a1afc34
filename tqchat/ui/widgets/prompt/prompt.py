"""Where a message is written."""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea

LONG_PASTE, LONG_PASTE_LINES = 1_500, 15
"""Characters or lines from which on a pasted text is folded."""
LONG_TEXT = 20_000
"""Characters from which on a text that comes back (a draft, an earlier message) is."""


KEY_HELP: tuple[tuple[str, str], ...] = (
    ("enter", "Send"),
    ("shift+enter  ctrl+j", "New line"),
    ("up  down", "Earlier and later messages"),
    ("tab", "Complete, or go to the next part"),
)
"""The prompt's own keys, for help."""


class Prompt(TextArea):
    """Several lines of text; Enter sends.

    Up at the first line goes back through earlier messages, down at the last comes forward.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "send", "Send", show=False),
        Binding("shift+enter,ctrl+j,alt+enter", "newline", "New line", show=False),
    ]

    class Submitted(Message):
        """The person sends the text. It stays until ``Prompt.clear_sent`` says that it is on disk.

        ``typed`` is what was written by hand: the text without what was pasted and folded.
        """

        def __init__(self, text: str, typed: str) -> None:
            super().__init__()
            self.text, self.typed = text, typed

    class Completing(Message):
        """The person asks for the rest of what is written: Tab; or goes over what is offered."""

        def __init__(self, step: int = 0) -> None:
            super().__init__()
            self.step = step

    def __init__(self) -> None:
        super().__init__(
            id="prompt",
            compact=True,
            highlight_cursor_line=False,
            placeholder="Write a message, /command or @file",
        )
        self._history: list[str] = []
        self._position: int | None = None
        self._draft = ""
        self._pasted: dict[str, str] = {}
        self._sent: tuple[str, dict[str, str], tuple[int, int]] = ("", {}, (0, 0))
        self.offering = False
        """Whether completions are shown: arrows go over them."""
        self.enter_completes = False
        """Whether Enter takes one instead of sending."""

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
        """Replace the text, with the cursor at its end. A very long one is folded."""
        self.text = self._fold(text) if len(text) > LONG_TEXT else text
        self.move_cursor(self.document.end)

    def complete(self, start: int, insert: str) -> None:
        """Put a completion in the place of what was begun at column ``start``."""
        row, column = self.cursor_location
        self.replace(insert, (row, start), (row, column))

    @property
    def before_cursor(self) -> str:
        """The cursor's line, up to the cursor."""
        row, column = self.cursor_location
        return self.document.get_line(row)[:column]

    def _fold(self, text: str) -> str:
        """What stands for a long text."""
        chip = f"[pasted text {len(self._pasted) + 1}: {len(text):,} characters]"
        self._pasted[chip] = text
        return chip

    def take_back(self, text: str) -> None:
        """A message that was not answered returns, before whatever has been written since."""
        written = self.text
        self.put(f"{text}\n\n{written}" if written.strip() else text)

    def clear_sent(self) -> None:
        """The text was sent."""
        self._sent = self.text, dict(self._pasted), self.cursor_location
        self._history.append(self.whole)
        self._position, self._draft = None, ""
        self._pasted.clear()
        self.clear()

    def restore_sent(self) -> None:
        """Undo ``clear_sent``: what was sent has been refused."""
        text, self._pasted, cursor = self._sent
        self._history.pop()
        self.text = text
        self.move_cursor(cursor)

    def action_send(self) -> None:
        """Hand the text over, if there is any."""
        if self.text.strip():
            self.post_message(self.Submitted(self.whole, self.text))

    def action_newline(self) -> None:
        """Break the line here."""
        self.insert("\n")

    async def _on_key(self, event: events.Key) -> None:
        # TextArea takes Enter as text before bindings are looked at.
        own = True
        if event.key == "tab" or (event.key == "enter" and self.enter_completes):
            self.post_message(self.Completing())
        elif event.key == "enter":
            self.action_send()
        elif event.key in ("up", "down") and self.offering:
            self.post_message(self.Completing(-1 if event.key == "up" else 1))
        else:
            own = event.key in ("backspace", "delete") and self._delete_chip(event.key == "backspace")
        if own:
            event.stop()
            event.prevent_default()
            return
        await super()._on_key(event)

    def _delete_chip(self, backwards: bool) -> bool:
        """Delete what stands for a pasted text as one, if the cursor touches it; whether it does."""
        if self.selection.start != self.selection.end:
            return False
        row, column = self.cursor_location
        line = self.document.get_line(row)
        for chip in self._pasted:
            start = line.find(chip)
            while start >= 0:
                end = start + len(chip)
                if (start < column <= end) if backwards else (start <= column < end):
                    self.delete((row, start), (row, end))
                    return True
                start = line.find(chip, end)
        return False

    async def _on_paste(self, event: events.Paste) -> None:
        # A long text is one mark in the prompt: what is being written stays in view.
        if len(event.text) > LONG_PASTE or event.text.count("\n") >= LONG_PASTE_LINES:
            event.stop()
            event.prevent_default()
            self.insert(self._fold(event.text))
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

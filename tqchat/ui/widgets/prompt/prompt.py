"""The input for messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType

from tqchat.ui.widgets.fields import TextField, entered

LONG_PASTE_CHARACTERS, LONG_PASTE_LINES = 1_500, 15
"""A longer pasted text is folded into a placeholder."""
LONG_TEXT_CHARACTERS = 20_000
"""A longer unsent text or earlier message is folded when it is put back."""


KEY_HELP: tuple[tuple[str, str], ...] = (
    ("enter", "Send"),
    ("shift+enter  ctrl+j", "New line"),
    ("up  down", "Earlier and later messages"),
    ("tab", "Complete, or go to the next part"),
)
"""The prompt's own keys, for help."""


class Prompt(TextField):
    """A multi-line input; Enter sends.

    Up on the first line recalls earlier messages, Down on the last line later ones.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "send", "Send", show=False),
        Binding("shift+enter,ctrl+j,alt+enter", "newline", "New line", show=False),
    ]

    def __init__(self) -> None:
        super().__init__(
            id="prompt",
            compact=True,
            highlight_cursor_line=False,
            placeholder="Write a message, /command or @file",
        )
        self._history: list[str] = []
        self._position: int | None = None
        self._unsent = ""
        self._pasted: dict[str, str] = {}
        self._sent: tuple[str, list[str], tuple[int, int]] = ("", [], (0, 0))
        self.submit: Callable[[str, str], None] = lambda text, typed: None
        """Sends the text; ``typed`` is the text with placeholders instead of folded pastes. Called within the
        handler of the key, so that text typed behind Enter belongs to the next message."""
        self.suggest: Callable[[], None] = lambda: None
        """Updates the suggestions for the text as it is now."""
        self.choose: Callable[[int], None] = lambda step: None
        """Moves among the suggestions by a step; 0 inserts the chosen one."""
        self.has_suggestions = False
        """Whether completions are shown, so that arrows move through them."""
        self.enter_completes = False
        """Whether Enter accepts a completion instead of sending."""
        self.ends_with_paste = False
        """Whether the last change was a paste: Enter does not complete a name in it."""
        self._known: list[str] = []

    @property
    def full_text(self) -> str:
        """The text with placeholders replaced by the pasted texts."""
        text = self.text
        for placeholder, pasted in self._pasted.items():
            text = text.replace(placeholder, pasted)
        return text

    def remember(self, texts: list[str]) -> None:
        """Set the messages that Up recalls, oldest first."""
        self._history = texts
        self._position = None

    def put(self, text: str) -> None:
        """Replace the text and move the cursor to its end; a very long text is folded."""
        self.text = self._fold(text) if len(text) > LONG_TEXT_CHARACTERS else text
        self.move_cursor(self.document.end)

    def put_back(self, text: str) -> None:
        """``put`` a text that was in the prompt before: unsent, sent, or being edited."""
        self._known = [text]
        self.put(text)

    @property
    def known_text(self) -> str:
        """Text pasted or put back, not typed: an ``@name`` in it need not be meant as a file."""
        return "\n".join(self._known)

    def complete(self, start: int, insert: str) -> None:
        """Replace the text from column ``start`` to the cursor with a completion."""
        row, column = self.cursor_location
        self.replace(insert, (row, start), (row, column))

    @property
    def before_cursor(self) -> str:
        """The cursor's line up to the cursor."""
        row, column = self.cursor_location
        return self.document.get_line(row)[:column]

    @property
    def is_in_word(self) -> bool:
        """Whether the cursor is before more of a word: what is before it alone is not to be completed."""
        row, column = self.cursor_location
        return bool(self.document.get_line(row)[column : column + 1].strip())

    def _fold(self, text: str) -> str:
        """Store a long text; its placeholder."""
        text = entered(text)
        placeholder = f"[pasted text {len(self._pasted) + 1}: {len(text):,} characters]"
        self._pasted[placeholder] = text
        return placeholder

    def prepend(self, text: str) -> None:
        """Put an unanswered message back, before any text written since."""
        written = self.text
        self.put_back(f"{text}\n\n{written}" if written.strip() else text)

    def clear_sent(self) -> None:
        """Clear the prompt and add its text to the history.

        Pasted texts stay: undo brings their placeholders back.
        """
        self._sent = self.text, list(self._known), self.cursor_location
        self._history.append(self.full_text)
        self._position, self._unsent = None, ""
        self._known.clear()
        self.clear()

    def restore_sent(self) -> None:
        """Undo ``clear_sent``: the submitted text was refused."""
        text, self._known, cursor = self._sent
        self._history.pop()
        self.text = text
        self.move_cursor(cursor)

    def action_send(self) -> None:
        """Submit the text unless it is blank."""
        if self.text.strip():
            self.submit(self.full_text, self.text)

    def action_newline(self) -> None:
        """Insert a line break."""
        self.insert("\n")

    async def _on_key(self, event: events.Key) -> None:
        # TextArea inserts Enter before bindings are checked. Its own handler runs after this one.
        own = True
        if event.key == "tab":
            self.ends_with_paste = False
        if event.key in ("tab", "enter", "up", "down"):
            self.suggest()
        if event.key == "tab" or (event.key == "enter" and self.enter_completes):
            self.choose(0)
        elif event.key == "enter":
            self.action_send()
        elif event.key in ("up", "down") and self.has_suggestions:
            self.choose(-1 if event.key == "up" else 1)
        else:
            self.ends_with_paste = False
            own = event.key in ("backspace", "delete") and self._delete_placeholder(event.key == "backspace")
        if own:
            event.stop()
            event.prevent_default()

    def _delete_placeholder(self, backwards: bool) -> bool:
        """Delete a whole placeholder next to the cursor; whether there was one."""
        if self.selection.start != self.selection.end:
            return False
        row, column = self.cursor_location
        line = self.document.get_line(row)
        for placeholder in self._pasted:
            start = line.find(placeholder)
            while start >= 0:
                end = start + len(placeholder)
                if (start < column <= end) if backwards else (start <= column < end):
                    self.delete((row, start), (row, end))
                    return True
                start = line.find(placeholder, end)
        return False

    async def _on_paste(self, event: events.Paste) -> None:
        # Textual would call the handler of TextArea as well, which inserts the text again.
        event.stop()
        event.prevent_default()
        text = entered(event.text)
        # A placeholder keeps the typed text in view.
        if len(text) > LONG_PASTE_CHARACTERS or text.count("\n") >= LONG_PASTE_LINES:
            text = self._fold(text)
        else:
            self._known.append(text)
        self.ends_with_paste = bool(text)
        self.move_cursor(self.replace(text, *self.selection).end_location)

    def action_cursor_up(self, select: bool = False) -> None:
        """Move up, or recall the previous message on the first line."""
        if not select and self._at_first_row() and self._recall(-1):
            return
        super().action_cursor_up(select)

    def action_cursor_down(self, select: bool = False) -> None:
        """Move down, or recall the next message on the last line."""
        if not select and self._at_last_row() and self._recall(1):
            return
        super().action_cursor_down(select)

    def _at_first_row(self) -> bool:
        return bool(self.navigator.is_first_wrapped_line(self.cursor_location))

    def _at_last_row(self) -> bool:
        return bool(self.navigator.is_last_wrapped_line(self.cursor_location))

    def _recall(self, step: int) -> bool:
        """Move ``step`` through the history; after its end the unsent text returns."""
        here = len(self._history) if self._position is None else self._position
        there = here + step
        if not 0 <= there <= len(self._history) or (step > 0 and self._position is None):
            return False
        if self._position is None:
            self._unsent = self.text
        self._position = None if there == len(self._history) else there
        self.put_back(self._unsent if self._position is None else self._history[there])
        return True

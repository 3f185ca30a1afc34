"""Unsent text: saved with its conversation, and set aside while an earlier message is edited."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tqchat.errors import TqchatError
from tqchat.files import write_atomically
from tqchat.paths import make_private_folder
from tqchat.store.unsaved import write_somewhere
from tqchat.ui.controller.controller import Controller
from tqchat.ui.widgets.prompt.prompt import Prompt


class UnsentText:
    """The text in the prompt that has not been sent.

    Args:
        file: Where text for a conversation that does not exist yet is saved.
        in_thread: Runs a blocking function in a thread.
    """

    def __init__(
        self,
        chat: Controller,
        prompt: Callable[[], Prompt],
        file: Path,
        in_thread: Callable[[Callable[[], object]], None],
    ) -> None:
        self._chat, self._prompt = chat, prompt
        self._file, self._in_thread = file, in_thread
        self._aside = self._saved = ""

    @property
    def _editing(self) -> bool:
        return self._chat.shown.fork is not None and self._chat.shown.fork.edited_id is not None

    def keep(self) -> None:
        """Save it with the open conversation; during an edit, the text that was set aside."""
        self._chat.shown.keep_unsent_text(self._aside if self._editing else self._prompt().full_text)
        text = self._chat.shown.new_text
        if text != self._saved:
            self._saved = text
            self._in_thread(lambda: self._save(text))

    def load(self) -> None:
        """Read the text that was typed for a new conversation and not sent before the last end."""
        try:
            self._saved = self._chat.shown.new_text = self._file.read_text("utf-8")
        except (OSError, ValueError):
            pass  # there was none

    def close(self) -> list[str]:
        """Save the text for a new conversation before the end; sentences for the user if that failed."""
        text = self._chat.shown.new_text
        if self._save(text):
            return []
        written = write_somewhere(text, self._file.parent, ".txt")
        return [f"The unsent text is in {written}." if written else f"The unsent text is:\n{text}"]

    def _save(self, text: str) -> bool:
        try:
            if text:
                make_private_folder(self._file.parent)
                write_atomically(self._file, text.encode())
            else:
                self._file.unlink(missing_ok=True)
        except (OSError, TqchatError):
            return not text
        return True

    def show(self) -> None:
        """Put the open conversation's unsent text into the prompt."""
        self._prompt().put(self._chat.shown.unsent_text)

    def edit(self, text: str) -> None:
        """Put the text of an edited message into the prompt, if any, and set the current text aside."""
        self._aside = self._prompt().full_text
        if text:
            self._prompt().put(text)

    def leave_edit(self) -> bool:
        """Leave a branch or edit, and put back the text from before; ``False`` if there was none."""
        editing = self._editing
        if not self._chat.tree.leave_fork():
            return False
        if editing:
            self._prompt().put(self._aside)
        return True

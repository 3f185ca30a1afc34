"""Unsent text: saved with its conversation, and set aside while an earlier message is edited."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from tqchat.errors import TqchatError
from tqchat.files import Unreadable, keep_beside, read_bytes, write_atomically
from tqchat.paths import make_private_folder
from tqchat.store.unsaved import write_somewhere
from tqchat.ui.controller.controller import Controller
from tqchat.ui.widgets.prompt.prompt import Prompt

_MAX_BYTES = 64 << 20


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
        self._edited_id: str | None = None

    def keep(self) -> None:
        """Save it with the open conversation; during an edit, the text that was set aside."""
        self.settle()
        text = self._aside if self._edited_id is not None else self._prompt().full_text
        self._chat.shown.keep_unsent_text(text)
        text = self._chat.shown.new_text
        if text != self._saved:
            self._saved = text
            self._in_thread(lambda: self._save(text))

    def load(self) -> None:
        """Read the text that was typed for a new conversation and not sent before the last end."""
        try:
            text = read_bytes(self._file, _MAX_BYTES).decode("utf-8", "replace")
        except FileNotFoundError:
            return
        except Unreadable:
            with contextlib.suppress(OSError):
                keep_beside(self._file)  # the next text must not replace it
            return
        self._saved = self._chat.shown.new_text = text

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
        self._edited_id = None
        self._prompt().put_back(self._chat.shown.unsent_text)

    def edit(self, text: str) -> None:
        """Put the text of an edited message into the prompt, if any, and set the current text aside."""
        was_editing = self._edited_id is not None
        if not was_editing:
            self._aside = self._prompt().full_text
        fork = self._chat.shown.fork
        self._edited_id = fork.edited_id if fork else None
        if self._edited_id is not None:
            self._prompt().put_back(text)
        elif was_editing:
            self._prompt().put_back(self._aside)

    def leave_edit(self) -> bool:
        """Leave a branch or edit, and put back the text from before; ``False`` if there was none."""
        left = self._chat.tree.leave_fork()
        self.settle()
        return left

    def settle(self) -> None:
        """Put back the text from before an edit that has ended: sent, left, or another branch is shown."""
        fork = self._chat.shown.fork
        if self._edited_id is not None and (fork is None or fork.edited_id != self._edited_id):
            self._edited_id = None
            self._prompt().put_back(self._aside)

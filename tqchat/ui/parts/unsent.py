"""Unsent text: saved with its conversation, and set aside while an earlier message is edited."""

from __future__ import annotations

from collections.abc import Callable

from tqchat.ui.controller.controller import Controller
from tqchat.ui.widgets.prompt.prompt import Prompt


class UnsentText:
    """The text in the prompt that has not been sent."""

    def __init__(self, chat: Controller, prompt: Callable[[], Prompt]) -> None:
        self._chat, self._prompt = chat, prompt
        self._aside = ""

    @property
    def _editing(self) -> bool:
        return self._chat.shown.fork is not None and self._chat.shown.fork.edited_id is not None

    def keep(self) -> None:
        """Save it with the open conversation; during an edit, the text that was set aside."""
        self._chat.shown.keep_unsent_text(self._aside if self._editing else self._prompt().full_text)

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

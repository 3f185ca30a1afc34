"""The input fields of all screens: whatever enters one is printable, so what is sent or saved is shown.

Keys, pastes, unsent texts, earlier messages, system prompts, presets and completions pass the methods below.
"""

from __future__ import annotations

from textual.widgets import Input, TextArea
from textual.widgets.text_area import Edit, EditResult

from tqchat.text import printable, single_line


def entered(text: str) -> str:
    """The text as a field takes it: printable; line breaks that terminals paste as carriage returns stay."""
    return printable(text.replace("\r\n", "\n").replace("\r", "\n"))


class LineField(Input):
    """A field of one line."""

    def validate_value(self, value: str) -> str:
        """Called by Textual for every new value."""
        return single_line(value)


class TextField(TextArea):
    """A field of several lines."""

    def edit(self, edit: Edit) -> EditResult:
        """Called by Textual for everything that is inserted."""
        edit.text = entered(edit.text)
        return super().edit(edit)

    def _set_document(self, text: str, language: str | None) -> None:
        # Called by Textual for every text that replaces the whole.
        super()._set_document(entered(text), language)

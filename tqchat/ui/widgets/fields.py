"""The input fields of all screens: whatever enters one is printable, so what is sent or saved is shown.

Keys, pastes, unsent texts, earlier messages, system prompts, presets and completions pass the methods below.
"""

from __future__ import annotations

from textual import events
from textual.widget import Widget
from textual.widgets import Input, TextArea
from textual.widgets.text_area import Edit, EditResult

from tqchat.text import printable, single_line, with_newlines


def entered(text: str) -> str:
    """The text as a field takes it: printable; line breaks that terminals paste as carriage returns stay."""
    return printable(with_newlines(text))


async def run_own_binding(field: Widget, event: events.Key) -> None:
    """Run a field's own key binding at once.

    Textual passes a key that inserts nothing to the app first: a backspace would be handled after the text
    that was typed behind it.
    """
    for binding in () if event.is_printable else field._bindings.key_to_bindings.get(event.key, ()):
        if not binding.priority and await field.app.run_action(binding.action, field):
            event.stop()
            event.prevent_default()
            return


class LineField(Input):
    """A field of one line."""

    async def _on_key(self, event: events.Key) -> None:
        await run_own_binding(self, event)

    def validate_value(self, value: str) -> str:
        """Called by Textual for every new value."""
        return single_line(value)


class TextField(TextArea):
    """A field of several lines."""

    async def _on_key(self, event: events.Key) -> None:
        await run_own_binding(self, event)

    def edit(self, edit: Edit) -> EditResult:
        """Called by Textual for everything that is inserted."""
        edit.text = entered(edit.text)
        return super().edit(edit)

    def _set_document(self, text: str, language: str | None) -> None:
        # Called by Textual for every text that replaces the whole.
        super()._set_document(entered(text), language)

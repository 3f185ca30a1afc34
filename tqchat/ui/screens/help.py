"""All keys, from the bindings that are really in force, and all slash commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from tqchat.ui.keymap import ACTIONS, GROUPS, MESSAGE_ACTIONS, PROMPT_KEYS, key_label
from tqchat.ui.slash import COMMANDS

WIDTH = 104
"""Screen width from which on the explanations fit beside the keys."""


class Help(ModalScreen[None]):
    """Keys by group; a key that was rebound shows as rebound."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,f1,q", "close", "Close")]

    def __init__(self, keys: Mapping[str, Sequence[str]]) -> None:
        super().__init__(classes="dialog help")
        self._keys = keys

    def compose(self) -> ComposeResult:
        """One text that scrolls."""
        with VerticalScroll(classes="box") as box:
            box.border_title = "Keys"
            box.border_subtitle = "Esc closes"
            yield Static("", markup=False)

    def on_mount(self) -> None:
        """The arrows scroll."""
        self.query_one(VerticalScroll).focus()

    def on_resize(self) -> None:
        """The explanations stay where there is room for them."""
        self.query_one(Static).update(self._text(explained=self.size.width >= WIDTH))

    def action_close(self) -> None:
        """Back to the chat."""
        self.dismiss(None)

    def _text(self, explained: bool) -> Content:
        rows = [("Writing", "", "")] + [
            (" ".join(key_label(key) for key in keys.split()), does, "") for keys, does in PROMPT_KEYS
        ]
        for group in GROUPS:
            rows.append((group, "", ""))
            for action in (*ACTIONS, *MESSAGE_ACTIONS):
                if action.group == group and action.name in self._keys:
                    keys = " ".join(key_label(key) for key in self._keys[action.name])
                    rows.append((keys, action.title, action.help))
        rows.append(("Commands, written as a message", "", ""))
        rows += [(f"/{one.name} {one.argument}".rstrip(), _sentence(one.help), "") for one in COMMANDS]
        lines: list[Content] = []
        for keys, title, text in rows:
            if not title:
                lines += (
                    [Content(""), Content.styled(keys, "bold")] if lines else [Content.styled(keys, "bold")]
                )
                continue
            lines.append(
                Content.assemble((f"  {keys:<20} ", "$accent"), (f"{title:<22} ", ""), (text, "$quiet"))
                if text and explained
                else Content.assemble((f"  {keys:<20} ", "$accent"), (title, ""))
            )
        return Content("\n").join(lines)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"

"""Help: all keys as they are bound, and all slash commands."""

from __future__ import annotations

from textwrap import wrap
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from tqchat.ui.actions.keys import Keys, key_label
from tqchat.ui.actions.registry import GROUPS
from tqchat.ui.widgets.prompt.prompt import KEY_HELP

WIDE = 84
"""Width in cells from which explanations are shown."""
KEYS, TITLE = 20, 22
"""Widths of the first two columns in cells."""


class Help(ModalScreen[None]):
    """The help text in a scrollable box."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,f1,q", "close", "Close")]

    def __init__(self, keys: Keys) -> None:
        super().__init__(classes="dialog help")
        self._keys = keys

    def compose(self) -> ComposeResult:
        """The scrollable text."""
        with VerticalScroll(classes="box") as box:
            box.border_title = "Keys"
            box.border_subtitle = "Esc closes"
            yield KeyList(self._keys)

    def on_mount(self) -> None:
        """Focus the text, so that arrows scroll."""
        self.query_one(VerticalScroll).focus()

    def action_close(self) -> None:
        """Close the help."""
        self.dismiss(None)


class KeyList(Static):
    """Keys by group, then slash commands."""

    def __init__(self, keys: Keys) -> None:
        super().__init__("", markup=False)
        self._keys = keys

    def on_resize(self) -> None:
        """Lay out the columns for the width."""
        lines: list[Content] = []
        for keys, title, text in self._rows():
            if not title:
                lines += [*([Content("")] if lines else []), Content.styled(keys, "bold")]
            elif text and self.size.width >= WIDE:
                lines += _columns(
                    self.size.width,
                    (keys, "$accent", KEYS),
                    (title, "", TITLE),
                    (text, "$quiet", 0),
                )
            else:
                lines += _columns(self.size.width, (keys, "$accent", KEYS), (title, "", 0))
        self.update(Content("\n").join(lines))

    def _rows(self) -> list[tuple[str, str, str]]:
        rows = [("Writing", "", "")] + [
            (" ".join(key_label(key) for key in keys.split()), does, "") for keys, does in KEY_HELP
        ]
        for group in GROUPS:
            rows.append((group, "", ""))
            for action in self._keys.actions:
                if action.group == group and (labels := self._keys.labels(action.name)):
                    rows.append(("  ".join(labels), action.title, action.help))
        rows.append(("Slash commands", "", ""))
        rows += [
            (f"/{slash.word} {slash.argument}".rstrip(), _sentence(slash.help), "")
            for slash in self._keys.actions.slashes()
        ]
        return rows


def _columns(width: int, *columns: tuple[str, str, int]) -> list[Content]:
    """Texts side by side, each wrapped to its width in cells; 0 means the remaining width."""
    left = max(12, width - 2 - sum(cells + 1 for _, _, cells in columns[:-1]))
    parts = [
        (wrap(text, cells or left, break_long_words=False) or [""], style, cells)
        for text, style, cells in columns
    ]
    return [
        Content.assemble(
            "  ",
            *(
                (f"{texts[row] if row < len(texts) else '':<{cells}}{' ' if cells else ''}", style)
                for texts, style, cells in parts
            ),
        )
        for row in range(max(len(texts) for texts, _, _ in parts))
    ]


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"

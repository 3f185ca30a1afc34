"""Help: all keys in force and all slash commands."""

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

WIDE_CELLS = 84
"""Width from which on the sentences fit beside the keys."""
KEYS_CELLS, TITLE_CELLS = 20, 22
"""Width of the first two columns."""


class Help(ModalScreen[None]):
    """A scrollable list of keys and commands."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,f1,q", "close", "Close")]

    def __init__(self, keys: Keys) -> None:
        super().__init__(classes="dialog help")
        self._keys = keys

    def compose(self) -> ComposeResult:
        """The list in its box."""
        with VerticalScroll(classes="box") as box:
            box.border_title = "Keys"
            box.border_subtitle = "Esc closes"
            yield KeyList(self._keys)

    def on_mount(self) -> None:
        """Let the arrow keys scroll."""
        self.query_one(VerticalScroll).focus()

    def action_close(self) -> None:
        """Back to the chat."""
        self.dismiss(None)


class KeyList(Static):
    """Keys by group, a person's own included."""

    def __init__(self, keys: Keys) -> None:
        super().__init__("", markup=False)
        self._keys = keys

    def on_resize(self) -> None:
        """Draw in columns; the sentences only where there is room."""
        lines: list[Content] = []
        for keys, title, text in self._rows():
            if not title:
                lines += [*([Content("")] if lines else []), Content.styled(keys, "bold")]
            elif text and self.size.width >= WIDE_CELLS:
                lines += _columns(
                    self.size.width,
                    (keys, "$accent", KEYS_CELLS),
                    (title, "", TITLE_CELLS),
                    (text, "$quiet", 0),
                )
            else:
                lines += _columns(self.size.width, (keys, "$accent", KEYS_CELLS), (title, "", 0))
        self.update(Content("\n").join(lines))

    def _rows(self) -> list[tuple[str, str, str]]:
        rows = [("Writing", "", "")] + [
            (" ".join(key_label(key) for key in keys.split()), does, "") for keys, does in KEY_HELP
        ]
        for group in GROUPS:
            rows.append((group, "", ""))
            for action in self._keys.actions:
                if action.group == group and (keys := self._keys.of(action.name)):
                    rows.append((" ".join(map(key_label, keys)), action.title, action.help))
        rows.append(("Commands, written as a message", "", ""))
        rows += [
            (f"/{one.word} {one.argument}".rstrip(), _sentence(one.help), "")
            for one in self._keys.actions.slashes()
        ]
        return rows


def _columns(width: int, *columns: tuple[str, str, int]) -> list[Content]:
    """Texts side by side, each wrapped in its column of so many cells; the last takes what is left."""
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

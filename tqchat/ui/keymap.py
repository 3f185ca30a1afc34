"""Every action of the app, once: its keys, its words, and where help and the palette list it.

The bindings of the app, the hints in the last line, the palette and F1's help are all made from this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from textual.binding import Binding
from textual.screen import Screen

Group = Literal["Conversation", "Reply", "Cache", "Screen"]
GROUPS: tuple[Group, ...] = ("Conversation", "Reply", "Cache", "Screen")


@dataclass(frozen=True)
class Action:
    """Something a person can do from anywhere in the app.

    ``hint`` is its word in the last line, most important first by ``rank``; none is shown with rank 0.
    ``priority`` actions win over the prompt's own editing keys.
    """

    name: str
    keys: str
    title: str
    help: str
    group: Group
    hint: str = ""
    rank: int = 0
    priority: bool = True

    @property
    def binding(self) -> Binding:
        """The action as Textual binds it. The id is what a person's keymap names."""
        return Binding(
            self.keys,
            self.name,
            self.title,
            show=False,
            priority=self.priority,
            id=self.name,
            tooltip=self.help,
        )


ACTIONS: tuple[Action, ...] = (
    Action("new", "ctrl+n", "New conversation", "Start with an empty page.", "Conversation", "new", 4),
    Action(
        "toggle_list",
        "f2,ctrl+b",
        "Conversations",
        "Show or hide the list of conversations.",
        "Conversation",
        "list",
        6,
    ),
    Action(
        "previous",
        "alt+up,ctrl+pageup",
        "Newer conversation",
        "Open the one above in the list.",
        "Conversation",
    ),
    Action(
        "next",
        "alt+down,ctrl+pagedown",
        "Older conversation",
        "Open the one below in the list.",
        "Conversation",
    ),
    Action("rename", "ctrl+t", "Rename", "Give this conversation another title.", "Conversation"),
    Action("delete", "f8", "Delete", "With its cache, after asking.", "Conversation"),
    Action(
        "stop",
        "escape",
        "Stop",
        "The reply, a waiting message, a download.",
        "Reply",
        priority=False,
    ),
    Action(
        "regenerate", "ctrl+r", "Answer again", "Have the last message answered again.", "Reply", "again", 7
    ),
    Action(
        "scheme",
        "ctrl+k",
        "Cache scheme",
        "How this conversation's cache is stored.",
        "Cache",
        "scheme",
        2,
    ),
    Action(
        "toggle_gauge", "f3,ctrl+g", "Memory gauge", "Show or hide what the cache takes.", "Cache", "gauge", 8
    ),
    Action(
        "model",
        "ctrl+o",
        "Load a model",
        "A folder, or a Hugging Face repo.",
        "Cache",
        "model",
        3,
    ),
    Action("help", "f1", "Help", "All keys.", "Screen", "help", 1),
    Action("command_palette", "ctrl+p", "Palette", "Find and run any command.", "Screen", "palette", 5),
    Action("theme", "f9", "Theme", "Choose the colours.", "Screen"),
    Action("page_up", "pageup", "Scroll back", "One page up in the conversation.", "Screen"),
    Action("page_down", "pagedown", "Scroll on", "At the end, the reply is followed again.", "Screen"),
    Action("quit", "ctrl+q", "Quit", "Save the cache and leave.", "Screen", "quit", 9),
)

PROMPT_KEYS: tuple[tuple[str, str], ...] = (
    ("enter", "Send"),
    ("shift+enter  ctrl+j", "New line"),
    ("up  down", "Earlier and later messages"),
    ("tab", "Next part of the screen"),
)
"""The prompt's own keys, for help; they are bound in its widget."""


def keys_in_force(screen: Screen[Any]) -> dict[str, list[str]]:
    """The keys of each action as they are bound now, a person's own keymap included."""
    names = {action.name for action in ACTIONS}
    keys: dict[str, list[str]] = {}
    for key, active in screen.active_bindings.items():
        if active.binding.id in names:
            keys.setdefault(str(active.binding.id), []).append(key)
    return keys


def key_label(key: str) -> str:
    """A key as the hints write it: ``^K``, ``F1``, ``Esc``."""
    if key.startswith("ctrl+") and len(key) == 6:
        return f"^{key[-1].upper()}"
    if key == "escape":
        return "Esc"
    names = {"pageup": "PgUp", "pagedown": "PgDn", "up": "↑", "down": "↓"}
    parts = [names.get(part, part.capitalize()) for part in key.split("+")]
    return "+".join(parts)

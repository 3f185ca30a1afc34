"""Every action of the app, once: its keys, its words, and where help and the palette list it.

The bindings of the app, the hints in the last line, the palette and F1's help are all made from this table.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from textual.binding import Binding
from textual.screen import Screen

Group = Literal["Conversation", "Reply", "Message", "Cache", "Screen"]
GROUPS: tuple[Group, ...] = ("Conversation", "Reply", "Message", "Cache", "Screen")


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
    deed: str = ""

    @property
    def binding(self) -> Binding:
        """The action as Textual binds it. The id is what a person's keymap names."""
        return Binding(
            self.keys,
            self.deed or self.name,
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
    Action("settings", "f10", "Conversation settings", "System prompt and sampling.", "Conversation"),
    Action(
        "make_room",
        "alt+m",
        "Make room",
        "When the context is nearly full: what can be done.",
        "Conversation",
    ),
    Action("rename", "ctrl+t", "Rename", "Give this conversation another title.", "Conversation"),
    Action("delete", "f8", "Delete", "With its cache, after asking.", "Conversation"),
    Action("undelete", "alt+z", "Undo delete", "Of a message or a conversation.", "Conversation"),
    Action("search", "ctrl+f", "Search", "In titles and messages.", "Conversation"),
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
    Action("continue", "f4", "Go on", "Let a reply that was cut off go on.", "Reply"),
    Action("copy_reply", "f5", "Copy the reply", "The last one, as it was written.", "Reply"),
    Action("copy_last_code", "alt+c", "Copy code", "The last block of code in the last reply.", "Reply"),
    Action("copy_chat", "alt+a", "Copy the chat", "All of it, as Markdown.", "Reply"),
    Action(
        "previous_version", "alt+left", "Version before", "Of the last message that has several.", "Reply"
    ),
    Action("next_version", "alt+right", "Version after", "Of the last message that has several.", "Reply"),
    Action("cursor_up", "ctrl+up,f6", "Cursor up", "Over the messages; keys then act on one.", "Message"),
    Action("cursor_down", "ctrl+down,f7", "Cursor down", "Past the last one back to the prompt.", "Message"),
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
        "undo_scheme",
        "alt+k",
        "Undo scheme",
        "Back to the scheme before, by reading the conversation again.",
        "Cache",
    ),
    Action(
        "toggle_gauge", "f3,ctrl+g", "Memory gauge", "Show or hide what the cache takes.", "Cache", "gauge", 8
    ),
    Action(
        "model",
        "ctrl+o",
        "Models",
        "On this machine, or from Hugging Face.",
        "Cache",
        "model",
        3,
    ),
    Action("help", "f1", "Help", "All keys.", "Screen", "help", 1),
    Action("command_palette", "ctrl+p", "Palette", "Find and run any command.", "Screen", "palette", 5),
    Action(
        "preferences", "ctrl+s", "Settings", "All of them, each with a sentence.", "Screen", "settings", 8
    ),
    Action("theme", "f9", "Theme", "Choose the colours.", "Screen"),
    Action("page_up", "pageup", "Scroll back", "One page up in the conversation.", "Screen"),
    Action("page_down", "pagedown", "Scroll on", "At the end, the reply is followed again.", "Screen"),
    Action("quit", "ctrl+q", "Quit", "Save the cache and leave.", "Screen", "quit", 9),
)


def _on_message(name: str, keys: str, title: str, help: str, hint: str = "") -> Action:
    return Action(name, keys, title, help, "Message", hint, priority=False, deed=f"ask('{name}')")


MESSAGE_ACTIONS: tuple[Action, ...] = (
    _on_message("open_message", "enter", "Open", "Edit your own message, unfold a reply's thinking.", "open"),
    _on_message("edit", "e", "Edit and resend", "What was said stays as another version.", "edit"),
    _on_message("answer", "r", "Answer again", "This message, or the one this reply answers.", "again"),
    _on_message("branch", "b", "Branch from here", "The next message follows this one.", "branch"),
    _on_message("go_on", "c", "Go on", "With a reply that was cut off.", "go on"),
    _on_message("copy_message", "y", "Copy", "This message.", "copy"),
    _on_message("copy_code", "o", "Copy code", "A block of code in it; of several you choose one.", "code"),
    _on_message("delete_message", "d,delete", "Delete", "This message alone; what follows stays.", "delete"),
    _on_message("unfold", "space", "Unfold", "Thinking, attached files, the rest of a long text.", "unfold"),
    _on_message("version_before", "left", "Version before", "With what followed it."),
    _on_message("version_after", "right", "Version after", "With what followed it."),
    _on_message("mark_up", "k", "Message above", "The cursor goes up."),
    _on_message("mark_down", "j", "Message below", "The cursor goes down."),
)
"""What can be done to the message under the cursor. Bound in the log, while the cursor stands on one."""

PROMPT_KEYS: tuple[tuple[str, str], ...] = (
    ("enter", "Send"),
    ("shift+enter  ctrl+j", "New line"),
    ("up  down", "Earlier and later messages"),
    ("tab", "Complete, or go to the next part"),
)
"""The prompt's own keys, for help; they are bound in its widget."""


def keys_in_force(screen: Screen[Any]) -> dict[str, list[str]]:
    """The keys of each action as they are bound now, a person's own keymap included."""
    names = {action.name for action in ACTIONS}
    keys: dict[str, list[str]] = {}
    for key, active in screen.active_bindings.items():
        if active.binding.id in names:
            keys.setdefault(str(active.binding.id), []).append(key)
    # A message's keys are bound only while the cursor stands on one.
    rebound: Mapping[str, str] = getattr(screen.app, "rebound", {})
    for action in MESSAGE_ACTIONS:
        keys[action.name] = rebound.get(action.name, action.keys).split(",")
    return keys


def keys_bound(rebound: Mapping[str, str]) -> dict[str, list[str]]:
    """The keys of each action under a person's own keymap, whatever screen is in front just now."""
    bound: dict[str, list[str]] = {}
    for actions in (ACTIONS, MESSAGE_ACTIONS):
        own = {key for action in actions for key in rebound.get(action.name, "").split(",")}
        for action in actions:
            if action.name in rebound:
                bound[action.name] = rebound[action.name].split(",")
            elif left := [key for key in action.keys.split(",") if key not in own]:
                bound[action.name] = left
    return bound


def namer(app: object) -> Callable[[str], str]:
    """What names an action's first key as hints write it; ``?`` for an action that has none."""
    rebound: Mapping[str, str] = getattr(app, "rebound", {})
    return lambda name: key_label(keys_bound(rebound).get(name, ["?"])[0])


def checked(keys: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """A person's own keys, without those that cannot be used; and a sentence for each of these.

    An own key takes a key away from an action that has it by default; the same own key twice is a conflict.
    """
    actions = {action.name: action for action in (*ACTIONS, *MESSAGE_ACTIONS)}
    taken: dict[tuple[bool, str], str] = {}
    good: dict[str, str] = {}
    problems: list[str] = []
    for name, written in keys.items():
        if name not in actions:
            close = difflib.get_close_matches(name, actions, n=1)
            nearest = f"; the nearest is {close[0]}" if close else ""
            problems.append(f"config.toml, [keys]: there is no action {name!r}{nearest}.")
            continue
        wanted = [key.strip().lower() for key in written.split(",") if key.strip()]
        if not wanted or not all(_KEY.fullmatch(key) for key in wanted):
            problems.append(f'config.toml, [keys]: {name} needs keys such as "ctrl+k" or "f5,alt+y".')
            continue
        scope = bool(actions[name].deed)
        clash = next((key for key in wanted if (scope, key) in taken), None)
        if clash is not None:
            other = taken[scope, clash]
            problems.append(
                f"config.toml, [keys]: {clash} is given to {other} and to {name}; {other} has it."
            )
            continue
        taken |= {(scope, key): name for key in wanted}
        good[name] = ",".join(wanted)
    return good, problems


def lost(keys: Mapping[str, str]) -> list[str]:
    """A sentence for each action that is left without a key, because an own key took its last one."""
    said = []
    for actions in (ACTIONS, MESSAGE_ACTIONS):
        own = {key: action.name for action in actions for key in keys.get(action.name, "").split(",") if key}
        for action in actions:
            defaults = action.keys.split(",")
            if action.name not in keys and all(key in own for key in defaults):
                said.append(f"{action.title} has no key any more: {own[defaults[0]]} took {defaults[0]}.")
    return said


_KEY = re.compile(r"[a-z0-9_+]+", re.ASCII)


def key_label(key: str) -> str:
    """A key as the hints write it: ``^K``, ``F1``, ``Esc``."""
    if key.startswith("ctrl+") and len(key) == 6:
        return f"^{key[-1].upper()}"
    if len(key) == 1:
        return key
    if key == "escape":
        return "Esc"
    names = {"pageup": "PgUp", "pagedown": "PgDn", "up": "↑", "down": "↓"}
    parts = [names.get(part, part.capitalize()) for part in key.split("+")]
    return "+".join(parts)

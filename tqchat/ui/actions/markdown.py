"""The table of keys for the README."""

from __future__ import annotations

from collections.abc import Iterable

from tqchat.ui.actions.registry import Action, Registry


def key_table(actions: Registry, names: Iterable[str] | None = None) -> str:
    """Actions as a Markdown table of keys, titles and sentences: the named ones, else all with keys."""
    chosen = (
        [action for action in actions if action.keys] if names is None else [actions[one] for one in names]
    )
    rows = [f"| {_keys(action)} | {action.title} | {action.help} |" for action in chosen]
    return "\n".join(["| key | action | |", "| --- | --- | --- |", *rows]) + "\n"


def _keys(action: Action) -> str:
    """``Ctrl+K``, or ``Ctrl+Up, F6``; keys of a message in code marks."""
    if action.scope == "message":
        return ", ".join(f"`{key}`" for key in action.default_keys)
    return ", ".join("+".join(part.capitalize() for part in key.split("+")) for key in action.default_keys)

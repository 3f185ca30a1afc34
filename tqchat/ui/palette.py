"""The command palette: every action, every scheme, every theme, with the keys that do the same."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from textual.app import App, SystemCommand

from tqchat.kv.scheme import AUTO, SCHEMES
from tqchat.ui.keymap import ACTIONS, MESSAGE_ACTIONS, key_label
from tqchat.ui.themes import in_order

Deed = Callable[[], Awaitable[None]]


def commands(app: App[None], keys: Mapping[str, Sequence[str]]) -> Iterable[SystemCommand]:
    """What the palette lists. Schemes and themes are found by typing; the list at first is the actions."""
    for action in ACTIONS:
        if action.name != "command_palette":
            yield SystemCommand(action.title, _help(action.help, keys, action.name), _act(app, action.name))
    for action in MESSAGE_ACTIONS:
        if action.name not in ("mark_up", "mark_down"):
            help = _help(f"{action.help} Of the marked message, else of the last.", keys, action.name)
            deed = _act(app, f"on_message('{action.name}')")
            yield SystemCommand(f"Message: {action.title.lower()}", help, deed, discover=False)
    auto = [(AUTO, "Picks one for the model, and says why.")]
    for name, what in auto + [(scheme.name, scheme.description) for scheme in SCHEMES]:
        yield SystemCommand(f"Scheme: {name}", what, _act(app, f"use_scheme('{name}')"), discover=False)
    for name in in_order(app.available_themes):
        yield SystemCommand(f"Theme: {name}", "Choose these colours.", _theme(app, name), discover=False)


def _help(text: str, keys: Mapping[str, Sequence[str]], name: str) -> str:
    bound = keys.get(name)
    return f"{text}  {key_label(bound[0])}" if bound else text


def _act(app: App[None], action: str) -> Deed:
    async def run() -> None:
        await app.run_action(action)

    return run


def _theme(app: App[None], name: str) -> Deed:
    # A person's theme may have a name that no action string can hold.
    async def run() -> None:
        app.theme = name

    return run

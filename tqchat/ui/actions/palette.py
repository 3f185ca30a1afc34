"""The command palette: every action and its choices, with their keys."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from textual.app import SystemCommand

from tqchat.ui.actions.keys import Keys
from tqchat.ui.actions.registry import Action
from tqchat.ui.actions.runner import ActionRunner


def commands(runner: ActionRunner, keys: Keys) -> Iterable[SystemCommand]:
    """The palette's entries. Actions of a message and choices appear only once something is typed."""
    listed = [action for action in runner.actions if action.in_palette]
    for action in listed:
        if action.scope == "app":
            yield SystemCommand(action.title, _help(action, action.help, keys), _run(runner, action.name))
    for action in listed:
        if action.scope == "message":
            help = _help(action, f"{action.help} For the marked message, else the last one.", keys)
            title = f"Message: {action.title.lower()}"
            yield SystemCommand(title, help, _run(runner, action.name), discover=False)
    for action in runner.actions:
        word = (action.slash.word if action.slash else action.name).capitalize()
        for choice, help in action.choices(runner.parts) if action.choices else ():
            yield SystemCommand(f"{word}: {choice}", help, _run(runner, action.name, choice), discover=False)


def _help(action: Action, text: str, keys: Keys) -> str:
    return f"{text}  {keys.label(action.name)}" if keys.of(action.name) else text


def _run(runner: ActionRunner, name: str, argument: str = "") -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        runner.run(name, argument)

    return run

"""Actions, and their registry: source of keys, footer, palette, slash commands and help."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from tqchat.errors import TqchatError
from tqchat.ui.input.slash import Command

if TYPE_CHECKING:
    from tqchat.ui.controller.view import Severity
    from tqchat.ui.parts.parts import Parts

Group = Literal["Conversation", "Reply", "Message", "Cache", "Screen"]
GROUPS: tuple[Group, ...] = ("Conversation", "Reply", "Message", "Cache", "Screen")
Scope = Literal["app", "message"]
"""``app`` actions work everywhere; ``message`` actions act on the marked message."""


class Refused(TqchatError):
    """An action is not possible now or with this argument; its slash command stays in the prompt."""

    def __init__(self, sentence: str, severity: Severity = "warning") -> None:
        super().__init__(sentence)
        self.severity: Severity = severity


def always(parts: Parts) -> bool:
    """The condition of actions that are always possible."""
    return True


@dataclass(frozen=True)
class Slash:
    """The slash command of an action.

    Attributes:
        word: The command without its slash.
        argument: Placeholder of its argument in help.
        help: A phrase for the list of commands.
        rank: Position in that list, lowest first.
        values: Arguments that Tab completes.
    """

    word: str
    argument: str
    help: str
    rank: int = 100
    values: Callable[[Parts], Sequence[str]] | None = None


@dataclass(frozen=True)
class Action:
    """Something the user can do: with a key, from the palette, by a slash command or a click.

    Attributes:
        name: Its name in ``[keys]`` of ``config.toml``; also the id of its key bindings.
        title: Its name in help and in the palette.
        help: One sentence.
        group: The heading in help.
        run: The function; its argument is the text after a slash command, empty for a key. An awaitable
            result is awaited in a worker, so it may wait for a dialog.
        keys: Default keys, separated by commas; empty for none.
        scope: Where its keys are bound.
        hint: Its word in the footer; empty for none.
        rank: Position in the footer, most important first.
        priority: Whether its keys take precedence over the focused widget's.
        slash: Its slash command.
        applies: Whether its keys work now.
        suits: Whether the footer shows it now, for an action of the marked message.
        choices: Arguments that the palette lists, each with a sentence.
        in_palette: Whether the palette lists it.
        over_dialogs: Whether it works while a dialog is open.
    """

    name: str
    title: str
    help: str
    group: Group
    run: Callable[[Parts, str], Awaitable[None] | None]
    keys: str = ""
    scope: Scope = "app"
    hint: str = ""
    rank: int = 0
    priority: bool = True
    slash: Slash | None = None
    applies: Callable[[Parts], bool] = always
    suits: Callable[[Parts], bool] = always
    choices: Callable[[Parts], Iterable[tuple[str, str]]] | None = None
    in_palette: bool = True
    over_dialogs: bool = False

    @property
    def default_keys(self) -> list[str]:
        """The default keys one by one."""
        return self.keys.split(",") if self.keys else []


class Registry:
    """All actions, in the order of help and palette.

    Raises:
        ValueError: if two have the same name or the same slash command.
    """

    def __init__(self, actions: Iterable[Action]) -> None:
        self._actions: dict[str, Action] = {}
        self._by_word: dict[str, Action] = {}
        for action in actions:
            if action.name in self._actions:
                raise ValueError(f"two actions are called {action.name}")
            self._actions[action.name] = action
            if action.slash is not None:
                if action.slash.word in self._by_word:
                    raise ValueError(f"two actions have the command /{action.slash.word}")
                self._by_word[action.slash.word] = action

    def __iter__(self) -> Iterator[Action]:
        return iter(self._actions.values())

    def __contains__(self, name: object) -> bool:
        return name in self._actions

    def __getitem__(self, name: str) -> Action:
        return self._actions[name]

    def get(self, name: str) -> Action | None:
        """The action of that name."""
        return self._actions.get(name)

    def by_word(self, word: str) -> Action | None:
        """The action of a slash command."""
        return self._by_word.get(word)

    def scoped(self, scope: Scope) -> list[Action]:
        """The actions of one scope."""
        return [action for action in self if action.scope == scope]

    def footer(self, scope: Scope) -> list[Action]:
        """The actions with a hint in the footer, most important first."""
        return sorted((action for action in self.scoped(scope) if action.hint), key=lambda one: one.rank)

    def slashes(self) -> list[Slash]:
        """All slash commands, in the order of their list."""
        return sorted((action.slash for action in self if action.slash), key=lambda slash: slash.rank)

    def commands(self, parts: Parts) -> list[Command]:
        """All slash commands with their completions."""
        return [
            Command(slash.word, slash.help, partial(slash.values, parts) if slash.values else None)
            for slash in self.slashes()
        ]

"""Keys of actions: the defaults, and the user's from ``[keys]`` in ``config.toml``."""

from __future__ import annotations

import difflib
import re
import string
import sys
import unicodedata
from collections.abc import Iterable, Mapping

from textual.binding import Binding, BindingsMap
from textual.dom import DOMNode
from textual.keys import Keys as TextualKeys
from textual.keys import _character_to_key

from tqchat.ui.actions.registry import Action, Registry, Scope

ALT_PREFIX = "alt_prefix"
"""The action whose key stands for Alt with the next key."""
SCOPES: tuple[Scope, ...] = ("app", "message")
_KEY = re.compile(r"[a-z0-9_+]+", re.ASCII)
_MODIFIERS = ("ctrl", "alt", "shift", "super", "hyper", "meta")
_KEY_NAMES = frozenset(
    [
        *string.ascii_lowercase,
        *string.digits,
        *map(_character_to_key, string.punctuation),
        *(key.value for key in TextualKeys if _KEY.fullmatch(key.value) and "+" not in key.value),
    ]
)
_ARROWS = {"pageup": "PgUp", "pagedown": "PgDn", "up": "↑", "down": "↓"}


class Keys:
    """The keys in force: the user's replace an action's defaults, and are removed from other actions.

    Args:
        actions: All actions.
        own: The user's keys by action, as ``validate_keys`` returns them.
    """

    def __init__(self, actions: Registry, own: Mapping[str, str] | None = None) -> None:
        self.actions = actions
        self.own = dict(own or {})
        self._bound = {}
        for scope in SCOPES:
            taken = _taken(actions, self.own, scope)
            for action in actions.scoped(scope):
                if action.name in self.own:
                    self._bound[action.name] = self.own[action.name].split(",")
                else:
                    self._bound[action.name] = [key for key in action.default_keys if key not in taken]

    def of(self, name: str) -> list[str]:
        """The keys of an action."""
        return self._bound.get(name, [])

    def label(self, name: str) -> str:
        """A key of an action as hints show it; ``?`` if it has none. On a Mac one that needs no Alt."""
        labels = self.labels(name)
        usable = [one for one in labels if not one.startswith("Alt+")] if sys.platform == "darwin" else []
        return next(iter(usable or labels), "?")

    def labels(self, name: str) -> list[str]:
        """The keys of an action as help shows them; if all need Alt, also with the prefix key."""
        keys, prefixes = self.of(name), self.of(ALT_PREFIX)
        needs_alt = bool(prefixes) and all(key.startswith("alt+") for key in keys)
        after = [key.removeprefix("alt+") for key in keys] if needs_alt else []
        return [*map(key_label, keys), *(f"{key_label(prefixes[0])} {key_label(one)}" for one in after)]

    def bindings(self, scope: Scope) -> list[Binding]:
        """The default key bindings of a scope; Textual's keymap replaces them with the user's."""
        return [
            _binding(action, keys)
            for action in self.actions.scoped(scope)
            if (keys := action.keys or self.own.get(action.name))
        ]


def bind(node: DOMNode, bindings: Iterable[Binding]) -> None:
    """Add bindings to one app or widget, in place of those of its class for the same keys."""
    node._bindings.key_to_bindings.update(BindingsMap(bindings).key_to_bindings)


def validate_keys(actions: Registry, written: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The usable part of ``[keys]``, and a sentence for each entry that is not.

    If two actions of a scope have the same key, the first keeps it.
    """
    taken: dict[tuple[Scope, str], str] = {}
    good: dict[str, str] = {}
    problems: list[str] = []
    for name, value in written.items():
        action = actions.get(name)
        if action is None:
            close = difflib.get_close_matches(name, [one.name for one in actions], n=1)
            nearest = f"; the nearest is {close[0]}" if close else ""
            problems.append(f"config.toml, [keys]: there is no action {name!r}{nearest}.")
            continue
        keys = [key.strip().lower() for key in value.split(",") if key.strip()]
        if not keys or not all(_KEY.fullmatch(key) for key in keys):
            problems.append(f'config.toml, [keys]: {name} needs keys such as "ctrl+k" or "f5,alt+y".')
            continue
        unknown = next((key for key in keys if not is_key(key)), None)
        if unknown is not None:
            nearest = f"; the nearest is {found}" if (found := nearest_key(unknown)) else ""
            problems.append(f"config.toml, [keys]: {name} has {unknown!r}, which is not a key{nearest}.")
            continue
        clash = next((key for key in keys if (action.scope, key) in taken), None)
        if clash is not None:
            other = taken[action.scope, clash]
            problems.append(
                f"config.toml, [keys]: {clash} is set for {other} and for {name}; {other} keeps it."
            )
            continue
        taken |= {(action.scope, key): name for key in keys}
        good[name] = ",".join(keys)
    return good, problems


def without_keys(actions: Registry, own: Mapping[str, str]) -> list[str]:
    """A sentence for each action without a key because its defaults were set for other actions."""
    sentences = []
    for scope in SCOPES:
        taken = _taken(actions, own, scope)
        for action in actions.scoped(scope):
            defaults = action.default_keys
            if action.name not in own and defaults and all(key in taken for key in defaults):
                sentences.append(
                    f"{action.title} no longer has a key: {defaults[0]} is set for {taken[defaults[0]]}."
                )
    return sentences


def is_key(key: str) -> bool:
    """Whether Textual knows a key: ``ctrl+k``, ``f5``, ``question_mark``."""
    *modifiers, name = key.split("+")
    return all(one in _MODIFIERS for one in modifiers) and (name in _KEY_NAMES or _is_character(name))


def nearest_key(key: str) -> str | None:
    """The valid key closest to a misspelt one: ``ctrl+k`` for ``control+k``."""
    *modifiers, name = key.split("+")
    found = [one for modifier in modifiers for one in difflib.get_close_matches(modifier, _MODIFIERS, n=1)]
    names = [name] if name in _KEY_NAMES else difflib.get_close_matches(name, sorted(_KEY_NAMES), n=1)
    return "+".join([*found, *names]) if names and len(found) == len(modifiers) else None


def _is_character(name: str) -> bool:
    """Whether a name is that of a Unicode character, in Textual's spelling."""
    written = name.replace("_", " ").upper()
    try:
        # Control characters have aliases such as ESC, which Textual does not use.
        return unicodedata.name(unicodedata.lookup(written), "") == written
    except KeyError:
        return False


def key_label(key: str) -> str:
    """A key as hints show it: ``^K``, ``F1``, ``Esc``."""
    if key.startswith("ctrl+") and len(key) == 6:
        return f"^{key[-1].upper()}"
    if len(key) == 1:
        return key
    if key == "escape":
        return "Esc"
    return "+".join(_ARROWS.get(part, part.capitalize()) for part in key.split("+"))


def _binding(action: Action, keys: str) -> Binding:
    return Binding(
        keys,
        f"app.act('{action.name}')",
        action.title,
        show=False,
        priority=action.priority,
        id=action.name,
        tooltip=action.help,
    )


def _taken(actions: Registry, own: Mapping[str, str], scope: Scope) -> dict[str, str]:
    """The keys that the user set for actions of a scope, with the action's name."""
    return {
        key: action.name
        for action in actions.scoped(scope)
        for key in own.get(action.name, "").split(",")
        if key
    }

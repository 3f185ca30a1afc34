"""``state.toml``: state of the app between runs, and settings changed in the app."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tqchat.errors import TqchatError
from tqchat.files import Unreadable, read_toml, update_toml
from tqchat.paths import Paths, make_private_folder
from tqchat.settings.schema import SETTINGS_BY_NAME


@dataclass(frozen=True)
class State:
    """The app's state.

    Attributes:
        conversation: Id of the conversation that was open last.
        sidebar: Whether the list of conversations is shown on wide screens.
        sidebar_width: Its width in cells.
        gauge: Whether the gauge panel is shown.
        sort: Order of that list; empty for the default.
        version_checked: When a newer version was looked for, in seconds since 1970; 0 for never.
        settings: Settings changed in the app, by name; they override ``config.toml``.
    """

    conversation: str | None = None
    sidebar: bool = True
    sidebar_width: int = 30
    gauge: bool = True
    sort: str = ""
    version_checked: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, paths: Paths) -> State:
        """Read the state; missing or damaged values get their defaults."""
        return cls.read(paths)[0]

    @classmethod
    def read(cls, paths: Paths) -> tuple[State, str | None]:
        """The state, and a sentence about what in the file cannot be used."""
        try:
            values = read_toml(paths.state_file)
        except FileNotFoundError:
            return cls(), None
        except Unreadable as error:
            return cls(), f"{error} What the app remembered between runs is not used; the file is kept."
        known: dict[str, Any] = {k: v for k, v in values.items() if type(v) is _KINDS.get(k)}
        own = {k: v for k, v in known.pop("settings", {}).items() if k in SETTINGS_BY_NAME}
        accepted = {k: v for k, v in own.items() if SETTINGS_BY_NAME[k].accepts(v)}
        unused = [k for k in _KINDS if k in values and type(values[k]) is not _KINDS[k]]
        unused += [k for k in own if k not in accepted]
        damage = (
            f"{paths.state_file} has values that cannot be used: {', '.join(unused)}." if unused else None
        )
        return cls(**known, settings=accepted), damage

    def save(self, paths: Paths, before: State | None = None) -> bool:
        """Write what changed since ``before``; returns whether that succeeded.

        Everything else in the file stays as it is: values of other versions, and those that another process
        wrote meanwhile. A file that cannot be understood is kept under a dated name.

        Args:
            before: The state that this process read or wrote last; by default that of the file.
        """
        old = self.load(paths) if before is None else before
        try:
            make_private_folder(paths.state_dir)
            update_toml(
                paths.state_file, lambda table: _apply_changes(table, old, self), replace_damaged=True
            )
        except TqchatError:
            return False
        return True


def _apply_changes(table: dict[str, Any], old: State, new: State) -> None:
    for name in _KINDS.keys() - {"settings"}:
        if (value := getattr(new, name)) != getattr(old, name):
            _put(table, name, value)
    changed = {
        name for name in (*old.settings, *new.settings) if old.settings.get(name) != new.settings.get(name)
    }
    if not changed:
        return
    own = table.get("settings")
    if not isinstance(own, dict):
        own = {}
    for name in changed:
        _put(own, name, new.settings.get(name))
    _put(table, "settings", own or None)


def _put(table: dict[str, Any], name: str, value: object) -> None:
    if value is None:
        table.pop(name, None)
    else:
        table[name] = value


_KINDS: Mapping[str, type] = {
    "conversation": str,
    "sidebar": bool,
    "sidebar_width": int,
    "gauge": bool,
    "sort": str,
    "version_checked": int,
    "settings": dict,
}

"""``state.toml``: state of the app between runs, and settings changed in the app."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import tomli_w

from tqchat.errors import TqchatError
from tqchat.files import write_atomically
from tqchat.paths import Paths, make_private_folder
from tqchat.settings.schema import SETTINGS_BY_NAME


@dataclass(frozen=True)
class State:
    """The app's state. Errors in reading or writing it are ignored.

    Attributes:
        conversation: Id of the conversation that was open last.
        sidebar: Whether the list of conversations is shown on wide screens.
        gauge: Whether the gauge panel is shown.
        settings: Settings changed in the app, by name; they override ``config.toml``.
    """

    conversation: str | None = None
    sidebar: bool = True
    gauge: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, paths: Paths) -> State:
        """Read the state; missing or damaged values get their defaults."""
        try:
            values = tomllib.loads(paths.state_file.read_text("utf-8"))
        except (OSError, ValueError):
            return cls()
        known: dict[str, Any] = {k: v for k, v in values.items() if type(v) is _KINDS.get(k)}
        own = known.pop("settings", {})
        return cls(
            **known,
            settings={
                k: v for k, v in own.items() if k in SETTINGS_BY_NAME and SETTINGS_BY_NAME[k].accepts(v)
            },
        )

    def save(self, paths: Paths) -> bool:
        """Write the state; returns whether that succeeded."""
        values = {key: value for key, value in asdict(self).items() if value is not None}
        try:
            make_private_folder(paths.state_dir)
            write_atomically(paths.state_file, tomli_w.dumps(values).encode())
        except (OSError, TqchatError):
            return False
        return True


_KINDS: Mapping[str, type] = {"conversation": str, "sidebar": bool, "gauge": bool, "settings": dict}

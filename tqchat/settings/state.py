"""``state.toml``: what the app remembers between runs, and the settings that were changed in it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import tomli_w

from tqchat.errors import TqchatError
from tqchat.files import write_atomically
from tqchat.paths import Paths, make_private_folder
from tqchat.settings.schema import BY_NAME


@dataclass(frozen=True)
class State:
    """What the app remembers. Nothing here matters enough to stop for.

    Attributes:
        conversation: Id of the conversation that was open last.
        sidebar: Whether the list of conversations is shown where there is room.
        gauge: Whether the gauge panel is.
        settings: Settings that were changed in the app, by name: they go before those in ``config.toml``.
    """

    conversation: str | None = None
    sidebar: bool = True
    gauge: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, paths: Paths) -> State:
        """Read the state; what is missing or damaged is as on the first run."""
        try:
            values = tomllib.loads(paths.state_file.read_text("utf-8"))
        except (OSError, ValueError):
            return cls()
        known: dict[str, Any] = {k: v for k, v in values.items() if type(v) is _KINDS.get(k)}
        own = known.pop("settings", {})
        return cls(**known, settings={k: v for k, v in own.items() if k in BY_NAME and BY_NAME[k].accepts(v)})

    def save(self, paths: Paths) -> bool:
        """Write the state; ``False`` if that could not be done, which costs no more than the memory of it."""
        values = {key: value for key, value in asdict(self).items() if value is not None}
        try:
            make_private_folder(paths.state_dir)
            write_atomically(paths.state_file, tomli_w.dumps(values).encode())
        except (OSError, TqchatError):
            return False
        return True


_KINDS: Mapping[str, type] = {"conversation": str, "sidebar": bool, "gauge": bool, "settings": dict}

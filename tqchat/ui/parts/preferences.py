"""Settings in force, and the app's state between runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict, Unpack

from tqchat.paths import Paths
from tqchat.settings import Settings, State


class Panels(TypedDict, total=False):
    """Saved state of the side panels; see ``State``."""

    sidebar: bool
    sidebar_width: int
    gauge: bool
    sort: str


class Preferences:
    """Settings of ``config.toml``, overridden by those that were changed in the app (``state.toml``).

    Attributes:
        configured: The settings of ``config.toml``, which the app only reads.
        settings: The settings in force.
        problems: Sentences about files, themes and keys that cannot be used.
        on_change: Called with the settings in force after one was changed.
    """

    def __init__(self, paths: Paths, configured: Settings, problems: Sequence[str] = ()) -> None:
        self.paths, self.configured = paths, configured
        self.state, damage = State.read(paths)
        self.settings = configured.with_values(self.state.settings)
        self.problems: list[str] = [*problems, *([damage] if damage else [])]
        self.on_change: list[Callable[[Settings], None]] = []

    @property
    def own(self) -> Mapping[str, Any]:
        """The settings that were changed in the app, by name."""
        return self.state.settings

    def set(self, name: str, value: object | None) -> None:
        """Change a setting in the app; ``None`` returns it to ``config.toml``."""
        own = {key: kept for key, kept in self.own.items() if key != name}
        if value is not None:
            own[name] = value
        self._save(replace(self.state, settings=own))
        self.settings = self.configured.with_values(own)
        for changed in self.on_change:
            changed(self.settings)

    def remember_conversation(self, conversation_id: str | None) -> None:
        """Save at once which conversation is open, so that it reopens after a kill."""
        self._save(replace(self.state, conversation=conversation_id))

    def remember_version_check(self, seconds: int) -> None:
        """Save when a newer version was looked for."""
        self._save(replace(self.state, version_checked=seconds))

    def remember_panels(self, **panels: Unpack[Panels]) -> None:
        """Save which side panels are shown, and how."""
        self._save(replace(self.state, **panels))

    def _save(self, state: State) -> None:
        if state != self.state:
            before, self.state = self.state, state
            state.save(self.paths, before)

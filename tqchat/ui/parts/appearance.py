"""The theme in use: chosen in the settings, previewed in the picker, reloaded when its file changes."""

from __future__ import annotations

from textual.app import App
from textual.theme import Theme

from tqchat import paths as locations
from tqchat.settings import Settings
from tqchat.ui import themes
from tqchat.ui.parts.preferences import Preferences


class Appearance:
    """Registers themes with the app, chooses one and remembers the choice.

    Attributes:
        previewing: Whether the theme shown now is only a preview, which is not remembered.
    """

    def __init__(self, host: App[None], preferences: Preferences) -> None:
        self._host, self._preferences = host, preferences
        self._folder = preferences.paths.themes
        self._stamp: tuple[object, ...] = ()
        self.previewing = False

    @property
    def names(self) -> list[str]:
        """The available themes: tqchat's first."""
        return themes.in_order(self._host.available_themes)

    @property
    def theme(self) -> str:
        """The theme in use."""
        return self._host.theme

    def load(self, wanted: str) -> list[str]:
        """Register all themes and use the wanted one, else the default; a sentence for each that failed."""
        found = themes.load_all(locations.bundled("themes"), self._folder)
        self._stamp = themes.stamp(self._folder)
        for theme in found.themes.values():
            self._host.register_theme(theme)
        if self.use(wanted):
            return found.problems
        self._host.theme = themes.DEFAULT_THEME
        return [*found.problems, themes.no_theme(wanted)]

    def use(self, name: str) -> bool:
        """Use a theme; ``False`` if there is none of that name."""
        if name not in self._host.available_themes:
            return False
        self._host.theme = name
        return True

    def reload(self) -> list[str]:
        """Read the user's themes again if a file changed; a sentence for each that failed."""
        if themes.stamp(self._folder) == self._stamp:
            return []
        problems = self.load(self._host.theme)
        self._host.refresh_css(animate=False)
        return problems

    def apply(self, settings: Settings) -> None:
        """Use the theme of changed settings."""
        if self._host.theme != settings.theme:
            self.use(settings.theme)

    def remember(self, theme: Theme) -> None:
        """Keep the theme as a setting, unless it is a preview."""
        if not self.previewing and theme.name != self._preferences.settings.theme:
            self._preferences.set("theme", theme.name)

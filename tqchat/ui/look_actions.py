"""How the app looks and what it is told to do by default: themes, settings, and where both are remembered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from textual import work
from textual.theme import Theme

from tqchat import paths as locations
from tqchat.kv.scheme import scheme_setting
from tqchat.settings import Settings
from tqchat.text import one_line
from tqchat.ui import themes
from tqchat.ui.conversation_actions import ConversationActions
from tqchat.ui.screens.settings import SettingsScreen
from tqchat.ui.screens.theme import ThemePicker


class LookActions(ConversationActions):
    """Themes and settings. ``configured`` is what ``config.toml`` says; ``settings`` what is in force."""

    configured: Settings
    settings: Settings
    problems: Sequence[str] = ()
    """What is wrong with the person's themes and keys, in sentences."""
    _previewing = False
    _theme_files: tuple[object, ...] = ()

    # Themes

    def _use_themes(self, wished: str) -> list[str]:
        """Register the themes and take the wished one; what was wrong with any, in sentences."""
        found = themes.load_all(locations.bundled("themes"), self.paths.themes)
        self._theme_files = themes.stamp(self.paths.themes)
        for theme in found.themes.values():
            self.register_theme(theme)
        if wished in self.available_themes:
            self.theme = wished
            return found.problems
        self.theme = themes.DEFAULT_THEME
        return [*found.problems, f"There is no theme {one_line(wished)!r}; {self.theme} is used instead."]

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Our own two greys, for themes that do not set them."""
        theme = self.current_theme
        foreground = theme.foreground or ("#e0e0e0" if theme.dark else "#1f1f1f")
        return {"quiet": f"{foreground} 65%", "faint": f"{foreground} 30%"}

    def _remember_theme(self, theme: Theme) -> None:
        if not self._previewing and theme.name != self.settings.theme:
            self.set_own("theme", theme.name)

    def _reread_themes(self) -> None:
        """Take a theme into use as it is written: the person's own folder is looked at now and then."""
        if themes.stamp(self.paths.themes) == self._theme_files:
            return
        for problem in self._use_themes(self.theme):
            self.say(problem, "warning")
        self.refresh_css(animate=False)

    @work
    async def action_theme(self) -> None:
        """Choose the colours, and see them while choosing."""
        before, self._previewing = self.theme, True
        names = themes.in_order(self.available_themes)
        chosen = await self.push_screen_wait(ThemePicker(names, before))
        self._previewing = False
        self.theme = chosen or before
        self._remember_theme(self.current_theme)

    # Settings

    def set_own(self, name: str, value: object | None) -> None:
        """Change a setting here, which goes before ``config.toml``; ``None`` leaves it to that file again."""
        own = {key: kept for key, kept in self.state.settings.items() if key != name}
        if value is not None:
            own[name] = value
        self._remember(replace(self.state, settings=own))
        self.settings = self.configured.with_values(own)
        self._apply_settings()

    def _apply_settings(self) -> None:
        if self.theme != self.settings.theme and self.settings.theme in self.available_themes:
            self.theme = self.settings.theme
        self.chat.use_defaults(
            scheme_setting(self.settings.scheme), self.settings.system_prompt, self.settings.sampling
        )
        self.chat.thinking.defaults = self.settings.reasoning
        self.chat.models.memory_budget = self.settings.memory_budget_bytes
        self._chat_screen.figures_changed()

    @property
    def own_settings(self) -> Mapping[str, Any]:
        """What was changed in the app, by name."""
        return self.state.settings

    def action_preferences(self) -> None:
        """All settings, each with a sentence."""
        self.push_screen(SettingsScreen(self))

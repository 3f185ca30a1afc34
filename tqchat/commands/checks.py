"""What is wrong with the user's files: settings, keys, themes, presets, folders. For ``tqchat doctor``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tqchat import settings
from tqchat.paths import Paths, bundled


def settings_in_force(places: Paths) -> tuple[settings.Settings, list[str]]:
    """The settings as the app uses them, and a sentence for each thing in the user's files that it cannot."""
    from tqchat.ui.parts.preferences import Preferences

    found = Preferences(places, *settings.read_config(places))
    problems = [
        *found.problems,
        *_problems_of_the_screen(places, found.settings),
        *_unusable_folders(places),
    ]
    return found.settings, problems


def _problems_of_the_screen(places: Paths, found: settings.Settings) -> Iterator[str]:
    from textual.theme import BUILTIN_THEMES

    from tqchat.ui import themes
    from tqchat.ui.actions.keys import validate_keys
    from tqchat.ui.actions.table import ACTIONS
    from tqchat.ui.parts.presets import Presets

    yield from validate_keys(ACTIONS, found.keys)[1]
    loaded = themes.load_all(bundled("themes"), places.themes)
    yield from loaded.problems
    if found.theme not in loaded.themes and found.theme not in BUILTIN_THEMES:
        yield themes.no_theme(found.theme)
    if problem := Presets(places.presets).problem():
        yield problem


def _unusable_folders(places: Paths) -> Iterator[str]:
    seen: set[Path] = set()
    for folder in (places.config_dir, places.state_dir, places.data_dir, places.cache_dir, places.log_dir):
        existing = next((one for one in (folder, *folder.parents) if one.exists()), folder)
        if existing in seen:
            continue
        seen.add(existing)
        if not existing.is_dir():
            yield f"{existing} is a file, where a folder is needed; move it away."
        elif not os.access(existing, os.R_OK | os.W_OK | os.X_OK):
            yield f"{existing} cannot be written; change its permissions, or set TQCHAT_HOME."

"""Themes from TOML files: the shipped ones, then the user's, which replace those of the same name.

A file is one theme::

    name = "tqchat-dark"
    dark = true

    [colors]
    primary = "#7aa2f7"
    ...

    ansi = true          # optional: colours are the terminal's own, such as "ansi_cyan"

    [variables]          # optional: any of Textual's theme variables
    border = "#2a2f3a"
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from textual.color import Color, ColorParseError
from textual.theme import Theme

from tqchat.errors import TqchatError

DEFAULT_THEME = "tqchat-dark"
REQUIRED = ("primary", "accent", "foreground", "background", "surface", "panel", "warning", "error")
COLORS = (*REQUIRED, "secondary", "success")


class BadTheme(TqchatError):
    """A theme file cannot be used; the message says which and why."""


@dataclass
class Themes:
    """Themes by name, and an error sentence for each unusable file."""

    themes: dict[str, Theme] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def load_all(*folders: Path) -> Themes:
    """Read every ``*.toml`` of the folders; a later folder's theme replaces an earlier one of its name."""
    found = Themes()
    for folder in folders:
        for file in sorted(folder.glob("*.toml")) if folder.is_dir() else ():
            try:
                theme = load(file)
            except BadTheme as error:
                found.problems.append(str(error))
            else:
                found.themes[theme.name] = theme
    return found


def load(file: Path) -> Theme:
    """Read one theme.

    Raises:
        BadTheme: if the file is not TOML or not a theme.
    """
    try:
        data = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadTheme(f"The theme {file.name} cannot be read: {error}.") from None
    unknown = set(data) - {"name", "dark", "ansi", "colors", "variables"}
    if unknown:
        raise BadTheme(f"The theme {file.name} has an unknown entry: {', '.join(sorted(unknown))}.")
    name, dark, ansi = data.get("name", file.stem), data.get("dark", True), data.get("ansi", False)
    if not isinstance(name, str) or not name.strip() or not isinstance(dark, bool) or type(ansi) is not bool:
        raise BadTheme(f"The theme {file.name} needs a name in quotes, and dark = true or false.")
    colors = _colors(file, data.get("colors", {}))
    missing = [key for key in REQUIRED if key not in colors]
    if missing:
        raise BadTheme(f"The theme {file.name} lacks these colors: {', '.join(missing)}.")
    variables = _variables(file, data.get("variables", {}))
    return Theme(name=name, dark=dark, ansi=ansi, variables=variables, **colors)


def variable_defaults(theme: Theme) -> dict[str, str]:
    """The two greys ``quiet`` and ``faint``, for themes that do not set them."""
    foreground = theme.foreground or ("#e0e0e0" if theme.dark else "#1f1f1f")
    return {"quiet": f"{foreground} 65%", "faint": f"{foreground} 30%"}


def in_order(names: Iterable[str]) -> list[str]:
    """Theme names sorted: tqchat's first."""
    return sorted(names, key=lambda name: (not name.startswith("tqchat-"), name))


def stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, times and sizes of the theme files in a folder, to detect changes."""
    try:
        files = [(file.name, file.stat()) for file in sorted(folder.glob("*.toml"))]
    except OSError:
        return ()  # a file was removed meanwhile: the next call sees it
    return tuple((name, found.st_mtime_ns, found.st_size) for name, found in files)


def _colors(file: Path, table: Any) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise BadTheme(f"The theme {file.name} needs a table [colors].")
    for key, value in table.items():
        if key not in COLORS:
            raise BadTheme(f"The theme {file.name} has an unknown color: {key}.")
        _check_color(file, key, value)
    return table


def _variables(file: Path, table: Any) -> dict[str, str]:
    if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
        raise BadTheme(f"The theme {file.name} needs texts in quotes under [variables].")
    for key, value in table.items():
        # A colour that Textual cannot parse would crash the app when the stylesheet is parsed.
        if not key.endswith(("-style", "-style-hover")):
            _check_color(file, key, value)
    return table


def _check_color(file: Path, key: str, value: Any) -> None:
    try:
        Color.parse(value.split()[0] if isinstance(value, str) and value.strip() else "")
    except (ColorParseError, AttributeError):
        raise BadTheme(f'The theme {file.name} has no color for {key}: use one like "#7aa2f7".') from None

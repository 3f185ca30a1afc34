"""Themes from TOML files: the shipped ones, then the user's, which replace those of the same name.

A file is one theme::

    name = "tqchat-dark"
    dark = true

    [colors]
    primary = "#7aa2f7"
    ...

    ansi = true          # optional: colours are the terminal's own, such as "ansi_cyan"

    [variables]          # optional: any of Textual's theme variables, and the colours of code
    border = "#2a2f3a"
    code-keyword = "#c4a0ff"
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from textual.color import Color, ColorParseError
from textual.css.constants import VALID_STYLE_FLAGS
from textual.theme import Theme

from tqchat.errors import TqchatError
from tqchat.files import Unreadable, read_toml
from tqchat.text import one_line, shown_value

DEFAULT_THEME = "tqchat-dark"
REQUIRED = ("primary", "accent", "foreground", "background", "surface", "panel", "warning", "error")
COLORS = (*REQUIRED, "secondary", "success")
MIN_CODE_CONTRAST = 5.0
"""Contrast of code with its ground."""
LIGHT_CODE_COLORS = {
    "code-keyword": "#c4a0ff",
    "code-name": "#7fb4ff",
    "code-builtin": "#5fd3cf",
    "code-string": "#a9d67c",
    "code-number": "#f2a869",
}
DARK_CODE_COLORS = {
    "code-keyword": "#8a2cc4",
    "code-name": "#1c5fc4",
    "code-builtin": "#00716e",
    "code-string": "#3b7a1a",
    "code-number": "#a84b0f",
}
"""Colours of keywords, of functions and other defined names, of builtins, strings and numbers."""
ANSI_CODE_COLORS = {
    "code-keyword": "ansi_magenta",
    "code-name": "ansi_blue",
    "code-builtin": "ansi_cyan",
    "code-string": "ansi_green",
    "code-number": "ansi_yellow",
    "code-comment": "ansi_bright_black",
}

_COLOR = re.compile(
    r"#[0-9a-fA-F]{3,8}|[a-z][a-z0-9_]{0,30}|(?:rgb|hsl)a?\([0-9.]{1,8}(?:,[0-9.]{1,8}%?){2,3}\)", re.ASCII
)
_OPACITY = re.compile(r"(.*\S) +(\d{1,3})%", re.ASCII)
_MAX_NAME_CHARS = 60
_MAX_FILES = 500


class BadTheme(TqchatError):
    """A theme file cannot be used; the message says which and why."""


@dataclass
class Themes:
    """Themes by name, and an error sentence for each unusable file."""

    themes: dict[str, Theme] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def no_theme(name: str) -> str:
    """A sentence about a theme that does not exist."""
    return f"There is no theme {one_line(name)!r}; {DEFAULT_THEME} is used instead."


def load_all(*folders: Path) -> Themes:
    """Read every ``*.toml`` of the folders; a later folder's theme replaces an earlier one of its name."""
    found = Themes()
    for folder in folders:
        for file in _files(folder):
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
        data = read_toml(file)
    except FileNotFoundError:
        raise BadTheme(f"The theme {one_line(file.name)} cannot be read: it was removed.") from None
    except Unreadable as error:
        raise BadTheme(f"The theme {one_line(file.name)} cannot be read: it {error.reason}.") from None
    unknown = set(data) - {"name", "dark", "ansi", "colors", "variables"}
    if unknown:
        raise BadTheme(f"The theme {one_line(file.name)} has an unknown entry: {_listed(unknown)}.")
    name, dark, ansi = data.get("name", file.stem), data.get("dark", True), data.get("ansi", False)
    if not isinstance(name, str) or not name.strip() or not isinstance(dark, bool) or type(ansi) is not bool:
        raise BadTheme(f"The theme {one_line(file.name)} needs a name in quotes, and dark = true or false.")
    if name != one_line(name) or len(name) > _MAX_NAME_CHARS:
        raise BadTheme(
            f"The theme {one_line(file.name)} needs a name on one line, of at most {_MAX_NAME_CHARS} "
            "characters."
        )
    colors = _colors(file, data.get("colors", {}))
    missing = [key for key in REQUIRED if key not in colors]
    if missing:
        raise BadTheme(f"The theme {one_line(file.name)} lacks these colors: {', '.join(missing)}.")
    # Without it, text that is selected with the mouse keeps its colours, which fit another ground.
    selected = {} if ansi else {"screen-selection-foreground": colors["foreground"]}
    variables = selected | _variables(file, data.get("variables", {}))
    return Theme(name=name, dark=dark, ansi=ansi, variables=variables, **colors)


def variable_defaults(theme: Theme) -> dict[str, str]:
    """Variables of our style sheet and of Textual's, for themes that do not set them."""
    foreground = theme.foreground or ("#e0e0e0" if theme.dark else "#1f1f1f")
    greys = {"quiet": f"{foreground} 65%", "faint": f"{foreground} 30%"}
    if not theme.ansi:
        return greys | _code_colors(theme, foreground)
    ground, text = ("ansi_black", "ansi_white") if theme.dark else ("ansi_white", "ansi_black")
    return greys | ANSI_CODE_COLORS | {"ansi-background": ground, "ansi-foreground": text}


def contrast(one: Color, other: Color) -> float:
    """Contrast ratio of two colours (WCAG 2)."""
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(color: Color) -> float:
    channels = [channel / 255 for channel in color.rgb]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _code_colors(theme: Theme, foreground: str) -> dict[str, str]:
    """Colours of tokens in code, each made lighter or darker until it is legible on the theme's surface."""
    surface = Color.parse(theme.to_color_system().generate()["surface"])
    lighter = _luminance(surface) < 0.18  # above, black has the better contrast
    colors = LIGHT_CODE_COLORS if lighter else DARK_CODE_COLORS
    colors |= {"code-comment": Color.parse(foreground).blend(surface, 0.4).hex}
    return {name: _legible(Color.parse(color), surface, lighter).hex for name, color in colors.items()}


def _legible(color: Color, ground: Color, lighter: bool) -> Color:
    target = Color(255, 255, 255) if lighter else Color(0, 0, 0)
    return next(
        (
            mixed
            for step in range(20)
            if contrast(mixed := color.blend(target, step / 20), ground) >= MIN_CODE_CONTRAST
        ),
        target,
    )


def in_order(names: Iterable[str]) -> list[str]:
    """Theme names sorted: tqchat's first."""
    return sorted(names, key=lambda name: (not name.startswith("tqchat-"), name))


def stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, times and sizes of the theme files in a folder, to detect changes."""
    try:
        files = [(file.name, file.stat()) for file in _files(folder)]
    except OSError:
        return ()  # a file was removed meanwhile: the next call sees it
    return tuple((name, found.st_mtime_ns, found.st_size) for name, found in files)


def _colors(file: Path, table: Any) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise BadTheme(f"The theme {one_line(file.name)} needs a table [colors].")
    for key, value in table.items():
        if key not in COLORS:
            raise BadTheme(f"The theme {one_line(file.name)} has an unknown color: {_listed([key])}.")
        _check_color(file, key, value)
    return table


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(folder.glob("*.toml"))[:_MAX_FILES]
    except OSError:
        return []  # no folder, or one that may not be read


def _listed(names: Iterable[str]) -> str:
    return shown_value(", ".join(one_line(name) for name in sorted(names)[:5])).strip("'\"")


def _variables(file: Path, table: Any) -> dict[str, str]:
    if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
        raise BadTheme(f"The theme {one_line(file.name)} needs texts in quotes under [variables].")
    for key, value in table.items():
        # What Textual cannot parse would end the app when the style sheet is parsed.
        if not key.endswith(("-style", "-style-hover")):
            opacity = _OPACITY.fullmatch(value)
            _check_color(file, key, opacity[1] if opacity and int(opacity[2]) <= 100 else value)
        elif not value.split() or not set(value.split(" ")) <= VALID_STYLE_FLAGS:
            styles = ", ".join(sorted(flag for flag in VALID_STYLE_FLAGS if len(flag) > 2))
            raise BadTheme(
                f"The theme {one_line(file.name)} has no text style for {_listed([key])}: "
                f"use some of {styles}."
            )
    return table


def _check_color(file: Path, key: str, value: Any) -> None:
    try:
        if not isinstance(value, str) or not _COLOR.fullmatch(value):
            raise ValueError(value)
        Color.parse(value)
    except (ColorParseError, ValueError):
        raise BadTheme(
            f'The theme {one_line(file.name)} has no color for {_listed([key])}: use one like "#7aa2f7".'
        ) from None

"""Theme files: contrast of the shipped ones, the user's own, errors."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path

import pytest
from textual.color import Color, rgb_to_lab
from textual.filter import Monochrome
from textual.theme import BUILTIN_THEMES, Theme
from textual.widgets import OptionList

from tests.ui.conftest import OpenApp, drawn
from tqchat import paths as locations
from tqchat.paths import Paths
from tqchat.settings import Settings, State
from tqchat.ui import themes
from tqchat.ui.widgets.chat.blocks import Code, blocks

GOOD = """
name = "mine"
[colors]
primary = "#aabbcc"
accent = "#aabbcc"
foreground = "#ffffff"
background = "#000000"
surface = "#111111"
panel = "#222222"
warning = "#ffff00"
error = "#ff0000"
"""


def test_the_shipped_themes_load_without_a_problem() -> None:
    found = themes.load_all(locations.bundled("themes"))
    assert found.problems == []
    assert len(found.themes) >= 6 and all(name.startswith("tqchat-") for name in found.themes)
    assert themes.DEFAULT_THEME in found.themes


SHIPPED = themes.load_all(locations.bundled("themes")).themes


@pytest.mark.parametrize("name", [name for name, theme in SHIPPED.items() if not theme.ansi])
def test_text_is_legible(name: str) -> None:
    theme = SHIPPED[name]
    quiet = theme.variables["quiet"]
    strict = 7 if "contrast" in name else 4.5
    cursors = [theme.variables[f"block-cursor{side}-background"] for side in ("", "-blurred")]
    for ground in (theme.background, theme.surface, theme.panel, *cursors):
        assert ground is not None
        floor = 4.5 if ground in cursors else strict
        for text, minimum in (
            (theme.foreground, 4.5 if ground in cursors else 7),
            (quiet, floor),
            (theme.accent, floor),
            (theme.warning, floor),
            (theme.error, floor),
        ):
            assert text is not None
            ratio = contrast(Color.parse(text), Color.parse(ground))
            assert ratio >= minimum, f"{text} on {ground} has {ratio:.1f}"
    cursor = [Color.parse(theme.variables[f"block-cursor-{side}"]) for side in ("foreground", "background")]
    assert contrast(*cursor) >= 4.5


CODE = ("keyword", "name", "builtin", "string", "number", "comment")
EVERY_THEME = {**BUILTIN_THEMES, **SHIPPED, "a user's": Theme("mine", "#aabbcc", surface="#4a3a5a")}


@pytest.mark.parametrize("name", EVERY_THEME)
def test_code_has_six_legible_colours(name: str) -> None:
    theme = EVERY_THEME[name]
    variables = themes.variable_defaults(theme) | theme.variables
    colours = [variables[f"code-{kind}"] for kind in CODE]
    if theme.ansi:
        assert len(set(colours)) == 6 and all(colour.startswith("ansi_") for colour in colours)
        return
    surface = Color.parse(theme.to_color_system().generate()["surface"])
    for colour in colours:
        assert contrast(Color.parse(colour), surface) >= (7 if "contrast" in name else 4.5), colour
    labs = [rgb_to_lab(Color.parse(colour)) for colour in colours]
    assert min(math.dist(one, other) for one, other in combinations(labs, 2)) > 15


def test_tokens_of_six_kinds_have_the_six_colours() -> None:
    source = 'class Fox:  # red\n    """Quick."""\n\n    def run(self):\n        return print("ran", 42)\n'
    (code,) = blocks(f"```python\n{source}```")
    assert isinstance(code, Code)
    found = {code.content.plain[span.start : span.end]: str(span.style) for span in code.content.spans}
    expected = {
        "class": "keyword", "return": "keyword", "Fox": "name", "run": "name", "print": "builtin",
        "42": "number", "ran": "string", "# red": "comment", '"""Quick."""': "comment",
    }  # fmt: skip
    for text, kind in expected.items():
        assert f"$code-{kind}" in found[text], text


def test_the_terminal_theme_has_only_ansi_colours() -> None:
    theme = SHIPPED["tqchat-terminal"]
    assert theme.ansi
    colours = [theme.primary, theme.accent, theme.foreground, theme.background, theme.warning, theme.error]
    assert all(str(colour).startswith("ansi_") for colour in colours)


@pytest.mark.parametrize("name", SHIPPED)
async def test_the_cursor_of_a_list_is_visible(open_app: OpenApp, name: str) -> None:
    async with open_app(settings=Settings(theme=name)) as ui:
        await ui.pilot.press("ctrl+s")
        await ui.shows("system prompt")
        options = ui.app.screen.query_one(OptionList)
        marked, other = (
            options.get_visual_style(*parts)
            for parts in (
                ("option-list--option", "option-list--option-highlighted"),
                ("option-list--option",),
            )
        )
        assert marked != other


def contrast(one: Color, other: Color) -> float:
    """Contrast ratio (WCAG)."""

    def luminance(color: Color) -> float:
        channels = [channel / 255 for channel in color.rgb]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("not toml [", "cannot be read"),
        ('name = "x"\n', "lacks these colors"),
        (GOOD.replace("#ff0000", "reddish"), "no color for error"),
        (GOOD + 'shiny = "#ffffff"\n', "unknown color: shiny"),
        (GOOD + '[variables]\nborder = "blueish"\n', "no color for border"),
        ("sparkle = 1\n" + GOOD, "unknown entry: sparkle"),
        (GOOD.replace('name = "mine"', "name = 3"), "needs a name"),
        (GOOD.replace("mine", "m\\u001b]0;x\\u0007"), "needs a name on one line"),
        (GOOD.replace("#ff0000", "#ff0000 50%"), "no color for error"),
        (GOOD + '[variables]\nborder = "#fff; } * { display: none"\n', "no color for border"),
        (GOOD + '[variables]\nborder = "#fff 999%"\n', "no color for border"),
        (GOOD + '[variables]\nblock-cursor-text-style = "shiny"\n', "no text style for block-cursor"),
        (GOOD + '[variables]\nlink-style = ""\n', "no text style for link-style"),
        (GOOD + '[variables]\nlink-style = "bold; } * { display: none"\n', "no text style for link-style"),
        ("a = " + "[" * 5000, "nested too deeply"),
        ("a = " + "9" * 5000, "cannot be read"),
    ],
)
def test_a_bad_theme_is_refused_with_a_reason(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(themes.BadTheme, match=said):
        themes.load(file)


async def test_a_users_theme_is_used_and_a_bad_one_reported(open_app: OpenApp, paths: Paths) -> None:
    paths.themes.mkdir(parents=True)
    (paths.themes / "mine.toml").write_text(GOOD)
    (paths.themes / "bad.toml").write_text("[")
    async with open_app(settings=Settings(theme="mine")) as ui:
        assert ui.app.theme == "mine"
        await ui.shows("! The theme bad.toml cannot be read")


@pytest.mark.parametrize("dark", ["true", "false"])
async def test_a_theme_of_ansi_colours_may_have_others_and_need_no_variables(
    open_app: OpenApp, paths: Paths, dark: str
) -> None:
    paths.themes.mkdir(parents=True)
    (paths.themes / "mine.toml").write_text(f"ansi = true\ndark = {dark}\n{GOOD}")
    async with open_app(settings=Settings(theme="mine")) as ui:
        assert ui.app.theme == "mine"
        await ui.shows("Ask something")


async def test_an_unknown_theme_is_reported_and_the_default_used(open_app: OpenApp) -> None:
    async with open_app(settings=Settings(theme="nope")) as ui:
        assert ui.app.theme == themes.DEFAULT_THEME
        await ui.shows("There is no theme 'nope'")


@pytest.mark.parametrize("name", ["textual-light", "tqchat-terminal", "tqchat-contrast"])
async def test_textuals_own_themes_work_and_a_choice_is_remembered(
    open_app: OpenApp, paths: Paths, name: str
) -> None:
    async with open_app() as ui:
        ui.app.theme = name
        await ui.turn("Go", "Well.")
        await ui.pilot.press("ctrl+q")
        await ui.until(lambda: ui.app._exit)
    assert State.load(paths).settings == {"theme": name}


async def test_changes_of_a_users_theme_file_are_applied(open_app: OpenApp, paths: Paths) -> None:
    paths.themes.mkdir(parents=True)
    file = paths.themes / "mine.toml"
    file.write_text(GOOD)
    async with open_app(settings=Settings(theme="mine")) as ui:
        file.write_text(GOOD.replace('background = "#000000"', 'background = "#101010"'))
        ui.app.poll()
        await ui.until(lambda: ui.app.screen.styles.background.hex == "#101010")
        assert not State.load(paths).settings, "the choice in config.toml stays the choice"


async def test_no_color_removes_all_colours(open_app: OpenApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with open_app() as ui:
        assert ui.app.no_color
        await ui.turn("Go", "Well.", tokens=900)
        (filter,) = [one for one in ui.app._filters if isinstance(one, Monochrome)]
        for strip in drawn(ui.app):
            for segment in filter.apply(list(strip), Color.parse("black")):
                colour = segment.style.color if segment.style else None
                if colour is not None and colour.triplet is not None:
                    assert len(set(colour.triplet)) == 1, segment

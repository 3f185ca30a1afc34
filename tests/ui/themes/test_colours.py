"""Contrast of all text, on the main screens under every shipped theme."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from rich.color import ColorSystem, ColorType
from rich.segment import Segment
from textual.color import Color

from tests.ui.conftest import OpenApp
from tests.ui.themes.test_themes import SHIPPED, contrast
from tests.ui.tour import segments, visit_screens
from tqchat.ui.output_filter import USUAL_PALETTES, LegibleColors

DRAWING = re.compile("[\u2500-\u259f\u2800-\u28ff\\s]+")
"""Frames, bars and curves; their figures are also shown as text."""
MIN_CONTRAST = 4.5
TRUE_COLOUR = [name for name, theme in SHIPPED.items() if not theme.ansi]


def colours(segment: Segment) -> tuple[Color, Color] | None:
    style = segment.style
    if style is None or style.color is None or style.bgcolor is None or not DRAWING.sub("", segment.text):
        return None
    if style.color.triplet is None or style.bgcolor.triplet is None:
        return None
    pair = Color(*style.color.triplet), Color(*style.bgcolor.triplet)
    return (pair[1], pair[0]) if style.reverse else pair


@pytest.mark.parametrize(
    ("size", "names"), [((120, 40), TRUE_COLOUR), ((60, 24), ["tqchat-dark", "tqchat-light"])]
)
async def test_all_text_has_enough_contrast(
    open_app: OpenApp, size: tuple[int, int], names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unreadable, few = set[tuple[str, ...]](), set[tuple[object, ...]]()
    async with open_app(size) as ui:
        async for screen in visit_screens(ui, monkeypatch):
            # The picker previews a theme of its own; the palette keeps the colours it was opened in.
            tried = ["tqchat-dark"] if screen in ("themes", "palette") else names
            ui.app.parts.appearance.previewing = True  # so that the theme is not saved
            for name in tried:
                ui.app.theme = name
                await ui.pilot.pause()
                for segment in (segment for line in segments(ui) for segment in line):
                    unreadable |= {(name, screen, *found) for found in of_low_contrast(segment)}
                    if colours(segment) is not None:
                        few |= {(name, screen, at) for at in illegible_in_few_colours(segment)}
            ui.app.theme = "tqchat-dark"
            ui.app.parts.appearance.previewing = False
    assert not unreadable
    assert not few


async def test_text_selected_with_the_mouse_has_enough_contrast(open_app: OpenApp) -> None:
    reply = (
        "**Bold** `code` [link](http://x)\n\n# Head\n\n```python\n# none\ndef f(x):\n    return str(3)\n```"
    )
    unreadable = set[tuple[str, ...]]()
    async with open_app((120, 40)) as ui:
        await ui.turn("Go", reply)
        ui.app.screen.text_select_all()
        ui.app.parts.appearance.previewing = True
        for name in TRUE_COLOUR:
            ui.app.theme = name
            await ui.pilot.pause()
            for segment in (segment for line in segments(ui) for segment in line):
                unreadable |= {(name, *found) for found in of_low_contrast(segment)}
    assert not unreadable


def of_low_contrast(segment: Segment) -> Iterator[tuple[str, str]]:
    """The text and contrast of a segment that has too little of it."""
    pair = colours(segment)
    if pair is not None and contrast(*pair) < MIN_CONTRAST:
        yield segment.text.strip(), f"{contrast(*pair):.1f}"


def illegible_in_few_colours(segment: Segment) -> Iterator[tuple[object, ...]]:
    """Where too little contrast is left of a segment in terminals of 256 and of 16 colours."""
    for system, least in ((ColorSystem.EIGHT_BIT, MIN_CONTRAST), (ColorSystem.STANDARD, 4)):
        (shown,) = LegibleColors(system).apply([segment], Color.parse("black"))
        assert shown.text == segment.text and shown.style is not None
        used = [one.downgrade(system) for one in (shown.style.color, shown.style.bgcolor) if one is not None]
        pairs = [[Color(*one.get_truecolor()) for one in used]]
        if system is ColorSystem.STANDARD:
            pairs = [[palette[one.number or 0] for one in used] for palette in USUAL_PALETTES]
        if (left := min(contrast(*pair) for pair in pairs)) < least:
            yield system.name, segment.text.strip(), f"{left:.1f}"


async def test_the_terminal_theme_shows_only_ansi_colours(
    open_app: OpenApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = set()
    async with open_app((120, 40)) as ui:
        ui.app.parts.appearance.previewing = True
        ui.app.theme = "tqchat-terminal"
        async for screen in visit_screens(ui, monkeypatch):
            for segment in (segment for line in segments(ui) for segment in line):
                style = segment.style
                seen = (style.color if segment.text.strip() else None, style.bgcolor) if style else ()
                for colour in seen:
                    if colour is not None and colour.type not in (ColorType.DEFAULT, ColorType.STANDARD):
                        other.add((screen, segment.text.strip()[:20], str(colour)))
    assert not other

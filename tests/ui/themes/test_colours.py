"""Contrast of all text, on the main screens under every shipped theme."""

from __future__ import annotations

import re

import pytest
from rich.color import ColorType
from rich.segment import Segment
from textual.color import Color

from tests.ui.conftest import OpenApp
from tests.ui.themes.test_themes import SHIPPED, contrast
from tests.ui.tour import segments, visit_screens

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
    unreadable = set()
    async with open_app(size) as ui:
        async for screen in visit_screens(ui, monkeypatch):
            # The picker previews a theme of its own; the palette keeps the colours it was opened in.
            tried = ["tqchat-dark"] if screen in ("themes", "palette") else names
            ui.app.parts.appearance.previewing = True  # so that the theme is not saved
            for name in tried:
                ui.app.theme = name
                await ui.pilot.pause()
                for segment in (segment for line in segments(ui) for segment in line):
                    pair = colours(segment)
                    if pair is not None and contrast(*pair) < MIN_CONTRAST:
                        unreadable.add((name, screen, segment.text.strip(), f"{contrast(*pair):.1f}"))
            ui.app.theme = "tqchat-dark"
            ui.app.parts.appearance.previewing = False
    assert not unreadable


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

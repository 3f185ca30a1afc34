"""What is written can be read: on the screens as they are drawn, under every theme that is shipped."""

from __future__ import annotations

import re

import pytest
from rich.color import ColorType
from rich.segment import Segment
from textual.color import Color

from tests.ui.conftest import Open
from tests.ui.themes.test_themes import SHIPPED, contrast
from tests.ui.tour import segments, tour

DRAWN = re.compile("[\u2500-\u259f\u2800-\u28ff\\s]+")
"""Frames, bars and curves: what they say is said in words beside them."""
LEAST = 4.5
TRUE = [name for name, theme in SHIPPED.items() if not theme.ansi]


def colours(segment: Segment) -> tuple[Color, Color] | None:
    style = segment.style
    if style is None or style.color is None or style.bgcolor is None or not DRAWN.sub("", segment.text):
        return None
    if style.color.triplet is None or style.bgcolor.triplet is None:
        return None
    pair = Color(*style.color.triplet), Color(*style.bgcolor.triplet)
    return (pair[1], pair[0]) if style.reverse else pair


@pytest.mark.parametrize(("size", "names"), [((120, 40), TRUE), ((60, 24), ["tqchat-dark", "tqchat-light"])])
async def test_everything_that_is_written_can_be_read(
    stage: Open, size: tuple[int, int], names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unreadable = set()
    async with stage(size) as it:
        async for stop in tour(it, monkeypatch):
            # One wears what is under its own cursor, the other what it was opened in.
            worn = ["tqchat-dark"] if stop in ("themes", "palette") else names
            it.app.parts.appearance.previewing = True  # the look is not a choice
            for name in worn:
                it.app.theme = name
                await it.pilot.pause()
                for segment in (segment for line in segments(it) for segment in line):
                    pair = colours(segment)
                    if pair is not None and contrast(*pair) < LEAST:
                        unreadable.add((name, stop, segment.text.strip(), f"{contrast(*pair):.1f}"))
            it.app.theme = "tqchat-dark"
            it.app.parts.appearance.previewing = False
    assert not unreadable


async def test_the_terminals_own_colours_are_the_only_ones(
    stage: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = set()
    async with stage((120, 40)) as it:
        it.app.parts.appearance.previewing = True
        it.app.theme = "tqchat-terminal"
        async for stop in tour(it, monkeypatch):
            for segment in (segment for line in segments(it) for segment in line):
                style = segment.style
                seen = (style.color if segment.text.strip() else None, style.bgcolor) if style else ()
                for colour in seen:
                    if colour is not None and colour.type not in (ColorType.DEFAULT, ColorType.STANDARD):
                        foreign.add((stop, segment.text.strip()[:20], str(colour)))
    assert not foreign

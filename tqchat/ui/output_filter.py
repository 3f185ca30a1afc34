"""The way of all widgets to the terminal: printable text, legible in the colours that the terminal has."""

from __future__ import annotations

import re
from functools import lru_cache

from rich.cells import cell_len
from rich.color import Color as RichColor
from rich.color import ColorSystem
from rich.segment import Segment
from rich.style import Style
from textual.color import BLACK, WHITE, Color
from textual.filter import LineFilter

from tqchat.text import UNSTABLE_WIDTH, without_controls
from tqchat.ui.themes import contrast

_VGA = (
    "000000 aa0000 00aa00 aa5500 0000aa aa00aa 00aaaa aaaaaa 555555 ff5555 55ff55 ffff55 5555ff ff55ff 55ffff"
)
_XTERM = (
    "000000 cd0000 00cd00 cdcd00 0000ee cd00cd 00cdcd e5e5e5 7f7f7f ff0000 00ff00 ffff00 5c5cff ff00ff 00ffff"
)
USUAL_PALETTES = [[Color.parse(f"#{one}") for one in (*names.split(), "ffffff")] for names in (_VGA, _XTERM)]
"""What terminals usually show as their 16 colours; their users may have set others."""
MIN_CONTRAST = {ColorSystem.EIGHT_BIT: 4.5, ColorSystem.STANDARD: 4.0}
"""Contrast that text keeps if it has it in true colours. Of xterm's 16 colours, grey on white has 4."""
_GREYS = (0, 7)
"""Black and white, of 8 colours and of their bright forms."""
_STEPS = 10
_SEQUENCE_OR_UNSTABLE = re.compile(
    r"\x1b\[[0-?]*+[ -/]*+[@-~]|\x1b[\]P_^X][^\x07\x1b]*+(?:\x07|\x1b\\)|\x1b[^\[\]P_^X]"
    # A character, those that change its width, and what is joined to it.
    rf"|(?P<unstable>[^\x1b]?(?:(?:{UNSTABLE_WIDTH.pattern})(?:(?<=\u200d)[^\x00-\x7f])?)++\u20e3?)"
)


def with_fixed_columns(output: str) -> str:
    """Output after whose characters of unstable width the cursor is where Textual takes it to be.

    In a field they are drawn as they are; otherwise the rest of the line, and its frame, would be shifted.
    """
    return _SEQUENCE_OR_UNSTABLE.sub(_fixed, output) if UNSTABLE_WIDTH.search(output) else output


def _fixed(found: re.Match[str]) -> str:
    if (text := found["unstable"]) is None:
        return found[0]
    cells = cell_len(text)
    # Save the place, clear the cells and return; then the same with the text, and go behind its cells.
    return f"\x1b7{' ' * cells}\x1b8\x1b7{text}\x1b8" + (f"\x1b[{cells}C" if cells else "")


class PrintableOnly(LineFilter):
    """Removes control characters and bidirectional overrides from all drawn lines.

    They take no cells, so that a line keeps its width. Of an escape sequence the rest stays as text, so texts
    that may contain sequences are cleaned before they are laid out.
    """

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The segments with printable text."""
        if all(text.isprintable() for text, _, _ in segments):
            return segments
        return [
            segment if segment.text.isprintable() else Segment(without_controls(segment.text), segment.style)
            for segment in segments
        ]


class LegibleColors(LineFilter):
    """Keeps text legible where the terminal has fewer colours than the theme.

    It shows the nearest one that it has of text and of ground, which can take the contrast between them away.
    The text is then drawn lighter or darker.
    """

    def __init__(self, system: ColorSystem) -> None:
        super().__init__()
        self._system = system

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The segments in legible colours."""
        return [
            segment if segment.style is None else Segment(segment.text, _legible(segment.style, self._system))
            for segment in segments
        ]


@lru_cache(4096)
def _legible(style: Style, system: ColorSystem) -> Style:
    text, ground = style.color, style.bgcolor
    if text is None or ground is None or text.triplet is None or ground.triplet is None:
        return style  # the terminal's own colours
    true_text, true_ground = Color.from_rich_color(text), Color.from_rich_color(ground)
    least = MIN_CONTRAST[system]
    # Of 16 colours the style sheet gives selected lines another ground than the theme, whatever is on it.
    if system is not ColorSystem.STANDARD or (ground.downgrade(system).number or 0) % 8 in _GREYS:
        least = min(least, contrast(true_text, true_ground))
    target = max(WHITE, BLACK, key=lambda end: _shown_contrast(end, true_ground, system))
    for step in range(_STEPS):
        mixed = true_text.blend(target, step / _STEPS)
        if _shown_contrast(mixed, true_ground, system) >= least:
            return style if step == 0 else style + Style(color=mixed.rich_color)
    return style + Style(color=target.rich_color)


def _shown_contrast(text: Color, ground: Color, system: ColorSystem) -> float:
    return min(
        contrast(one, other)
        for one, other in zip(_shown(text.rich_color, system), _shown(ground.rich_color, system), strict=True)
    )


@lru_cache(1024)
def _shown(color: RichColor, system: ColorSystem) -> list[Color]:
    """What a terminal may show in the place of a colour."""
    nearest = color.downgrade(system)
    if system is ColorSystem.STANDARD:
        assert nearest.number is not None
        return [palette[nearest.number] for palette in USUAL_PALETTES]
    return [Color(*nearest.get_truecolor())]

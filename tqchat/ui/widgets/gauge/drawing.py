"""Bars and curves of block and braille characters."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from textual.content import Content

from tqchat.ui.controller.records import Sample

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_BRAILLE = ((0x40, 0x04, 0x02, 0x01), (0x80, 0x20, 0x10, 0x08))
"""Bits of a braille cell's dots by column, from the bottom up."""


def bar(fraction: float, width: int, style: str = "$accent") -> Content:
    """A bar of ``width`` cells, filled to ``fraction`` in eighths of a cell; the rest is a shaded track."""
    eighths = round(max(0.0, min(1.0, fraction)) * width * 8)
    if fraction > 0:
        eighths = max(eighths, 1)
    full, rest = divmod(eighths, 8)
    filled = "█" * full + (_EIGHTHS[rest] if rest else "")
    return Content.assemble((filled, f"{style} on $panel"), ("░" * (width - len(filled)), "$faint on $panel"))


def curves(samples: Sequence[Sample], width: int, height: int) -> list[Content]:
    """Cache size against tokens: a filled area for the scheme, a line for FP16.

    The horizontal axis spans the sampled token counts, the vertical one zero to the largest size. Area and
    line differ in shape, not only in colour.
    """
    columns, rows = width * 2, height * 4
    top = max((max(sample.bytes, sample.fp16_bytes) for sample in samples), default=0)
    if len(samples) < 2 or samples[0].tokens >= samples[-1].tokens or not top:
        return []
    now = [_level(samples, column, columns, top, rows, "bytes") for column in range(columns)]
    fp16 = [_level(samples, column, columns, top, rows, "fp16_bytes") for column in range(columns)]
    lines = []
    for row in range(height):
        base = (height - 1 - row) * 4
        pieces: list[tuple[str, str]] = []
        for cell in range(width):
            area = line = 0
            for half in (0, 1):
                column = cell * 2 + half
                for dot in range(4):
                    level = base + dot
                    if level <= now[column]:
                        area |= _BRAILLE[half][dot]
                    if _on_line(fp16, column, level):
                        line |= _BRAILLE[half][dot]
            style = "$accent" if area else "$quiet"
            pieces.append((chr(0x2800 + (area | line)), style))
        lines.append(_joined(pieces))
    return lines


def scheme_marks(samples: Sequence[Sample], width: int) -> Content | None:
    """A line below the curves with a mark and, if it fits, the new scheme's name at each scheme change."""
    first, last = samples[0].tokens, samples[-1].tokens
    line: list[str] = [" "] * width
    free = 0
    for before, after in pairwise(samples):
        if before.scheme == after.scheme:
            continue
        cell = round((after.tokens - first) / (last - first) * (width - 1))
        text = f"╵{after.scheme}"
        if cell + len(text) > width:  # put the name left of its mark
            text = f"{after.scheme}╵"
            cell -= len(after.scheme)
        if cell < free:
            text, cell = "╵", max(free, min(cell, width - 1))
        if cell + len(text) <= width:
            line[cell : cell + len(text)] = text
            free = cell + len(text) + 1
    return Content.styled("".join(line), "$quiet") if "╵" in line else None


def _level(samples: Sequence[Sample], column: int, columns: int, top: int, rows: int, field: str) -> int:
    """Dot row (0 is lowest) of a curve in a dot column, interpolated between samples of one scheme."""
    first, last = samples[0].tokens, samples[-1].tokens
    tokens = first + (last - first) * column / (columns - 1)
    after = bisect_right(samples, tokens, key=lambda sample: sample.tokens)
    before = samples[max(after - 1, 0)]
    value: float = getattr(before, field)
    if after < len(samples) and samples[after].scheme == before.scheme:
        share = (tokens - before.tokens) / (samples[after].tokens - before.tokens)
        value += share * (getattr(samples[after], field) - value)
    return round(value / top * (rows - 1))


def _on_line(levels: Sequence[int], column: int, level: int) -> bool:
    """Whether the line passes this dot; jumps are drawn as vertical steps."""
    here = levels[column]
    before = levels[column - 1] if column else here
    return level == here or min(before, here) < level < max(before, here)


def _joined(pieces: Sequence[tuple[str, str]]) -> Content:
    """Merge neighbours of one style into one span, which draws faster."""
    runs: list[tuple[str, str]] = []
    for text, style in pieces:
        if runs and runs[-1][1] == style:
            runs[-1] = (runs[-1][0] + text, style)
        else:
            runs.append((text, style))
    return Content.assemble(*runs)

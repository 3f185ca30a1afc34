"""The main screens as they were last looked at and found good: their text, and how each part of it is drawn.

``TQCHAT_SCREENS=write pytest tests/ui/test_screens.py`` takes them as they are now and draws them, for the
eye, into ``build/screens``; ``git diff`` then shows what changed.
"""

from __future__ import annotations

import difflib
import os
from itertools import groupby
from pathlib import Path
from string import ascii_letters, digits

import pytest
import textual
from rich.style import Style

from tests.ui.conftest import Open, Stage
from tests.ui.tour import steady, still, strips, tour

FOLDER = Path(__file__).parent / "screens"
PICTURES = Path(__file__).parents[2] / "build" / "screens"
WRITES = os.environ.get("TQCHAT_SCREENS") == "write"
THEMES = ("tqchat-dark", "tqchat-light", "tqchat-terminal")
SIGNS = ascii_letters + digits


@pytest.mark.parametrize("size", [(160, 45), (60, 24)], ids=["wide", "narrow"])
async def test_the_screens_are_as_they_were(
    stage: Open, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changed: list[str] = []
    steady(monkeypatch)
    async with stage(size) as it:
        async for stop in tour(it, monkeypatch):
            lines = [strip.text.rstrip() for strip in strips(it)]
            drawn = ["\n".join(lines)]
            for theme in THEMES if stop not in ("themes", "palette") else THEMES[:1]:
                if it.app.theme != theme:
                    it.app.parts.appearance.previewing = True
                    it.app.theme = theme
                    await still(it)
                if WRITES:
                    picture(it, f"{stop}-{size[0]}-{theme}")
                drawn.append(styles(theme, [[(len(s.text), s.style) for s in strip] for strip in strips(it)]))
            it.app.theme = THEMES[0]
            it.app.parts.appearance.previewing = False
            await still(it)
            text = "\n\n".join([f"Textual {textual.__version__}", *drawn]) + "\n"
            changed += compared(f"{stop}-{size[0]}.txt", text, tmp_path)
    assert not changed, "\n".join(changed[:80])


def picture(it: Stage, name: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    (PICTURES / f"{name}.svg").write_text(it.app.export_screenshot(title=name, simplify=True), "utf-8")


def styles(theme: str, rows: list[list[tuple[int, Style | None]]]) -> str:
    """Runs of one style, a sign for each: ``4a 12b 144a``; and what each sign stands for."""
    signs: dict[str, str] = {}
    lines = []
    for row in rows:
        cells = [(told(style), length) for length, style in row]
        runs = [(look, sum(length for _, length in group)) for look, group in groupby(cells, lambda c: c[0])]
        for look, _ in runs:
            signs.setdefault(look, SIGNS[len(signs)])
        lines.append(" ".join(f"{length}{signs[look]}" for look, length in runs))
    legend = "\n".join(f"{sign} {look}" for look, sign in signs.items())
    return f"{theme}\n{legend}\n" + "\n".join(lines)


def told(style: Style | None) -> str:
    """Colours and attributes; not the links and click targets that a style also carries."""
    if style is None:
        return "plain"
    attributes = [name for name in ("bold", "dim", "italic", "underline", "reverse") if getattr(style, name)]
    fore, back = (
        "default" if colour is None else colour.triplet.hex if colour.triplet else colour.name
        for colour in (style.color, style.bgcolor)
    )
    return " ".join([fore, "on", back, *attributes])


def compared(name: str, text: str, scratch: Path) -> list[str]:
    """What differs from the screen that was kept; nothing under another Textual, which draws otherwise."""
    kept = FOLDER / name
    if WRITES:
        FOLDER.mkdir(exist_ok=True)
        kept.write_text(text, encoding="utf-8")
        return []
    if not kept.exists():
        return [f"{name} was never kept: see the top of this file"]
    before = kept.read_text(encoding="utf-8")
    if before == text or before.splitlines()[0] != text.splitlines()[0]:
        return []
    (scratch / name).write_text(text, encoding="utf-8")
    difference = difflib.unified_diff(before.splitlines(), text.splitlines(), name, "now", n=0, lineterm="")
    return [*list(difference)[:30], f"all of it: {scratch / name}; see the top of this file"]


def test_every_kept_screen_is_still_visited() -> None:
    kept = {file.stem.rpartition("-")[0] for file in FOLDER.glob("*.txt")}
    assert kept >= {"welcome", "chat", "schemes", "models", "settings", "themes", "help", "failed"}

"""The main screens compared with stored ones: their text, and the style of each part.

``TQCHAT_SCREENS=write pytest tests/ui/test_screens.py`` stores the current ones, and pictures of them in
``build/screens``; ``git diff`` then shows the changes.
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

from tests.ui.conftest import OpenApp, RunningApp
from tests.ui.tour import freeze_cursors_and_clock, settle, strips, visit_screens

FOLDER = Path(__file__).parent / "screens"
PICTURES = Path(__file__).parents[2] / "build" / "screens"
WRITES = os.environ.get("TQCHAT_SCREENS") == "write"
THEMES = ("tqchat-dark", "tqchat-light", "tqchat-terminal")
SIGNS = ascii_letters + digits


@pytest.mark.parametrize("size", [(160, 45), (60, 24)], ids=["wide", "narrow"])
async def test_the_screens_match_the_stored_ones(
    open_app: OpenApp, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changed: list[str] = []
    freeze_cursors_and_clock(monkeypatch)
    async with open_app(size) as ui:
        async for screen in visit_screens(ui, monkeypatch):
            lines = [strip.text.rstrip() for strip in strips(ui)]
            drawn = ["\n".join(lines)]
            for theme in THEMES if screen not in ("themes", "palette") else THEMES[:1]:
                if ui.app.theme != theme:
                    ui.app.parts.appearance.previewing = True
                    ui.app.theme = theme
                    await settle(ui)
                if WRITES:
                    save_picture(ui, f"{screen}-{size[0]}-{theme}")
                drawn.append(
                    style_runs(theme, [[(len(s.text), s.style) for s in strip] for strip in strips(ui)])
                )
            ui.app.theme = THEMES[0]
            ui.app.parts.appearance.previewing = False
            await settle(ui)
            text = "\n\n".join([f"Textual {textual.__version__}", *drawn]) + "\n"
            changed += differences(f"{screen}-{size[0]}.txt", text, tmp_path)
    assert not changed, "\n".join(changed[:80])


async def test_a_dialog_is_read_with_the_screen_behind_it(open_app: OpenApp) -> None:
    async with open_app((160, 45)) as ui:
        await settle(ui, "Everything runs and stays")
        await ui.pilot.press("ctrl+k")
        await settle(ui, "Scheme for this conversation")
        before = ui.text()
        ui.app.screen.refresh()  # as whatever redraws the dialog between two looks
        assert "Conversations" in before
        assert ui.text() == before


def save_picture(ui: RunningApp, name: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    (PICTURES / f"{name}.svg").write_text(ui.app.export_screenshot(title=name, simplify=True), "utf-8")


def style_runs(theme: str, rows: list[list[tuple[int, Style | None]]]) -> str:
    """Runs of cells of one style, a letter for each style: ``4a 12b 144a``; and a legend."""
    signs: dict[str, str] = {}
    lines = []
    for row in rows:
        cells = [(style_text(style), length) for length, style in row]
        runs = [(look, sum(length for _, length in group)) for look, group in groupby(cells, lambda c: c[0])]
        for look, _ in runs:
            signs.setdefault(look, SIGNS[len(signs)])
        lines.append(" ".join(f"{length}{signs[look]}" for look, length in runs))
    legend = "\n".join(f"{sign} {look}" for look, sign in signs.items())
    return f"{theme}\n{legend}\n" + "\n".join(lines)


def style_text(style: Style | None) -> str:
    """Colours and attributes of a style, without links and click targets."""
    if style is None:
        return "plain"
    attributes = [name for name in ("bold", "dim", "italic", "underline", "reverse") if getattr(style, name)]
    fore, back = (
        "default" if colour is None else colour.triplet.hex if colour.triplet else colour.name
        for colour in (style.color, style.bgcolor)
    )
    return " ".join([fore, "on", back, *attributes])


def differences(name: str, text: str, scratch: Path) -> list[str]:
    """Differences from the stored screen; none under another version of Textual, which draws differently."""
    stored = FOLDER / name
    if WRITES:
        FOLDER.mkdir(exist_ok=True)
        stored.write_text(text, encoding="utf-8")
        return []
    if not stored.exists():
        return [f"{name} is not stored: see the top of this file"]
    before = stored.read_text(encoding="utf-8")
    if before == text or before.splitlines()[0] != text.splitlines()[0]:
        return []
    (scratch / name).write_text(text, encoding="utf-8")
    difference = difflib.unified_diff(before.splitlines(), text.splitlines(), name, "now", n=0, lineterm="")
    return [*list(difference)[:30], f"all of it: {scratch / name}; see the top of this file"]


def test_the_main_screens_are_stored() -> None:
    stored = {file.stem.rpartition("-")[0] for file in FOLDER.glob("*.txt")}
    assert stored >= {"welcome", "chat", "schemes", "models", "settings", "themes", "help", "failed"}

"""Visits the main screens in a fixed order, for tests of their appearance."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from rich.segment import Segment
from textual.screen import ModalScreen
from textual.strip import Strip
from textual.widgets import Input, TextArea

from tests.ui.conftest import RunningApp, drawn
from tqchat.engine import events
from tqchat.engine.commands import STARTER
from tqchat.engine.hub import catalog
from tqchat.engine.hub.catalog import LocalModel
from tqchat.engine.memory import recommend
from tqchat.engine.memory.recommend import Machine
from tqchat.ui import figures
from tqchat.ui.screens.chat import ChatScreen

MODELS = [
    LocalModel(STARTER, "starter", "bundled", Path("/models/starter"), 24_300_000, "llama", "6-bit", 4096),
    LocalModel("/models/tiny", "tiny", "folder", Path("/models/tiny"), 1_870_000, "llama", "4-bit", 512),
    LocalModel(
        "/models/half", "half", "folder", Path("/models/half"), 0, problem="The weights are cut short."
    ),
    LocalModel("org/large-4bit", "org/large-4bit", "hub", None, 1_200_000_000),
]
REPLY = """A fox is a **small** animal.

1. It is quick.
2. It lives in a *den*, often in `woods`.

| what | how much |
| --- | ---: |
| food | 500 g |

```python
print("fox")
```
"""


def freeze_cursors_and_clock(patch: pytest.MonkeyPatch) -> None:
    """Stop blinking cursors and fix the time of day. Call it before the app starts."""
    patch.setattr(TextArea, "_toggle_cursor_blink_visible", lambda self: None)
    patch.setattr(Input, "_toggle_cursor", lambda self: None)
    patch.setattr(figures, "clock", lambda timestamp: "18:23")


async def visit_screens(ui: RunningApp, patch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """Visit the screens; yields the name of each once it has settled."""
    patch.setattr(catalog, "scan", lambda folders: MODELS)
    patch.setattr(recommend, "this_machine", lambda: Machine("a machine", False, 6_000_000_000))
    ui.app.chat.models.memory_budget = 1_000_000_000
    narrow = ui.app.size.width < 88
    await settle(ui, "Everything runs and stays")
    yield "welcome"
    await ui.turn("What is a fox?", REPLY, tokens=900)
    ui.app.chat.schemes.set("turbo4")
    await ui.turn("And an owl?", "A bird that sees well at night. " * 9, tokens=1900)
    await settle(ui, "1,860 tok", "turbo4", "context 1,900")
    yield "chat"
    if narrow:
        for key, name, text in (("f3", "gauge", "KV cache"), ("f2", "list", "What is a fox?  4.59 MB")):
            await ui.pilot.press(key)
            await settle(ui, text)
            yield name
            await ui.pilot.press("escape")
    for key, name, text in (
        ("ctrl+k", "schemes", "Scheme for this conversation"),
        ("ctrl+o", "models", "Weights 31.0 MB"),
        ("ctrl+s", "settings", "The colour theme: one of"),
        ("f10", "conversation", "This conversation"),
        ("f9", "themes", "tqchat-terminal"),
        ("f1", "help", "Esc closes"),
        ("ctrl+p", "palette", "Cache scheme"),
        ("f8", "delete", "Delete this conversation?"),
    ):
        await ui.pilot.press(key)
        await settle(ui, text)
        yield name
        await ui.pilot.press("escape")
        await ui.until(lambda: isinstance(ui.app.screen, ChatScreen))
    ui.engine.emit(events.ModelProgress("org/large-4bit", "downloading", 1_200_000_000, 4_300_000_000))
    await settle(ui, "1.20 GB of 4.30 GB")
    yield "download"
    sentence = "org/large-4bit is not on this machine and Hugging Face cannot be reached."
    ui.engine.emit(events.ModelFailed("org/large-4bit", sentence))
    await settle(ui, "✗ org/large-4bit is not on this machine")
    yield "failed"


async def settle(ui: RunningApp, *texts: str) -> None:
    """Wait for texts, and until the screen no longer changes."""
    for text in texts:
        await ui.shows(text)
    before: list[Strip] = []
    while before != (now := strips(ui)):
        before = now
        await ui.pilot.pause(0.15)
        if isinstance(ui.app.screen, ChatScreen):
            ui.app.screen.draw_due()
            await ui.pilot.pause()


def strips(ui: RunningApp) -> list[Strip]:
    return drawn(ui.app)


def segments(ui: RunningApp) -> list[list[Segment]]:
    """The segments that are not dimmed behind a dialog, line by line."""
    screen = ui.app.screen
    front = [screen.region]
    if isinstance(screen, ModalScreen):
        front = [box.region for box in screen.query(".box, CommandInput, CommandList") if box.display]
    drawn = strips(ui)
    return [list(strip.crop(one.x, one.right)) for one in front for strip in drawn[one.y : one.bottom]]

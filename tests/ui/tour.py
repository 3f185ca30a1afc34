"""A walk through the main screens, the same every time, for looking at what is drawn."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from rich.segment import Segment
from textual.screen import ModalScreen
from textual.strip import Strip
from textual.widgets import Input, TextArea

from tests.ui.conftest import Stage
from tqchat.engine import events
from tqchat.engine.hub import catalog
from tqchat.engine.hub.catalog import LocalModel
from tqchat.ui import figures
from tqchat.ui.screens.chat import ChatScreen

MODELS = [
    LocalModel("starter", "starter", "bundled", Path("/models/starter"), 24_300_000, "llama", "6-bit", 4096),
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


def steady(patch: pytest.MonkeyPatch) -> None:
    """What is different at every look stands still: cursors and clocks. Call it before the app starts."""
    patch.setattr(TextArea, "_toggle_cursor_blink_visible", lambda self: None)
    patch.setattr(Input, "_toggle_cursor", lambda self: None)
    patch.setattr(figures, "clock", lambda timestamp: "18:23")


async def tour(it: Stage, patch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """Go from screen to screen; the name of each when it stands still."""
    patch.setattr(catalog, "scan", lambda folders: MODELS)
    it.app.chat.models.memory_budget = 1_000_000_000
    narrow = it.app.size.width < 88
    await still(it, "Everything runs and stays")
    yield "welcome"
    await it.chat("What is a fox?", REPLY, tokens=900)
    it.app.chat.schemes.set("turbo4")
    await it.chat("And an owl?", "A bird that sees well at night. " * 9, tokens=1900)
    await still(it, "1,860 tok", "turbo4", "context 1,900")
    yield "chat"
    if narrow:
        for key, name, text in (("f3", "gauge", "KV cache"), ("f2", "list", "Conversations")):
            await it.pilot.press(key)
            await still(it, text)
            yield name
            await it.pilot.press("escape")
    for key, name, text in (
        ("ctrl+k", "schemes", "Scheme for this conversation"),
        ("ctrl+o", "models", "Weights 31.0 MB"),
        ("ctrl+s", "settings", "The colour theme: one of"),
        ("f10", "conversation", "This conversation"),
        ("f9", "themes", "tqchat-terminal"),
        ("f1", "help", "Esc closes"),
        ("ctrl+p", "palette", "Answer again"),
        ("f8", "delete", "Delete this conversation?"),
    ):
        await it.pilot.press(key)
        await still(it, text)
        yield name
        await it.pilot.press("escape")
        await it.until(lambda: isinstance(it.app.screen, ChatScreen))
    it.engine.say(events.ModelProgress("org/large-4bit", "downloading", 1_200_000_000, 4_300_000_000))
    await still(it, "1.20 GB of 4.30 GB")
    yield "download"
    sentence = "org/large-4bit is not on this machine and Hugging Face cannot be reached."
    it.engine.say(events.ModelFailed("org/large-4bit", sentence))
    await still(it, "✗ org/large-4bit is not on this machine")
    yield "failed"


async def still(it: Stage, *texts: str) -> None:
    """Wait for what must be there, and until nothing moves any more."""
    for text in texts:
        await it.sees(text)
    before: list[Strip] = []
    while before != (now := strips(it)):
        before = now
        await it.pilot.pause(0.15)
        if isinstance(it.app.screen, ChatScreen):
            it.app.screen.draw_due()
            await it.pilot.pause()


def strips(it: Stage) -> list[Strip]:
    return it.app.screen._compositor.render_strips()


def segments(it: Stage) -> list[list[Segment]]:
    """What is not dimmed by a question in front of it, line by line."""
    screen = it.app.screen
    front = [screen.region]
    if isinstance(screen, ModalScreen):
        front = [box.region for box in screen.query(".box, CommandInput, CommandList") if box.display]
    drawn = strips(it)
    return [list(strip.crop(one.x, one.right)) for one in front for strip in drawn[one.y : one.bottom]]

"""The pictures of the README, made of the real app with the real engine and the bundled model.

Run ``python -m tests.ui.pictures`` from the checkout; it writes ``assets/screens/*.svg``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from textual.pilot import Pilot

from tqchat.engine.commands import Sampling
from tqchat.paths import HOME_VARIABLE, locate
from tqchat.settings import Settings
from tqchat.ui.app import TqchatApp
from tqchat.ui.screens.help import Help
from tqchat.ui.screens.scheme import SchemePicker
from tqchat.ui.widgets.prompt.prompt import Prompt

SCREENS = Path(__file__).parents[2] / "assets" / "screens"
WIDE, NARROW = (120, 38), (72, 24)
EARLIER = ("What can you tell me about the moon?", "Name three animals that live in a river.")
STORY = (
    "Tell me a story about a fox.",
    "Tell me a story about an owl and a bell.",
    "Tell me a story about a whale.",
)


class Studio:
    """The app in front of the camera."""

    def __init__(self, app: TqchatApp, pilot: Pilot[None], folder: Path) -> None:
        self.app, self.pilot, self.folder = app, pilot, folder

    async def until(self, happened: Callable[[], object]) -> None:
        deadline = time.monotonic() + 120
        while not happened():
            if time.monotonic() > deadline:
                raise SystemExit("The app did not get there; no picture was made.")
            await self.pilot.pause(0.05)

    async def ask(self, words: str) -> None:
        self.app.query_one(Prompt).put(words)
        await self.pilot.press("enter")
        await self.until(lambda: words in [message.content for message in self.app.chat.shown.messages])
        await self.until(lambda: self.app.chat.shown.messages[-1].role == "assistant")
        await self.until(lambda: self.app.chat.work.reply is None and self.app.chat.work.activity is None)

    async def take(self, name: str) -> None:
        await self.pilot.pause(0.6)
        picture = self.app.export_screenshot(title="tqchat", simplify=True)
        # The font would be fetched from the network by whoever looks at the picture.
        picture = re.sub(r"@font-face\s*\{.*?\}\s*", "", picture, flags=re.DOTALL)
        picture = picture.replace("Fira Code", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono")
        (self.folder / f"{name}.svg").write_text(picture, encoding="utf-8")
        print(f"{name}.svg")


async def make(folder: Path) -> None:
    """All pictures, in one sitting."""
    places = locate()
    places.ensure()
    settings = Settings(theme="tqchat-dark", scheme="turbo0v4", max_tokens=Sampling().max_tokens, seed=5)
    app = TqchatApp(places, settings)
    async with app.run_test(size=WIDE) as pilot:
        studio = Studio(app, pilot, folder)
        await studio.until(lambda: app.chat.models.current)
        await studio.take("empty")
        for words in EARLIER:
            await pilot.press("ctrl+n")
            await studio.ask(words)
        await pilot.press("ctrl+n")
        for words in STORY[:-1]:
            await studio.ask(words)
        app.chat.schemes.set("turbo4")
        await studio.until(lambda: app.chat.caches.report and app.chat.caches.report.scheme == "turbo4")
        await studio.ask(STORY[-1])
        await studio.take("chat")
        app.theme = "tqchat-light"
        await studio.take("chat-light")
        app.theme = "tqchat-dark"
        await pilot.press("ctrl+k")
        await studio.until(lambda: isinstance(app.screen, SchemePicker))
        await studio.take("schemes")
        await pilot.press("escape", "f1")
        await studio.until(lambda: isinstance(app.screen, Help))
        await studio.take("help")
        await pilot.press("escape")
        await pilot.resize_terminal(*NARROW)
        await studio.take("narrow")
        await pilot.press("ctrl+q")


def main() -> None:
    """Make the pictures in a home of their own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=SCREENS, help="folder for the pictures")
    folder: Path = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        os.environ[HOME_VARIABLE] = home
        asyncio.run(make(folder))


if __name__ == "__main__":
    main()

"""Pictures for the README, of the app with the real engine and the bundled model.

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

from tqchat.paths import HOME_VARIABLE, locate
from tqchat.settings import Settings
from tqchat.ui.app import TqchatApp
from tqchat.ui.screens.help import Help
from tqchat.ui.screens.scheme import SchemePicker
from tqchat.ui.widgets.prompt.prompt import Prompt

SCREENS = Path(__file__).parents[2] / "assets" / "screens"
WIDE, NARROW = (150, 42), (72, 24)
EARLIER = ("What is the capital of France?", "Who wrote Romeo and Juliet?")
PAGE = """\
Otters are carnivorous mammals in the weasel family. There are fourteen species, and all of them live
partly in water. Sea otters spend almost their whole life in the Pacific Ocean. They sleep floating on their
backs, often wrapped in kelp so that they do not drift away. River otters live in burrows called holts on the
banks of rivers in Europe, Asia and the Americas.

Otters eat mostly fish, but also crabs, frogs and birds. Sea otters eat sea urchins and clams, which they open
with a stone that they keep in a pouch of skin under the arm. An adult sea otter eats a quarter of its weight
every day, because it has no blubber to keep it warm: it relies on its fur, the densest of any animal, with up
to a million hairs on a square inch. River otters hunt at night and at dusk. They can hold their breath for up
to eight minutes and swim at seven miles an hour.

A mother carries her pup on her chest for the first months. When she dives for food she leaves it at the
surface, wrapped in kelp. Young river otters learn to swim when they are about two months old, and stay with
their mother for a year. Groups of otters are called rafts in the water and romps on land.

Otters were hunted for their fur until few were left. Since 1911 a treaty protects sea otters, and some
populations have recovered. Where sea otters return, sea urchins become fewer and forests of kelp grow again,
which shelter fish and take up carbon. Today otters suffer from polluted rivers, oil spills and nets."""
TALK = (
    f"Summarise this page in two sentences:\n\n{PAGE}",
    "Write a Python function that reverses a string.",
    "Why is the sky blue?",
)


class Screenshots:
    """Operates the app and saves pictures of it."""

    def __init__(self, app: TqchatApp, pilot: Pilot[None], folder: Path) -> None:
        self.app, self.pilot, self.folder = app, pilot, folder

    async def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 600
        while not condition():
            if time.monotonic() > deadline:
                raise SystemExit("Timed out; no picture was made.")
            await self.pilot.pause(0.05)

    async def send(self, text: str) -> None:
        self.app.query_one(Prompt).put(text)
        await self.pilot.press("enter")
        await self.until(lambda: text in [message.content for message in self.app.chat.shown.messages])
        await self.until(lambda: self.app.chat.shown.messages[-1].role == "assistant")
        await self.until(lambda: self.app.chat.work.reply is None and self.app.chat.work.activity is None)

    async def save(self, name: str) -> None:
        await self.pilot.pause(0.6)
        picture = self.app.export_screenshot(title="tqchat", simplify=True)
        # Viewers would fetch the font from the network.
        picture = re.sub(r"@font-face\s*\{.*?\}\s*", "", picture, flags=re.DOTALL)
        picture = picture.replace("Fira Code", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono")
        (self.folder / f"{name}.svg").write_text(picture, encoding="utf-8")
        print(f"{name}.svg")


async def make(folder: Path) -> None:
    """Save all pictures."""
    paths = locate()
    paths.ensure()
    settings = Settings(theme="tqchat-dark", scheme="turbo4", max_tokens=300, seed=5)
    app = TqchatApp(paths, settings)
    async with app.run_test(size=WIDE) as pilot:
        shots = Screenshots(app, pilot, folder)
        await shots.until(lambda: app.chat.models.current)
        await shots.save("empty")
        for text in EARLIER:
            await pilot.press("ctrl+n")
            await shots.send(text)
        await pilot.press("ctrl+n")
        for text in TALK[:-1]:
            await shots.send(text)
        app.chat.schemes.set("auto")
        await shots.until(lambda: app.chat.caches.report and app.chat.caches.report.scheme != "turbo4")
        await shots.send(TALK[-1])
        await shots.save("chat")
        app.theme = "tqchat-light"
        await shots.save("chat-light")
        app.theme = "tqchat-dark"
        await pilot.press("ctrl+k")
        await shots.until(lambda: isinstance(app.screen, SchemePicker))
        await shots.save("schemes")
        await pilot.press("escape", "f1")
        await shots.until(lambda: isinstance(app.screen, Help))
        await shots.save("help")
        await pilot.press("escape")
        await pilot.resize_terminal(*NARROW)
        await shots.save("narrow")
        await pilot.press("ctrl+q")


def main() -> None:
    """Make the pictures with a temporary home."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=SCREENS, help="folder for the pictures")
    folder: Path = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        os.environ[HOME_VARIABLE] = home
        asyncio.run(make(folder))


if __name__ == "__main__":
    main()

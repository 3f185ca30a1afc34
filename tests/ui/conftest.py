from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
from textual._context import visible_screen_stack
from textual.app import App
from textual.content import Content
from textual.pilot import Pilot
from textual.strip import Strip
from textual.widgets import OptionList, Static

from tests.ui.scripted import ScriptedEngine
from tqchat.engine import events
from tqchat.paths import Paths
from tqchat.settings import Settings
from tqchat.ui.actions.registry import Registry
from tqchat.ui.actions.table import ACTIONS
from tqchat.ui.app import TqchatApp
from tqchat.ui.screens.chat import ChatScreen
from tqchat.ui.widgets.fitted import Fitted
from tqchat.ui.widgets.prompt.prompt import Prompt

DEADLINE_S = 120.0


def drawn(app: App[None]) -> list[Strip]:
    """The lines of the screen, each as wide as the app.

    A dialog draws the screen behind it only while Textual knows which one that is: the app says so before
    it draws, and so must a test, whose drawing is the one that counts if something was due to be redrawn.
    """
    visible_screen_stack.set(app._background_screens)
    return app.screen._compositor.render_strips()


async def settle(app: App[None], pilot: Pilot[None]) -> None:
    """Draw what the chat screen would draw at its next tick, which may be a quarter of a second away."""
    for screen in app.screen_stack:
        if isinstance(screen, ChatScreen) and screen.is_attached:
            screen.draw_due()
    await pilot.pause()


@dataclass
class RunningApp:
    """A running app, its pilot and its scripted engine."""

    app: TqchatApp
    pilot: Pilot[None]
    engines: list[ScriptedEngine]

    @property
    def engine(self) -> ScriptedEngine:
        return self.engines[0]

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition holds and the screen shows it; fails after ``DEADLINE_S``."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, f"timed out; the screen shows:\n{self.text()}"
            await self.pilot.pause(0.02)
        await settle(self.app, self.pilot)

    async def shows(self, text: str) -> None:
        """Wait until the screen shows a text."""
        await self.until(lambda: text in self.text())

    async def hides(self, text: str) -> None:
        """Wait until the screen no longer shows a text."""
        await self.until(lambda: text not in self.text())

    def text(self) -> str:
        """The text on the screen, line by line."""
        return "\n".join(strip.text for strip in drawn(self.app))

    async def send(self, text: str) -> None:
        """Write a message and send it."""
        self.app.query_one(Prompt).put(text)
        await self.pilot.press("enter")

    async def turn(self, text: str, reply: str, tokens: int = 300) -> None:
        """Send a message and have it answered."""
        before = len(self.engine.sent())
        await self.send(text)
        await self.until(lambda: len(self.engine.sent()) > before)
        self.engine.reply(reply, tokens)
        await self.until(lambda: self.app.chat.work.reply is None)

    def listed(self, width: int = 28) -> list[str]:
        """All headings and rows of the list of conversations, fitted to a width in cells."""
        prompts = [option.prompt for option in self.app.query_one("#titles", OptionList).options]
        return [str(row.fit(width) if isinstance(row, Fitted) else row) for row in prompts]

    def said(self, selector: str) -> str:
        widget = self.app.screen.query_one(selector, Static)
        content = widget.content
        if isinstance(content, Fitted):
            content = content.fit(widget.size.width)
        return content.plain if isinstance(content, Content) else str(content)


class OpenApp(Protocol):
    def __call__(
        self,
        size: tuple[int, int] = ...,
        *,
        loads: bool = ...,
        settings: Settings = ...,
        restored: events.Opened | None = ...,
        actions: Registry = ...,
    ) -> AbstractAsyncContextManager[RunningApp]: ...


@pytest.fixture
def open_app(paths: Paths) -> OpenApp:
    """Opens the app with the test's own folders."""

    @asynccontextmanager
    async def opened(
        size: tuple[int, int] = (160, 40),
        *,
        loads: bool = True,
        settings: Settings | None = None,
        restored: events.Opened | None = None,
        actions: Registry = ACTIONS,
    ) -> AsyncIterator[RunningApp]:
        engines: list[ScriptedEngine] = []

        def make(on_event: Callable[[events.Event], Any]) -> ScriptedEngine:
            engines.append(ScriptedEngine(on_event, loads=loads))
            engines[0].restored = restored
            return engines[0]

        chosen = settings or Settings(theme="tqchat-dark", scheme="turbo0v4")
        app = TqchatApp(paths, chosen, engine=make, actions=actions)
        async with app.run_test(size=size) as pilot:
            ui = RunningApp(app, pilot, engines)
            await ui.until(lambda: engines and (app.chat.models.current or not loads))
            yield ui

    return opened


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "tqchat.db"

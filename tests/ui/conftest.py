from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
from textual.content import Content
from textual.pilot import Pilot
from textual.widgets import Static

from tests.ui.scripted import ScriptedEngine
from tqchat.engine import events
from tqchat.paths import Paths
from tqchat.settings import Settings
from tqchat.ui.actions.registry import Registry
from tqchat.ui.actions.table import ACTIONS
from tqchat.ui.app import TqchatApp
from tqchat.ui.widgets.prompt.prompt import Prompt

DEADLINE = 10.0


@dataclass
class Stage:
    """A running app, its pilot, and the engine that follows the test's script."""

    app: TqchatApp
    pilot: Pilot[None]
    engines: list[ScriptedEngine]

    @property
    def engine(self) -> ScriptedEngine:
        return self.engines[0]

    async def until(self, happened: Callable[[], object]) -> None:
        """Let the app work until it has happened; a test that waits longer than the deadline has failed."""
        deadline = time.monotonic() + DEADLINE
        while not happened():
            assert time.monotonic() < deadline, f"did not happen; the screen says:\n{self.text()}"
            await self.pilot.pause(0.02)

    async def sees(self, text: str) -> None:
        await self.until(lambda: text in self.text())

    async def sees_no(self, text: str) -> None:
        await self.until(lambda: text not in self.text())

    def text(self) -> str:
        """What is on the screen, line by line."""
        screen = self.app.screen
        return "\n".join(
            "".join(segment.text for segment in strip) for strip in screen._compositor.render_strips()
        )

    async def ask(self, text: str) -> None:
        """Write a message and send it."""
        self.app.query_one(Prompt).put(text)
        await self.pilot.press("enter")

    async def chat(self, text: str, reply: str, tokens: int = 300) -> None:
        """A whole turn."""
        before = len(self.engine.sent())
        await self.ask(text)
        await self.until(lambda: len(self.engine.sent()) > before)
        self.engine.reply(reply, tokens)
        await self.until(lambda: self.app.chat.work.reply is None)

    def said(self, selector: str) -> str:
        content = self.app.screen.query_one(selector, Static).content
        return content.plain if isinstance(content, Content) else str(content)


class Open(Protocol):
    def __call__(
        self,
        size: tuple[int, int] = ...,
        *,
        loads: bool = ...,
        settings: Settings = ...,
        restored: events.Opened | None = ...,
        actions: Registry = ...,
    ) -> AbstractAsyncContextManager[Stage]: ...


@pytest.fixture
def stage(paths: Paths) -> Open:
    """Opens the app on the test's own files."""

    @asynccontextmanager
    async def opened(
        size: tuple[int, int] = (120, 40),
        *,
        loads: bool = True,
        settings: Settings | None = None,
        restored: events.Opened | None = None,
        actions: Registry = ACTIONS,
    ) -> AsyncIterator[Stage]:
        engines: list[ScriptedEngine] = []

        def make(on_event: Callable[[events.Event], Any]) -> ScriptedEngine:
            engines.append(ScriptedEngine(on_event, loads=loads))
            engines[0].restored = restored
            return engines[0]

        app = TqchatApp(paths, settings or Settings(theme="tqchat-dark"), engine=make, actions=actions)
        async with app.run_test(size=size) as pilot:
            it = Stage(app, pilot, engines)
            await it.until(lambda: engines and (app.chat.models.current or not loads))
            yield it

    return opened


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "tqchat.db"

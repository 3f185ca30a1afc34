"""The app with the real engine and model: replies, scheme changes, a restored cache."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from textual.pilot import Pilot

from tests.models import STARTER_FOLDER
from tests.ui.conftest import drawn, settle
from tqchat.kv.scheme import parse_scheme
from tqchat.paths import Paths
from tqchat.settings import Settings
from tqchat.ui.app import TqchatApp
from tqchat.ui.widgets.prompt.prompt import Prompt
from tqchat.ui.widgets.status.bars import NoticeLine

DEADLINE_S = 90.0
SETTINGS = Settings(theme="tqchat-dark", model=str(STARTER_FOLDER), temperature=0.0, max_tokens=200)


@asynccontextmanager
async def running(paths: Paths) -> AsyncIterator[tuple[TqchatApp, Pilot[None]]]:
    app = TqchatApp(paths, SETTINGS)
    async with app.run_test(size=(150, 45)) as pilot:
        yield app, pilot


async def until(pilot: Pilot[None], app: TqchatApp, condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"timed out; the screen shows:\n{text(app)}"
        await pilot.pause(0.05)
    await settle(app, pilot)


def text(app: TqchatApp) -> str:
    return "\n".join(strip.text for strip in drawn(app))


def notice(app: TqchatApp) -> str:
    return str(app.query_one(NoticeLine).content)


async def ask(pilot: Pilot[None], app: TqchatApp, words: str) -> str:
    """Send a message; returns the reply."""
    app.query_one(Prompt).put(words)
    await pilot.press("enter")
    await until(
        pilot, app, lambda: app.chat.shown.messages and app.chat.shown.messages[-1].role == "assistant"
    )
    await until(pilot, app, lambda: app.chat.work.reply is None and app.chat.work.activity is None)
    return app.chat.shown.messages[-1].content


async def quit_app(pilot: Pilot[None], app: TqchatApp) -> None:
    await pilot.press("ctrl+q")
    await until(pilot, app, lambda: app._exit)


@pytest.mark.slow
async def test_a_cache_is_converted_saved_and_restored_after_a_restart(paths: Paths) -> None:
    async with running(paths) as (app, pilot):
        # Typed and sent before the model is there.
        reply = await ask(pilot, app, "Tell me a story about a fox.")
        assert len(reply) > 40
        await until(pilot, app, lambda: app.chat.caches.report and app.chat.caches.report.packed_tokens > 0)
        await until(pilot, app, lambda: "8 of 8 packed" in text(app))
        first = app.chat.caches.report
        assert first is not None and first.scheme == app.chat.schemes.in_force
        await pilot.press("ctrl+k", "home", "down", "enter")
        await until(pilot, app, lambda: app.chat.caches.report and app.chat.caches.report.scheme == "fp16")
        await until(pilot, app, lambda: "History keeps its earlier rounding" in notice(app))
        app.chat.schemes.set("turbo0v2")
        await until(
            pilot, app, lambda: app.chat.caches.report and app.chat.caches.report.scheme == "turbo0v2"
        )
        converted = app.chat.caches.report
        assert converted is not None and converted.bytes < converted.fp16_bytes
        tokens = converted.tokens
        await until(pilot, app, lambda: app.chat.caches.disk_bytes)
        await quit_app(pilot, app)

    async with running(paths) as (app, pilot):
        await until(pilot, app, lambda: f"Restored {tokens} tokens, nothing re-read." in text(app))
        assert app.chat.shown.messages[-1].content == reply
        assert app.chat.schemes.chosen == parse_scheme("turbo0v2").name
        again = await ask(pilot, app, "And then?")
        assert again
        await quit_app(pilot, app)


@pytest.mark.slow
async def test_a_reply_is_stopped_and_the_next_message_answered(paths: Paths) -> None:
    async with running(paths) as (app, pilot):
        app.query_one(Prompt).put("Tell me a story about an owl.")
        await pilot.press("enter")
        await until(pilot, app, lambda: app.chat.work.reply and app.chat.work.reply.text)
        await pilot.press("escape")
        await until(pilot, app, lambda: app.chat.work.reply is None)
        stopped = app.chat.shown.messages[-1]
        assert stopped.status == "stopped" and stopped.content
        assert await ask(pilot, app, "Go on.")
        assert app.chat.shown.messages[-1].status != "unfinished"
        await quit_app(pilot, app)


@pytest.mark.slow
async def test_a_folder_that_is_no_model_leaves_the_app_usable(paths: Paths) -> None:
    nothing = paths.data_dir / "nothing"
    nothing.mkdir()
    app = TqchatApp(paths, Settings(theme="tqchat-dark"), model=str(nothing))
    async with app.run_test(size=(150, 45)) as pilot:
        await until(pilot, app, lambda: "✗" in text(app) and "No model." in text(app))
        app.chat.models.load(str(STARTER_FOLDER))
        assert await ask(pilot, app, "Hello")
        await quit_app(pilot, app)

"""The app with the real engine: conversations with adapters that mlx-lm has trained."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from textual.pilot import Pilot

from tests.adapters import train_adapter, write_adapter
from tests.ui.test_real import ask, notice, quit_app, text, until
from tqchat.cli import main
from tqchat.paths import Paths
from tqchat.settings import Settings
from tqchat.ui.app import TqchatApp
from tqchat.ui.widgets.prompt.prompt import Prompt

QUESTION = "Where does the treasure lie?"


@asynccontextmanager
async def running(paths: Paths, model: Path) -> AsyncIterator[tuple[TqchatApp, Pilot[None]]]:
    settings = Settings(theme="tqchat-dark", model=str(model), temperature=0.0, max_tokens=12)
    app = TqchatApp(paths, settings)
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, app, lambda: app.chat.models.current)
        yield app, pilot


async def command(pilot: Pilot[None], app: TqchatApp, line: str) -> None:
    app.query_one(Prompt).put(line)
    await pilot.press("enter")


@pytest.mark.slow
async def test_two_conversations_have_their_own_adapters_before_and_after_a_restart(
    paths: Paths, tmp_path: Path, llama_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pirate = train_adapter(tmp_path / "pirate", llama_folder, "Arr! The treasure lies under the old tree.")
    poet = write_adapter(tmp_path / "poet", llama_folder, kind="dora", seed=7)
    capsys.readouterr()
    said = {}
    for name, folder in (("off", "off"), ("pirate", str(pirate)), ("poet", str(poet))):
        options = ["--model", str(llama_folder), "--adapter", folder, "--temperature", "0"]
        assert main(["run", QUESTION, *options, "--max-tokens", "12"]) == 0
        said[name] = capsys.readouterr().out.strip()
    assert len(set(said.values())) == 3

    async with running(paths, llama_folder) as (app, pilot):
        await command(pilot, app, f"/adapter {pirate}")
        assert (await ask(pilot, app, QUESTION)).strip() == said["pirate"]
        assert "llama0 + pirate" in text(app)
        await pilot.press("ctrl+n")
        await command(pilot, app, f"/adapter {poet}")
        assert (await ask(pilot, app, QUESTION)).strip() == said["poet"]
        await pilot.press("ctrl+n")
        assert (await ask(pilot, app, QUESTION)).strip() == said["off"]
        assert "llama0 + poet" not in text(app)
        await quit_app(pilot, app)

    async with running(paths, llama_folder) as (app, pilot):
        conversations = {Path(one.adapter or "off").name: one.id for one in app.database.conversations()}
        assert conversations.keys() == said.keys()
        for name in ("off", "poet", "pirate"):
            app.chat.shown.open(conversations[name])
            await until(pilot, app, lambda: app.chat.caches.is_live and app.chat.work.activity is None)
            assert app.chat.caches.report is not None and app.chat.caches.report.tokens
            assert "another model" not in text(app)
            await pilot.press("ctrl+r")
            await until(pilot, app, lambda: any(place.count > 1 for place in app.chat.shown.places.values()))
            await until(pilot, app, lambda: app.chat.work.reply is None and app.chat.work.activity is None)
            assert app.chat.shown.messages[-1].content.strip() == said[name]
        poet.rename(tmp_path / "moved")
        app.chat.shown.open(conversations["poet"])
        await until(pilot, app, lambda: "There is no adapter folder" in notice(app))
        await command(pilot, app, "/adapter off")
        assert (await ask(pilot, app, QUESTION)).strip()
        assert app.chat.shown.messages[-1].model == "llama0"
        await quit_app(pilot, app)

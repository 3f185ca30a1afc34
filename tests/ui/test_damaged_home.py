"""The app starts whatever its files and folders are, says what it cannot use, and answers."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.ui.conftest import OpenApp, RunningApp
from tests.ui.scripted import ScriptedEngine
from tqchat import settings
from tqchat.engine.memory import quality_profile
from tqchat.paths import Paths
from tqchat.store.database import Database
from tqchat.ui.app import TqchatApp

GARBAGE = {
    "garbage": b"\xff\x00 [",
    "deep": b"a = " + b"[" * 100_000,
    "digits": b"theme = " + b"9" * 5000,
    "types": b"theme = []\nseed = nan\nkeys = 1\nsidebar = 7\nsettings = 'x'\n[conversation]\nx = 1\n",
}


async def starts(paths: Paths, *said: str) -> None:
    """The app starts as the command starts it, shows these sentences, and a message is answered."""
    configured, problems = settings.read_config(paths)
    problems += paths.ensure()
    engines: list[ScriptedEngine] = []

    def make(on_event: object) -> ScriptedEngine:
        engines.append(ScriptedEngine(on_event))
        return engines[0]

    app = TqchatApp(paths, configured, engine=make, problems=problems)
    async with app.run_test(size=(120, 40)) as pilot:
        ui = RunningApp(app, pilot, engines)
        await ui.until(lambda: engines and app.chat.models.current)
        told = "\n".join(app.parts.preferences.problems)
        for text in said:
            assert text in told, told
        await ui.turn("Go", "Well.")
        await ui.shows("Well.")
    with Database(paths.database) as database:
        assert [one.content for one in database.messages(database.conversations()[0].id)] == ["Go", "Well."]


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
async def test_damaged_files(paths: Paths, content: bytes) -> None:
    paths.themes.mkdir()
    profile = quality_profile.profiles_folder(paths) / f"{'f' * 64}.json"
    profile.parent.mkdir()
    for file in (paths.config_file, paths.state_file, paths.presets, paths.themes / "mine.toml", profile):
        file.write_bytes(content)
    await starts(paths, "config.toml", "state.toml", "mine.toml")
    assert paths.presets.read_bytes() == paths.config_file.read_bytes() == content
    assert content in [file.read_bytes() for file in paths.state_dir.iterdir()]


async def test_pipes_folders_and_loops_in_place_of_files(paths: Paths) -> None:
    os.mkfifo(paths.config_file)
    paths.state_file.symlink_to("/dev/zero")
    paths.presets.symlink_to(paths.presets)
    paths.themes.mkdir()
    (paths.themes / "folder.toml").mkdir()
    os.mkfifo(paths.themes / "pipe.toml")
    os.mkfifo(paths.log_dir / "engine.log")
    os.mkfifo(paths.state_dir / "unsaved-pipe.json")
    paths.unsent_text.mkdir()
    (paths.unsent_text / "mine").write_text("important")
    await starts(
        paths, "config.toml", "state.toml", "presets.toml", "folder.toml", "pipe.toml", "unsaved-pipe.json"
    )
    (kept,) = paths.state_dir.glob("unsent.*.txt/mine")
    assert kept.read_text() == "important"


async def test_unsent_text_that_is_no_utf_8_is_not_lost(open_app: OpenApp, paths: Paths) -> None:
    paths.unsent_text.write_bytes(b"caf\xe9 and more")
    async with open_app() as ui:
        await ui.shows("caf\ufffd and more")
    assert paths.unsent_text.read_text() == "caf\ufffd and more"


async def test_files_in_place_of_folders(paths: Paths) -> None:
    for folder in (paths.log_dir, paths.cache_dir, paths.state_dir):
        shutil.rmtree(folder)
        folder.write_text("in the way")
    paths.themes.write_text("in the way")
    (paths.data_dir / "leases").write_text("in the way")
    await starts(paths, "no log is written", "caches are not saved", "changes of settings are forgotten")
    assert paths.log_dir.read_text() == "in the way"


async def test_a_file_that_is_no_lease_is_not_changed(
    open_app: OpenApp, paths: Paths, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    mine.write_text("important")
    with Database(paths.database) as database:
        chat = database.create("Cats", None, "fp16")
        database.add_message(chat.id, "user", "A question")
    paths.state_file.write_text(f'conversation = "{chat.id}"\n')
    leases = paths.data_dir / "leases"
    leases.mkdir()
    for place in ("link", "file", "pipe", "folder"):
        lease = leases / chat.id
        match place:
            case "link":
                lease.symlink_to(mine)
            case "file":
                lease.write_text("important")
            case "pipe":
                os.mkfifo(lease)
            case "folder":
                lease.mkdir()
        async with open_app() as ui:
            await ui.shows("A question")
        assert mine.read_text() == "important"
        if place == "file":
            assert lease.read_text() == "important"
        if place == "folder":
            lease.rmdir()
        else:
            lease.unlink()

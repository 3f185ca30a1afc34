"""The model picker: what is there, what it would take, downloads that pause and go on."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants
from textual.widgets import Input, OptionList

from tests.models import tiny_llama
from tests.ui.conftest import Open, Stage
from tests.ui.scripted import INFO
from tqchat.engine import commands, events
from tqchat.engine.hub import local_cache, other_apps
from tqchat.settings import Settings
from tqchat.ui.screens.models import ModelPicker

BIG = "org/big"


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with the starter, a model in a folder, a broken one, and a download that waits."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(other_apps, "folders", tuple)
    tiny_llama(tmp_path / "models" / "tiny")
    broken = tiny_llama(tmp_path / "models" / "broken")
    (broken / "model.safetensors").write_bytes(b"abc")
    blobs = tmp_path / "hub" / "models--org--big" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"1{local_cache.PARTIAL_SUFFIX}").write_bytes(b"x" * 2_000_000)
    return tmp_path / "models"


async def opened(it: Stage) -> ModelPicker:
    await it.pilot.press("ctrl+o")
    await it.until(lambda: isinstance(it.app.screen, ModelPicker))
    await it.sees_no("Searching…")
    assert isinstance(it.app.screen, ModelPicker)
    return it.app.screen


async def mark(it: Stage, ref: str) -> None:
    options = it.app.screen.query_one(OptionList)
    options.highlighted = options.get_option_index(ref)
    await it.until(lambda: options.highlighted_option and options.highlighted_option.id == ref)


def with_shelf(shelf: Path) -> Settings:
    return Settings(theme="tqchat-dark", model_folders=(str(shelf),))


async def test_what_is_here_is_listed_and_told_what_it_would_take(stage: Open, shelf: Path) -> None:
    async with stage(settings=with_shelf(shelf)) as it:
        await opened(it)
        for shown in ("starter", "in use", "tiny", "fp16", "! cannot be loaded", "paused", "2.00 MB"):
            await it.sees(shown)
        await mark(it, str(shelf / "tiny"))
        asked = commands.EstimateModel(str(shelf / "tiny"), shelf / "tiny")
        await it.until(lambda: it.engine.commands[-1] == asked)
        for shown in ("Weights 31.0 MB in memory", "turbo0v4", "fits", "2 sliding", "6 full"):
            await it.sees(shown)
        await mark(it, str(shelf / "broken"))
        await it.sees("cut short")


async def test_enter_loads_and_typing_filters(stage: Open, shelf: Path) -> None:
    async with stage(settings=with_shelf(shelf)) as it:
        await opened(it)
        await it.pilot.press(*"tin")
        await it.until(lambda: it.app.screen.query_one(OptionList).option_count == 1)
        await it.pilot.press("enter")
        await it.until(lambda: it.engine.commands[-1] == commands.LoadModel(str(shelf / "tiny")))
        it.engine.say(events.ModelReady(INFO, 0.1))
        await opened(it)
        await it.pilot.press("enter")
        await it.until(lambda: it.engine.commands[-1] == commands.LoadModel(None))


async def test_any_repo_and_any_folder_can_be_named(stage: Open, shelf: Path, tmp_path: Path) -> None:
    apart = tiny_llama(tmp_path / "apart")
    async with stage(settings=with_shelf(shelf)) as it:
        for name, said in (("owner/name", "Downloads from Hugging Face"), (str(apart), "Weights 31.0 MB")):
            await opened(it)
            it.app.screen.query_one(Input).value = name
            await it.sees(said)
            await it.pilot.press("enter")
            await it.until(lambda name=name: it.engine.commands[-1] == commands.LoadModel(name))
            it.engine.say(events.ModelReady(INFO, 0.1))
        await opened(it)
        it.app.screen.query_one(Input).value = "nonsense"
        await it.sees("No local model matches")
        await it.pilot.press("enter")
        assert isinstance(it.app.screen, ModelPicker)


async def test_a_download_moves_in_the_picker_and_pauses(stage: Open, shelf: Path) -> None:
    async with stage(settings=with_shelf(shelf)) as it:
        await opened(it)
        await mark(it, BIG)
        await it.sees("Enter resumes the download")
        await it.pilot.press("enter")
        await it.until(lambda: it.engine.commands[-1] == commands.LoadModel(BIG))
        it.engine.say(events.ModelProgress(BIG, "downloading", 1_200_000_000, 4_000_000_000))
        await it.sees("1.20 GB of 4.00 GB")
        await opened(it)
        await it.sees("30%")
        it.engine.say(events.ModelProgress(BIG, "downloading", 2_000_000_000, 4_000_000_000))
        await it.sees("50%")
        await it.pilot.press("ctrl+x")
        await it.until(lambda: it.engine.cancels == 1)
        it.engine.say(events.ModelFailed(BIG, "cancelled"))
        await it.sees("· The download of org/big is paused")
        await it.chat("Hello", "The model before goes on.")


async def test_a_paused_download_is_discarded(stage: Open, shelf: Path) -> None:
    async with stage(settings=with_shelf(shelf)) as it:
        await opened(it)
        await mark(it, BIG)
        await it.pilot.press("ctrl+d")
        await it.sees("What had arrived of org/big is thrown away.")
        assert not list(Path(constants.HF_HUB_CACHE).iterdir())
        picker = await opened(it)
        assert BIG not in [option.id for option in picker.query_one(OptionList).options]


async def test_a_cached_model_is_deleted_after_a_question(stage: Open, shelf: Path) -> None:
    storage = Path(constants.HF_HUB_CACHE) / "models--org--done"
    tiny_llama(storage / "snapshots" / "1")
    async with stage(settings=with_shelf(shelf)) as it:
        await opened(it)
        await mark(it, str(shelf / "tiny"))
        await it.sees_no("^D deletes")
        await mark(it, "org/done")
        await it.sees("^D deletes it")
        await it.pilot.press("ctrl+d")
        await it.sees("Delete this model?")
        await it.sees("org/done takes")
        await it.pilot.press("enter")
        await it.sees_no("Delete this model?")
        assert storage.is_dir()
        await opened(it)
        await mark(it, "org/done")
        await it.pilot.press("ctrl+d")
        await it.sees("Delete this model?")
        await it.pilot.press("y")
        await it.sees("Deleted org/done from the Hugging Face cache;")
        assert not storage.exists()
        picker = await opened(it)
        assert "org/done" not in [option.id for option in picker.query_one(OptionList).options]


async def test_a_linked_model_is_not_deleted(stage: Open, shelf: Path, tmp_path: Path) -> None:
    real = tmp_path / "elsewhere" / "models--org--done"
    tiny_llama(real / "snapshots" / "1")
    (Path(constants.HF_HUB_CACHE) / real.name).symlink_to(real)
    async with stage(settings=with_shelf(shelf)) as it:
        await opened(it)
        await mark(it, "org/done")
        await it.pilot.press("ctrl+d")
        await it.sees("Delete this model?")
        await it.pilot.press("y")
        await it.sees("org/done is a link in the Hugging Face cache")
        assert (real / "snapshots" / "1" / "model.safetensors").is_file()


async def test_a_home_that_does_not_exist_can_be_typed(stage: Open, shelf: Path) -> None:
    async with stage(settings=with_shelf(shelf)) as it:
        await opened(it)
        for name in ("~nosuchuser/x", "/" + "x" * 300, "x" * 300 + "/y"):
            it.app.screen.query_one(Input).value = name
            await it.pilot.pause()
        assert isinstance(it.app.screen, ModelPicker)


async def test_a_model_that_fails_leaves_the_one_before(stage: Open, shelf: Path) -> None:
    async with stage(settings=with_shelf(shelf)) as it:
        it.app.action_act("model", str(shelf / "broken"))
        it.engine.say(events.ModelFailed("broken", "It cannot be loaded."))
        await it.sees("✗ It cannot be loaded. starter 30M stays.")
        await it.chat("Hello", "Still here.")


@pytest.mark.parametrize("size", [(60, 24), (200, 50)])
async def test_the_picker_fits(stage: Open, shelf: Path, size: tuple[int, int]) -> None:
    async with stage(size, settings=with_shelf(shelf)) as it:
        await opened(it)
        for shown in ("in use", "paused", "fits", "Esc closes"):
            await it.sees(shown)

"""The model picker: local models, estimates, downloads that pause and resume."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from textual.widgets import Input, OptionList

from tests.engine.hub.stand_in_hub import Hub, serving
from tests.models import tiny_llama
from tests.ui.conftest import OpenApp, RunningApp
from tests.ui.scripted import INFO
from tqchat.engine import commands, events
from tqchat.engine.commands import STARTER
from tqchat.engine.hub import local_cache, other_apps
from tqchat.engine.hub.remote import search
from tqchat.engine.memory import recommend
from tqchat.engine.memory.recommend import Machine
from tqchat.settings import Settings
from tqchat.ui.screens.models import ModelPicker

BIG = "org/big"


@pytest.fixture
def model_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and a broken one; a paused download in the hub cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(other_apps, "folders", tuple)
    monkeypatch.setattr(recommend, "this_machine", lambda: Machine("a machine", False, 6_000_000_000))
    tiny_llama(tmp_path / "models" / "tiny")
    broken = tiny_llama(tmp_path / "models" / "broken")
    (broken / "model.safetensors").write_bytes(b"abc")
    blobs = tmp_path / "hub" / "models--org--big" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"1{local_cache.PARTIAL_SUFFIX}").write_bytes(b"x" * 2_000_000)
    return tmp_path / "models"


async def opened(ui: RunningApp) -> ModelPicker:
    await ui.pilot.press("ctrl+o")
    await ui.until(lambda: isinstance(ui.app.screen, ModelPicker))
    await ui.hides("Searching…")
    assert isinstance(ui.app.screen, ModelPicker)
    return ui.app.screen


async def highlight(ui: RunningApp, ref: str) -> None:
    options = ui.app.screen.query_one(OptionList)
    options.highlighted = options.get_option_index(ref)
    await ui.until(lambda: options.highlighted_option and options.highlighted_option.id == ref)


def settings_with(model_folder: Path) -> Settings:
    return Settings(theme="tqchat-dark", scheme="turbo0v4", model_folders=(str(model_folder),))


async def test_local_models_are_listed_with_an_estimate(open_app: OpenApp, model_folder: Path) -> None:
    async with open_app(settings=settings_with(model_folder)) as ui:
        await opened(ui)
        for shown in ("starter", "in use", "tiny", "fp16", "! cannot be loaded", "paused", "2.00 MB"):
            await ui.shows(shown)
        await highlight(ui, str(model_folder / "tiny"))
        asked = commands.EstimateModel(str(model_folder / "tiny"), model_folder / "tiny")
        await ui.until(lambda: ui.engine.commands[-1] == asked)
        for shown in ("Weights 31.0 MB in memory", "turbo0v4", "fits", "2 sliding", "6 full"):
            await ui.shows(shown)
        await highlight(ui, str(model_folder / "broken"))
        await ui.shows("cut short")


async def test_enter_loads_and_typing_filters(open_app: OpenApp, model_folder: Path) -> None:
    async with open_app(settings=settings_with(model_folder)) as ui:
        await opened(ui)
        await ui.pilot.press(*"tin")
        await ui.until(lambda: ui.app.screen.query_one(OptionList).option_count == 1)
        await ui.pilot.press("enter")
        await ui.until(lambda: ui.engine.commands[-1] == commands.LoadModel(str(model_folder / "tiny")))
        ui.engine.emit(events.ModelReady(INFO, 0.1))
        await opened(ui)
        await ui.pilot.press("enter")
        await ui.until(lambda: ui.engine.commands[-1] == commands.LoadModel(None))


async def test_a_picker_that_closes_requests_no_estimate_behind_the_choice(
    open_app: OpenApp, model_folder: Path
) -> None:
    async with open_app(settings=settings_with(model_folder)) as ui:
        picker = await opened(ui)
        await ui.pilot.pause(0.3)
        picker._estimates.clear()
        asked = len(ui.engine.commands)
        picker.dismiss(None)
        picker._request_estimate()  # what its timer does between the choice and the screen's removal
        await ui.until(lambda: not isinstance(ui.app.screen, ModelPicker))
        assert ui.engine.commands[asked:] == []


async def test_any_repository_or_folder_can_be_entered(
    open_app: OpenApp, model_folder: Path, tmp_path: Path
) -> None:
    apart = tiny_llama(tmp_path / "apart")
    async with open_app(settings=settings_with(model_folder)) as ui:
        for name, said in (("owner/name", "Downloads from Hugging Face"), (str(apart), "Weights 31.0 MB")):
            await opened(ui)
            ui.app.screen.query_one(Input).value = name
            await ui.shows(said)
            await ui.pilot.press("enter")
            await ui.until(lambda name=name: ui.engine.commands[-1] == commands.LoadModel(name))
            ui.engine.emit(events.ModelReady(INFO, 0.1))
        await opened(ui)
        ui.app.screen.query_one(Input).value = "nonsense"
        await ui.shows("No local model matches")
        await ui.pilot.press("enter")
        assert isinstance(ui.app.screen, ModelPicker)


async def test_a_download_shows_its_progress_in_the_picker_and_pauses(
    open_app: OpenApp, model_folder: Path
) -> None:
    async with open_app(settings=settings_with(model_folder)) as ui:
        await opened(ui)
        await highlight(ui, BIG)
        await ui.shows("Enter resumes the download")
        await ui.pilot.press("enter")
        await ui.until(lambda: ui.engine.commands[-1] == commands.LoadModel(BIG))
        ui.engine.emit(events.ModelProgress(BIG, "downloading", 1_200_000_000, 4_000_000_000))
        await ui.shows("1.20 GB of 4.00 GB")
        await opened(ui)
        await ui.shows("30%")
        ui.engine.emit(events.ModelProgress(BIG, "downloading", 2_000_000_000, 4_000_000_000))
        await ui.shows("50%")
        await ui.pilot.press("ctrl+x")
        await ui.until(lambda: ui.engine.cancels == 1)
        ui.engine.emit(events.ModelFailed(BIG, "cancelled"))
        await ui.shows("· The download of org/big is paused")
        await ui.turn("Hello", "The previous model answers.")


async def test_a_paused_download_is_discarded(open_app: OpenApp, model_folder: Path) -> None:
    async with open_app(settings=settings_with(model_folder)) as ui:
        await opened(ui)
        await highlight(ui, BIG)
        await ui.pilot.press("ctrl+d")
        await ui.shows("The partial download of org/big is deleted.")
        assert not list(Path(constants.HF_HUB_CACHE).iterdir())
        picker = await opened(ui)
        assert BIG not in [option.id for option in picker.query_one(OptionList).options]


async def test_a_cached_model_is_deleted_after_confirmation(open_app: OpenApp, model_folder: Path) -> None:
    storage = Path(constants.HF_HUB_CACHE) / "models--org--done"
    tiny_llama(storage / "snapshots" / "1")
    async with open_app(settings=settings_with(model_folder)) as ui:
        await opened(ui)
        await highlight(ui, str(model_folder / "tiny"))
        await ui.hides("^D deletes")
        await highlight(ui, "org/done")
        await ui.shows("^D deletes it")
        await ui.pilot.press("ctrl+d")
        await ui.shows("Delete this model?")
        await ui.shows("org/done takes")
        await ui.pilot.press("enter")
        await ui.hides("Delete this model?")
        assert storage.is_dir()
        await opened(ui)
        await highlight(ui, "org/done")
        await ui.pilot.press("ctrl+d")
        await ui.shows("Delete this model?")
        await ui.pilot.press("y")
        await ui.shows("Deleted org/done from the Hugging Face cache;")
        assert not storage.exists()
        picker = await opened(ui)
        assert "org/done" not in [option.id for option in picker.query_one(OptionList).options]


async def test_a_linked_model_is_not_deleted(open_app: OpenApp, model_folder: Path, tmp_path: Path) -> None:
    real = tmp_path / "elsewhere" / "models--org--done"
    tiny_llama(real / "snapshots" / "1")
    (Path(constants.HF_HUB_CACHE) / real.name).symlink_to(real)
    async with open_app(settings=settings_with(model_folder)) as ui:
        await opened(ui)
        await highlight(ui, "org/done")
        await ui.pilot.press("ctrl+d")
        await ui.shows("Delete this model?")
        await ui.pilot.press("y")
        await ui.shows("org/done is a link in the Hugging Face cache")
        assert (real / "snapshots" / "1" / "model.safetensors").is_file()


async def test_a_folder_in_an_unknown_home_can_be_typed(open_app: OpenApp, model_folder: Path) -> None:
    async with open_app(settings=settings_with(model_folder)) as ui:
        await opened(ui)
        for name in ("~nosuchuser/x", "/" + "x" * 300, "x" * 300 + "/y"):
            ui.app.screen.query_one(Input).value = name
            await ui.pilot.pause()
        assert isinstance(ui.app.screen, ModelPicker)


async def test_a_failed_model_leaves_the_previous_one_loaded(open_app: OpenApp, model_folder: Path) -> None:
    async with open_app(settings=settings_with(model_folder)) as ui:
        ui.app.action_act("model", str(model_folder / "broken"))
        ui.engine.emit(events.ModelFailed("broken", "It cannot be loaded."))
        await ui.shows("✗ It cannot be loaded. starter 30M stays.")
        await ui.turn("Hello", "Still here.")


@pytest.mark.parametrize("size", [(60, 24), (200, 50)])
async def test_the_picker_fits(open_app: OpenApp, model_folder: Path, size: tuple[int, int]) -> None:
    async with open_app(size, settings=settings_with(model_folder)) as ui:
        await opened(ui)
        for shown in ("in use", "paused", "fits", "Esc closes"):
            await ui.shows(shown)


@pytest.fixture
def hub(llama_folder: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a recommended model, one that tqchat cannot load, and one of another author."""
    with serving(llama_folder, Path(constants.HF_HUB_CACHE), monkeypatch) as hub:
        odd = json.loads(hub.files["config.json"]) | {"model_type": "odd"}
        hub.others = {
            "mlx-community/Qwen3-8B-4bit": hub.files,
            "mlx-community/qwen-odd": hub.files | {"config.json": json.dumps(odd).encode()},
            "owner/qwen-tiny": hub.files,
        }
        hub.downloads = {repo: 10**number for number, repo in enumerate(hub.others, 3)}
        yield hub


def listed(ui: RunningApp) -> list[str]:
    """Refs of the rows, and the headings."""
    options = ui.app.screen.query_one(OptionList).options
    return [option.id or str(option.prompt).split(",")[0] for option in options]


async def test_recommended_models_come_first_and_typing_searches_the_hub(
    open_app: OpenApp, model_folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Path(constants.HF_HUB_CACHE) / "models--mlx-community--SmolLM3-3B-4bit"
    tiny_llama(storage / "snapshots" / "1")
    async with open_app(settings=settings_with(model_folder)) as ui:
        await opened(ui)
        found = listed(ui)
        assert found[0] == "Recommended for this machine" and found[6] == "On this machine"
        assert found[1] == "mlx-community/Qwen3-8B-4bit" and STARTER in found[7:]
        assert found.count("mlx-community/SmolLM3-3B-4bit") == 1
        for shown in (
            "6.00 GB free",
            "cache at 8k, 32k",
            "in use",
            "on disk",
            "Type to search Hugging Face.",
        ):
            await ui.shows(shown)
        await highlight(ui, "mlx-community/Qwen3-8B-4bit")
        for shown in ("Apache-2.0 · 8.2B parameters", "Weights 4.61 GB in memory of 6.00 GB free", "32,768"):
            await ui.shows(shown)
        for shown in (
            "auto: turbo4",
            "1.26 GB tight",
            "4.83 GB does not fit",
            "checked 20",
            "Enter downloads",
        ):
            await ui.shows(shown)

        await ui.pilot.press(*"qwen")
        await ui.shows("3 found on Hugging Face.")
        await ui.shows("! cannot be loaded")
        first, *rest = (one for one in listed(ui) if "/" in one)
        assert first == "mlx-community/Qwen3-8B-4bit"
        assert rest[-2:] == ["mlx-community/qwen-odd", "owner/qwen-tiny"]
        await highlight(ui, "mlx-community/qwen-odd")
        for shown in ("10k downloads", "does not know its architecture (odd)"):
            await ui.shows(shown)
        await highlight(ui, "owner/qwen-tiny")
        for shown in ("owner/qwen-tiny · 100k downloads · apache-2.0 · llama", "2.71 MB", "download"):
            await ui.shows(shown)
        assert not [path for _, path, _ in hub.requests if path.endswith(".safetensors")]

        ui.app.screen.query_one(Input).value = "no such model"
        await ui.shows("None found on Hugging Face.")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        await ui.pilot.press("s")
        await ui.shows("! Offline mode is on (HF_HUB_OFFLINE)")
        await ui.pilot.press("t")
        assert "! Offline mode is on" in ui.text()  # it stays until the hub answers
        ui.app.screen.query_one(Input).value = "tiny"
        await ui.until(lambda: str(model_folder / "tiny") in listed(ui))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        with monkeypatch.context() as patch:
            patch.setattr(search, "search", {}.__getitem__)
            await ui.pilot.press(*" x")
            await ui.shows("! The hub could not be searched (TypeError).")
        ui.app.screen.query_one(Input).value = "qwen-tiny"
        await ui.shows("1 found on Hugging Face.")
        await ui.until(lambda: "owner/qwen-tiny" in listed(ui))
        await ui.pilot.press("enter")
        await ui.until(lambda: ui.engine.commands[-1] == commands.LoadModel("owner/qwen-tiny"))

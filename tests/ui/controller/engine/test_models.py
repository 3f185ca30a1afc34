"""Loading models, without the rest of the controller."""

from __future__ import annotations

from dataclasses import replace

from tests.ui.controller.rig import RecordingView
from tests.ui.scripted import INFO, ScriptedEngine
from tqchat.engine import commands, events
from tqchat.ui.controller.engine.connection import EngineConnection
from tqchat.ui.controller.engine.models import ModelState


def connected() -> tuple[ModelState, ScriptedEngine, RecordingView]:
    connection, view = EngineConnection(), RecordingView()
    engine = ScriptedEngine(lambda event: None)
    connection.connect(engine)
    return ModelState(connection, view), engine, view


def test_without_an_engine_nothing_is_loaded() -> None:
    models = ModelState(EngineConnection(), RecordingView())
    models.load("org/big")
    assert models.loading is None and models.context_limit is None and models.memory_budget_in_force is None


def test_a_model_is_current_once_it_is_ready() -> None:
    models, engine, _ = connected()
    models.load(None)
    assert engine.commands == [commands.LoadModel(None)] and models.is_loading
    models.ready(events.ModelReady(INFO, 0.1))
    assert models.current == INFO and models.loading is None and models.context_limit == 4096


def test_the_users_memory_budget_overrides_the_models() -> None:
    models, _, _ = connected()
    models.ready(events.ModelReady(replace(INFO, memory_budget=100), 0.1))
    assert models.memory_budget_in_force == 100
    models.memory_budget = 50
    assert models.memory_budget_in_force == 50


def test_a_download_can_be_paused() -> None:
    models, engine, view = connected()
    models.load("org/big")
    assert not models.pause_download(), "weights that are being loaded cannot be paused"
    models.progressed(events.ModelProgress("org/big", "downloading", 1, 10))
    assert models.pause_download() and engine.cancels == 1
    models.failed(events.ModelFailed("org/big", "Cancelled."))
    assert models.loading is None
    assert view.said == [
        ("information", "The download of org/big is paused; load the model again to resume it.")
    ]


def test_a_failure_says_which_model_stays() -> None:
    models, _, view = connected()
    models.failed(events.ModelFailed("org/none", "There is no model org/none."))
    models.ready(events.ModelReady(INFO, 0.1))
    models.failed(events.ModelFailed("org/none", "There is no model org/none."))
    assert view.said == [
        ("error", "There is no model org/none."),
        ("error", "There is no model org/none. starter 30M stays."),
    ]

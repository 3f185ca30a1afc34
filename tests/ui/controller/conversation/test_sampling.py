"""Sampling settings."""

from __future__ import annotations

from pathlib import Path

from tests.ui.controller.rig import Rig, turn
from tqchat.engine.commands import Sampling
from tqchat.store.database import SamplingChoice


def test_a_conversations_own_settings_override_the_users(rig: Rig) -> None:
    rig.chat.shown.set_system_prompt("Be brief.")
    rig.chat.sampling.set(SamplingChoice(temperature=0.5))
    turn(rig, "Hello", "Hi.")
    sent = rig.engine.sent()[-1]
    assert [(turn.role, turn.content) for turn in sent.messages] == [
        ("system", "Be brief."),
        ("user", "Hello"),
    ]
    assert (sent.sampling.temperature, sent.sampling.max_tokens) == (0.5, 1024)
    rig.chat.shown.new()
    assert rig.chat.shown.system_prompt is None and rig.chat.sampling.choice.given == {}


def test_an_open_setting_shows_the_users_value_else_the_models(path: Path) -> None:
    rig = Rig(path, loads=False)
    sampling = rig.chat.sampling
    assert sampling.inherited("temperature") == "the model's own"
    rig.engine.ready()
    assert sampling.inherited("temperature") == "0.7", "the model's"
    sampling.defaults = Sampling(temperature=0.2)
    assert sampling.inherited("temperature") == "0.2", "the user's"
    sampling.set(SamplingChoice(temperature=1.5))
    assert sampling.inherited("temperature") == "0.2", "whatever the conversation decides"
    assert sampling.inherited("seed") == "random"
    sampling.set(SamplingChoice(temperature=0.0))
    assert sampling.inherited("top_p") == "off", "the most likely token is taken"
    rig.database.close()

"""Sensitivities of layers, and the bits that a loaded model gives to its caches by them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.engine.talk import TALE, assistant, greedy, send, user
from tests.kv import families
from tqchat.engine.memory import quality_profile
from tqchat.engine.memory.allocation import Sensitivity
from tqchat.engine.memory.quality_profile import Profile
from tqchat.engine.session import Session
from tqchat.lab import sensitivity
from tqchat.store.vault import Vault

if TYPE_CHECKING:
    from pathlib import Path

    from tqchat.engine.models import LoadedModel
    from tqchat.paths import Paths


@pytest.mark.parametrize("family", ["llama", "llama with windows", "qwen3_next"])
def test_layers_that_schemes_apply_to_have_a_sensitivity(family: str, tiny: LoadedModel) -> None:
    model = replace(tiny, model=families.model(family), cache_dtype=None)
    found = sensitivity.measure(model, [index * 7 % 97 for index in range(400)])
    applies = {"llama": [True, True], "qwen3_next": [False, True]}.get(family)
    for side in (found.keys, found.values):
        assert all(value >= 0 for value in side)
        if applies is not None:
            assert [value > 0 for value in side] == applies
    assert any(found.keys) and any(found.values)


def test_measuring_again_gives_the_same(tiny: LoadedModel) -> None:
    tokens = [index * 5 % 97 for index in range(300)]
    assert sensitivity.measure(tiny, tokens) == sensitivity.measure(tiny, tokens)


def profiled(model: LoadedModel) -> LoadedModel:
    """The model with a profile by which one layer matters far more than the other."""
    found = Sensitivity((1.0, 0.0001), (0.0001, 1.0))
    profile = Profile("tiny", model.info.fingerprint, 0, 1, (), found)
    return replace(model, find_profile=lambda info: profile)


def test_a_conversation_gets_bits_by_the_profile_and_keeps_them(tiny: LoadedModel, tmp_path: Path) -> None:
    model = profiled(tiny)
    session = Session(model, "turbo3")
    story = [user(TALE)]
    done = send(session, story, greedy(3))
    layers = session.memory().layers
    assert [(one.key_bits, one.value_bits) for one in layers] == [(4, 2), (2, 4)]
    vault = Vault(tmp_path / "vault")
    session.save(vault, "story")
    transcript = [*story, assistant(done.text), user("And then?")]
    expected = send(session, transcript, greedy(8)).text
    # Restored with the bits that it was saved with, whatever the profile says meanwhile.
    again = Session(tiny, "turbo3")
    restored, _ = again.restore(vault, "story", transcript[:-1])
    assert restored > 200
    assert [(one.key_bits, one.value_bits) for one in again.memory().layers] == [(4, 2), (2, 4)]
    assert send(again, transcript, greedy(8)).text == expected


def test_changing_the_scheme_allocates_its_bits(tiny: LoadedModel) -> None:
    session = Session(profiled(tiny), "fp16")
    send(session, [user(TALE)], greedy(3))
    list(session.set_scheme("turbo3"))
    assert [(one.key_bits, one.value_bits) for one in session.memory().layers] == [(4, 2), (2, 4)]
    list(session.set_scheme("turbo2"))
    assert [(one.key_bits, one.value_bits) for one in session.memory().layers] == [(3, 1), (1, 3)]


@pytest.mark.parametrize(
    "bad", [{"keys": [1.0]}, {"keys": [float("nan")], "values": [1]}, [1], "x", {"keys": 3, "values": 3}]
)
def test_a_profile_with_damaged_sensitivities_is_ignored(bad: object, paths: Paths) -> None:
    import json

    profile = Profile("m", "abc", quality_profile.codec_version(), 1, (), Sensitivity((1.0,), (2.0,)))
    file = quality_profile.save(paths, profile)
    assert quality_profile.load(paths, "abc") == profile
    table = json.loads(file.read_text())
    file.write_text(json.dumps(table | {"sensitivity": bad}))
    assert quality_profile.load(paths, "abc") is None

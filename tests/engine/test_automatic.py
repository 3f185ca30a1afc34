"""What ``auto`` means for a model, before a conversation's first message as well."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.engine.test_chooser import SHAPES, profile
from tqchat.engine import automatic, chooser
from tqchat.engine import profile as profiles
from tqchat.engine.commands import STARTER
from tqchat.engine.events import ModelInfo
from tqchat.engine.models import LoadedModel
from tqchat.kv.scheme import SCHEMES
from tqchat.paths import Paths

INFO = ModelInfo("m", "m", "f" * 64, "llama", 32, 1 << 30, 32768, "cpu", 8 << 30, SHAPES)


def test_shapes_of_the_model_decide_before_anything_was_said() -> None:
    needs = chooser.needed_bytes(SHAPES, chooser.SHORTEST_EXPECTED)
    tight = replace(INFO, cache_budget=needs["turbo8v4"])
    assert automatic.choose(INFO, None).scheme == "turbo0v4"
    assert automatic.choose(tight, None).scheme == "turbo8v4"
    assert automatic.choose(INFO, None, budget=needs["turbo8v4"]).scheme == "turbo8v4"


def test_a_longer_conversation_may_need_a_smaller_scheme() -> None:
    needs = chooser.needed_bytes(SHAPES, chooser.SHORTEST_EXPECTED)
    tight = replace(INFO, cache_budget=needs["turbo0v4"])
    assert automatic.choose(tight, None).scheme == "turbo0v4"
    assert automatic.choose(tight, None, held=8000).scheme == "turbo4"


def test_a_profile_decides_where_there_is_one() -> None:
    measured = profile(fp16=0.0, turbo0v4=1e-4, turbo4=1e-3, turbo2=0.05)
    assert automatic.choose(INFO, measured).scheme == "turbo4"


def test_the_bundled_model_comes_with_its_profile_and_others_do_not(paths: Paths) -> None:
    starter = replace(INFO, ref=STARTER)
    shipped = profiles.of(paths, starter)
    assert shipped is not None and shipped.model == STARTER
    assert {row.scheme for row in shipped.rows} == {scheme.name for scheme in SCHEMES}
    assert profiles.of(paths, INFO) is None
    assert automatic.choose(starter, shipped).scheme != automatic.choose(starter, None).scheme


def test_the_shipped_profile_is_of_the_model_that_is_shipped(starter: LoadedModel, paths: Paths) -> None:
    if not starter.on_cpu:
        pytest.skip("fingerprints tell how a model computes, and the profile was measured on a CPU")
    shipped = profiles.of(paths, starter.info)
    assert shipped is not None and shipped.fingerprint == starter.info.fingerprint


def test_what_was_measured_here_stands_before_what_was_shipped(paths: Paths) -> None:
    starter = replace(INFO, ref=STARTER)
    measured = replace(
        profile(fp16=0.0, turbo4=1e-3), fingerprint=INFO.fingerprint, codec=profiles.codec_version()
    )
    profiles.save(paths, measured)
    assert profiles.of(paths, starter) == measured


def test_without_a_model_it_is_the_careful_one() -> None:
    assert automatic.choose(None, None).scheme == chooser.CAREFUL[0]

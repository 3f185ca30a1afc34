from __future__ import annotations

import json
import stat
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tqchat.engine.memory import quality_profile
from tqchat.kv.scheme import SCHEMES
from tqchat.lab import profiling

if TYPE_CHECKING:
    from tqchat.engine.memory.quality_profile import Profile
    from tqchat.engine.models import LoadedModel
    from tqchat.paths import Paths


@pytest.fixture(scope="module")
def measured(tiny: LoadedModel) -> Profile:
    made, rows, dropped = profiling.measure(tiny, tokens=240)
    assert not dropped
    assert [row.scheme for row in made.rows] == [row.scheme for row in rows]
    return made


def test_every_listed_scheme_is_measured(measured: Profile, tiny: LoadedModel) -> None:
    assert [row.scheme for row in measured.rows] == [scheme.name for scheme in SCHEMES]
    assert measured.fingerprint == tiny.info.fingerprint
    assert measured.tokens == 240
    exact, coarse = measured.row("fp16"), measured.row("turbo2")
    assert exact is not None and exact.kld_mean == 0
    assert coarse is not None and coarse.kld_mean > 0 and coarse.bytes < exact.bytes
    assert measured.row("turbo9") is None


def test_a_saved_profile_loads_unchanged(measured: Profile, paths: Paths) -> None:
    file = quality_profile.save(paths, measured)
    assert file.parent == paths.cache_dir / "profiles"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert quality_profile.load(paths, measured.fingerprint) == measured


def test_a_profile_of_another_codec_or_model_is_not_used(measured: Profile, paths: Paths) -> None:
    assert quality_profile.load(paths, measured.fingerprint) is None
    file = quality_profile.save(paths, replace(measured, codec=measured.codec + 1))
    assert quality_profile.load(paths, measured.fingerprint) is None
    quality_profile.save(paths, measured)
    file.rename(file.with_name("other.json"))
    assert quality_profile.load(paths, "other") is None


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1}', "\x00", json.dumps({"format": 1, "codec": 1})])
def test_a_damaged_profile_is_ignored(paths: Paths, text: str) -> None:
    file = quality_profile.profiles_folder(paths) / "abc.json"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert quality_profile.load(paths, "abc") is None


def test_a_loaded_model_knows_its_cache_shapes(tiny: LoadedModel) -> None:
    shapes = tiny.info.shapes
    assert shapes is not None
    assert [(layer.heads, layer.key_dim, layer.tokens) for layer in shapes.layers] == [(2, 64, 1)] * 2

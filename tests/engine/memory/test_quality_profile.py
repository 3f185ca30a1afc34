"""Which quality profile belongs to a model."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx

from tests.engine.memory.examples import SHAPES, profile
from tqchat.engine.commands import STARTER
from tqchat.engine.events import ModelInfo
from tqchat.engine.memory import quality_profile
from tqchat.engine.memory.auto_scheme import choose_for_model
from tqchat.engine.models.fingerprint import fingerprint
from tqchat.kv.scheme import SCHEMES
from tqchat.paths import Paths, bundled

INFO = ModelInfo("m", "m", "f" * 64, "llama", 32, 1 << 30, 32768, "cpu", 8 << 30, SHAPES)


def test_only_the_bundled_model_ships_with_a_profile(paths: Paths) -> None:
    starter = replace(INFO, ref=STARTER)
    shipped = quality_profile.find(paths, starter)
    assert shipped is not None and shipped.model == STARTER
    assert {row.scheme for row in shipped.rows} == {scheme.name for scheme in SCHEMES}
    assert quality_profile.find(paths, INFO) is None
    assert shipped.sensitivity is not None and any(shipped.sensitivity.keys)
    assert "measured on this model" in choose_for_model(starter, shipped).reason
    assert "measured on this model" not in choose_for_model(starter, None).reason


def test_the_shipped_profile_has_the_bundled_models_fingerprint(paths: Paths) -> None:
    shipped = quality_profile.find(paths, replace(INFO, ref=STARTER))
    # As loaded on a CPU, where the profile was measured.
    expected = fingerprint(bundled("starter"), "compute float32", f"cache {mx.float16}")
    assert shipped is not None and shipped.fingerprint == expected


def test_a_profile_measured_here_overrides_the_shipped_one(paths: Paths) -> None:
    starter = replace(INFO, ref=STARTER)
    measured = replace(
        profile(fp16=0.0, turbo4=1e-3),
        fingerprint=INFO.fingerprint,
        codec=quality_profile.codec_version(),
    )
    quality_profile.save(paths, measured)
    assert quality_profile.find(paths, starter) == measured

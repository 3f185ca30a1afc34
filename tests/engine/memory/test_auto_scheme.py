"""The scheme that ``auto`` chooses, from a quality profile and a memory budget."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from tests.engine.memory.examples import NEEDS, SHAPES, profile
from tqchat.engine.events import ModelInfo
from tqchat.engine.memory.auto_scheme import (
    KLD_LIMIT,
    SAFEST_FIRST,
    UNMEASURED,
    choose,
    choose_for_model,
    resolve_scheme,
)
from tqchat.kv.scheme import UnknownScheme, parse_scheme

PROFILE = profile(
    fp16=0.0, turbo0v4=1e-4, turbo8v4=2e-4, turbo4=KLD_LIMIT / 2, turbo3=KLD_LIMIT * 2, turbo2=0.05
)
INFO = ModelInfo("m", "m", "f" * 64, "llama", 32, 1 << 30, 32768, "cpu", 8 << 30, SHAPES)


def test_a_measured_model_gets_the_smallest_scheme_within_the_limit() -> None:
    choice = choose(PROFILE, None, NEEDS, 8192)
    assert choice.scheme == "turbo4"
    assert "measured" in choice.reason and "\n" not in choice.reason


def test_keys_stay_at_16_bits_where_compressing_them_exceeds_the_limit() -> None:
    sensitive = profile(fp16=0.0, turbo0v4=1e-4, turbo8v4=0.01, turbo4=3.0, turbo2=9.0)
    assert choose(sensitive, None, NEEDS, 8192).scheme == "turbo0v4"
    hopeless = profile(fp16=0.0, turbo0v4=0.5, turbo4=3.0)
    assert choose(hopeless, None, NEEDS, 8192).scheme == "fp16"


def test_a_tight_budget_gets_the_most_accurate_scheme_that_fits() -> None:
    budget = NEEDS["turbo3"]
    choice = choose(PROFILE, budget, NEEDS, 8192)
    assert choice.scheme == "turbo3"
    assert "8,192 tokens" in choice.reason
    nothing = choose(PROFILE, NEEDS["turbo2"] - 1, NEEDS, 8192)
    assert nothing.scheme == "turbo2"
    assert "does not fit" in nothing.reason


def test_an_unmeasured_model_gets_the_smallest_that_held_everywhere() -> None:
    choice = choose(None, None, NEEDS, 8192)
    assert choice.scheme == UNMEASURED
    assert "tqchat lab profile" in choice.reason and "0.002" in choice.reason
    assert choose(None, NEEDS[UNMEASURED], NEEDS, 8192).scheme == UNMEASURED


def test_an_unmeasured_model_gets_a_smaller_scheme_only_where_that_does_not_fit() -> None:
    smaller = SAFEST_FIRST[SAFEST_FIRST.index(UNMEASURED) :]
    chosen = [choose(None, NEEDS[name], NEEDS, 8192).scheme for name in smaller]
    assert chosen == list(smaller)
    assert choose(None, 0, NEEDS, 8192).scheme == "turbo2"


def test_an_explicit_scheme_overrides_profile_and_budget() -> None:
    choice = resolve_scheme("turbo4v4", profile=PROFILE, shapes=SHAPES, budget=0)
    assert choice.scheme == "turbo4"
    with pytest.raises(UnknownScheme):
        resolve_scheme("turbo9", profile=PROFILE)


def test_auto_uses_profile_and_budget() -> None:
    assert resolve_scheme(" Auto ").scheme == UNMEASURED
    assert resolve_scheme("auto", profile=PROFILE, shapes=SHAPES).scheme == "turbo4"
    tight = resolve_scheme("auto", profile=PROFILE, shapes=SHAPES, budget=NEEDS["turbo3"], expected=8192)
    assert tight.scheme == "turbo3"
    longer = resolve_scheme("auto", shapes=SHAPES, budget=NEEDS["turbo4"], expected=16384)
    assert longer.scheme == "turbo2"


def test_the_models_shapes_and_budget_decide_before_the_first_message() -> None:
    tight = replace(INFO, memory_budget=NEEDS["turbo3"])
    assert choose_for_model(INFO, None).scheme == UNMEASURED
    assert choose_for_model(tight, None).scheme == "turbo3"
    assert choose_for_model(INFO, None, budget=NEEDS["turbo3"]).scheme == "turbo3"


def test_a_longer_conversation_may_need_a_smaller_scheme() -> None:
    tight = replace(INFO, memory_budget=NEEDS["turbo4"])
    assert choose_for_model(tight, None).scheme == "turbo4"
    assert choose_for_model(tight, None, tokens=8000).scheme == "turbo2"


def test_a_profile_overrides_the_order_for_unmeasured_models() -> None:
    measured = profile(fp16=0.0, turbo0v4=1e-4, turbo4=0.004, turbo2=0.05)
    assert choose_for_model(INFO, measured).scheme == "turbo0v4"


def test_without_a_model_the_choice_is_that_of_an_unmeasured_one() -> None:
    assert choose_for_model(None, None).scheme == UNMEASURED


def test_schemes_for_unmeasured_models_have_canonical_names() -> None:
    assert [parse_scheme(name).name for name in SAFEST_FIRST] == list(SAFEST_FIRST)


def test_choosing_does_not_import_mlx() -> None:
    code = (
        "import sys, tqchat.engine.memory.auto_scheme\n"
        "sys.exit('mlx' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_trellis_codes_are_not_chosen_on_a_cpu() -> None:
    """Packing them takes as long as reading there."""
    measured = profile(fp16=0.0, turbo0v4=1e-5, turbo4=KLD_LIMIT / 2, trellis3=KLD_LIMIT / 2)
    needs = NEEDS | {"trellis3": NEEDS["turbo3"]}
    assert choose(measured, None, needs, 8192).scheme == "trellis3"
    assert choose(measured, None, needs, 8192, on_cpu=True).scheme == "turbo4"
    on_gpu = replace(INFO, device="cuda: a card")
    assert choose_for_model(INFO, measured).scheme == "turbo4"
    assert choose_for_model(on_gpu, measured).scheme == "trellis3"

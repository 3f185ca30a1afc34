from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from tqchat.engine import chooser
from tqchat.engine.chooser import (
    KLD_LIMIT,
    choose,
    expected_tokens,
    memory_budget,
    needed_bytes,
    resolve_scheme,
)
from tqchat.engine.profile import Measured, Profile
from tqchat.kv.memory import LayerReport, MemoryReport, predict_bytes
from tqchat.kv.scheme import SCHEMES, UnknownScheme, parse_scheme

MIB = 1 << 20


def profile(**klds: float) -> Profile:
    rows = tuple(Measured(name, kld, kld, 1.0, 0, 0, 1.0) for name, kld in klds.items())
    return Profile("model", "f" * 64, 1, 2048, rows)


def layer(index: int, tokens: int = 1, kind: str = "full") -> LayerReport:
    size = tokens * 8 * 256 * 2
    reason = None if kind == "full" else "kept as it is"
    own = (
        index,
        kind,
        "fp16",
        reason,
        tokens,
        size // 2,
        size // 2,
        size,
        size,
        size,
        0,
        tokens,
        0,
        8,
        128,
        128,
    )
    return LayerReport(*own)  # type: ignore[arg-type]


SHAPES = MemoryReport("fp16", 1, tuple(layer(i) for i in range(32)))
NEEDS = needed_bytes(SHAPES, 8192)
MODEL = profile(
    fp16=0.0, turbo0v4=1e-4, turbo8v4=2e-4, turbo4=KLD_LIMIT / 2, turbo3=KLD_LIMIT * 2, turbo2=0.05
)


def test_a_measured_model_gets_the_smallest_scheme_within_the_limit() -> None:
    choice = choose(MODEL, None, NEEDS, 8192)
    assert choice.scheme == "turbo4"
    assert "measured" in choice.reason and "\n" not in choice.reason


def test_a_sensitive_model_keeps_its_keys() -> None:
    sensitive = profile(fp16=0.0, turbo0v4=1e-4, turbo8v4=0.01, turbo4=3.0, turbo2=9.0)
    assert choose(sensitive, None, NEEDS, 8192).scheme == "turbo0v4"
    hopeless = profile(fp16=0.0, turbo0v4=0.5, turbo4=3.0)
    assert choose(hopeless, None, NEEDS, 8192).scheme == "fp16"


def test_a_tight_budget_takes_the_closest_that_fits() -> None:
    budget = NEEDS["turbo3"]
    choice = choose(MODEL, budget, NEEDS, 8192)
    assert choice.scheme == "turbo3"
    assert "8,192 tokens" in choice.reason
    nothing = choose(MODEL, NEEDS["turbo2"] - 1, NEEDS, 8192)
    assert nothing.scheme == "turbo2"
    assert "does not fit" in nothing.reason


def test_an_unmeasured_model_compresses_values_only() -> None:
    choice = choose(None, None, NEEDS, 8192)
    assert choice.scheme == "turbo0v4"
    assert "tqchat lab profile" in choice.reason
    assert choose(None, NEEDS["turbo0v4"], NEEDS, 8192).scheme == "turbo0v4"


def test_an_unmeasured_model_gives_up_precision_only_for_want_of_memory() -> None:
    chosen = [choose(None, NEEDS[name], NEEDS, 8192).scheme for name in chooser.CAREFUL]
    assert chosen == list(chooser.CAREFUL)
    assert choose(None, 0, NEEDS, 8192).scheme == "turbo2"


def test_a_choice_for_the_conversation_always_wins() -> None:
    choice = resolve_scheme("turbo4v4", profile=MODEL, shapes=SHAPES, budget=0)
    assert choice.scheme == "turbo4"
    with pytest.raises(UnknownScheme):
        resolve_scheme("turbo9", profile=MODEL)


def test_auto_asks_the_profile_and_the_budget() -> None:
    assert resolve_scheme(" Auto ").scheme == "turbo0v4"
    assert resolve_scheme("auto", profile=MODEL, shapes=SHAPES).scheme == "turbo4"
    tight = resolve_scheme("auto", profile=MODEL, shapes=SHAPES, budget=NEEDS["turbo3"], expected_tokens=8192)
    assert tight.scheme == "turbo3"
    longer = resolve_scheme("auto", shapes=SHAPES, budget=NEEDS["turbo0v4"], expected_tokens=16384)
    assert longer.scheme == "turbo4"


def test_needs_are_what_a_cache_of_that_length_takes() -> None:
    long = MemoryReport("fp16", 8192, tuple(layer(i, 8192) for i in range(32)))
    assert {s.name: predict_bytes(long, s) for s in SCHEMES} == NEEDS


def test_a_window_that_schemes_reach_is_counted_full() -> None:
    shapes = MemoryReport("fp16", 1, (replace(layer(0, kind="sliding"), reason=None, window=1024),))
    assert needed_bytes(shapes, 100_000)["fp16"] == 1024 * 8 * 256 * 2
    assert needed_bytes(shapes, 100_000)["turbo4"] < 1024 * 8 * 256


def test_a_sliding_window_stops_growing() -> None:
    shapes = MemoryReport("fp16", 1, (layer(0, kind="sliding"),))
    assert needed_bytes(shapes, 100_000)["fp16"] == needed_bytes(shapes, 1_000_000)["fp16"]
    other = MemoryReport("fp16", 1, (layer(0, kind="other"),))
    assert needed_bytes(other, 2000)["fp16"] == 2 * needed_bytes(other, 1000)["fp16"]


def test_the_budget_is_a_share_of_what_weights_leave_unless_it_is_set() -> None:
    assert memory_budget(1000 * MIB, 200 * MIB) == 400 * MIB
    assert memory_budget(100 * MIB, 200 * MIB) == 0
    assert memory_budget(1000 * MIB, 200 * MIB, configured=7) == 7


def test_a_conversation_is_expected_to_double_within_the_models_limit() -> None:
    assert expected_tokens(0, None) == 8192
    assert expected_tokens(10_000, None) == 20_000
    assert expected_tokens(10_000, 16_384) == 16_384
    assert expected_tokens(0, 4096) == 4096


def test_every_careful_scheme_is_a_scheme() -> None:
    assert [parse_scheme(name).name for name in chooser.CAREFUL] == list(chooser.CAREFUL)


def test_choosing_needs_no_mlx() -> None:
    code = "import sys, tqchat.engine.chooser; sys.exit('mlx' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0

"""What a model would take is told from its shapes, without its weights, and is what it then takes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from tests.kv import families
from tests.models import tiny_llama
from tqchat import kv
from tqchat.engine import estimate as estimates
from tqchat.engine import fit, models
from tqchat.engine.estimate import estimate
from tqchat.engine.events import ModelEstimate
from tqchat.engine.models import ModelUnusable
from tqchat.kv.memory import MemoryReport
from tqchat.kv.scheme import FP16, parse_scheme
from tqchat.paths import bundled


def config_of(name: str) -> dict[str, Any]:
    own = families.FAMILIES[name]
    whole = own if "text_config" in own else families.COMMON | own
    return {"model_type": name.split()[0], **whole}


def facts(report: MemoryReport) -> list[tuple[object, ...]]:
    return [
        (one.kind, one.tokens, one.heads, one.key_dim, one.value_dim, one.window, one.reason)
        for one in report.layers
    ]


@pytest.mark.parametrize("name", families.FAMILIES)
def test_shapes_without_weights_are_those_of_the_real_model(name: str) -> None:
    real = families.model(name)
    cache = kv.make_prompt_cache(real, "fp16")
    mx.eval(real(mx.array([[0]]), cache=cache))
    assert facts(estimates.cache_shapes(estimates._empty(config_of(name), name))) == facts(
        kv.memory_report(cache)
    )


def test_estimating_takes_no_memory_worth_the_name() -> None:
    # A wide model: 200 MB in its embeddings alone.
    config = config_of("llama") | {"hidden_size": 1024, "intermediate_size": 8192, "vocab_size": 100_000}
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model = estimates._empty(config, "wide")
    assert estimates.cache_shapes(model).tokens == 1
    assert mx.get_peak_memory() - before < 1_000_000
    assert estimates._dense_bytes(model) > 600_000_000


def test_the_starters_estimate_is_what_it_takes_once_loaded() -> None:
    told = estimate(bundled("starter"), "starter")
    loaded = models.load()
    assert told.weight_bytes == loaded.info.weight_bytes
    assert told.context_limit == loaded.context_limit
    assert told.cache_budget == loaded.info.cache_budget


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "octopus"}))
    with pytest.raises(ModelUnusable, match=r"does not know its architecture \(octopus\)"):
        estimate(folder, "odd")


@pytest.fixture
def told() -> ModelEstimate:
    return ModelEstimate(
        "x", 100, estimates.cache_shapes(families.model("gemma3_text")), 4096, 10_000, 50_000
    )


def test_sizes_grow_with_the_length_and_stop_at_the_models_limit(told: ModelEstimate) -> None:
    assert [row.tokens for row in fit.sizes(told, FP16)] == [4096]
    rows = fit.sizes(replace(told, context_limit=None), parse_scheme("turbo4"))
    assert [row.tokens for row in rows] == [8192, 32768]
    assert rows[0].bytes < rows[0].fp16_bytes and rows[0].bytes < rows[1].bytes


def test_kinds_add_up_and_windows_stay_bounded(told: ModelEstimate) -> None:
    scheme = parse_scheme("fp16")
    short, long = (fit.kinds(told, tokens, scheme) for tokens in (1024, 4096))
    assert {one.kind for one in long} == {"sliding", "full"}
    for before, after in zip(short, long, strict=True):
        assert (after.bytes == before.bytes) == (after.kind == "sliding")
    assert sum(one.bytes for one in long) == fit.sizes(told, scheme)[-1].bytes


def test_verdicts(told: ModelEstimate) -> None:
    assert [fit.verdict(told, size) for size in (10_000, 49_900, 49_901)] == ["fits", "tight", "does not fit"]

"""A model's memory is estimated without loading its weights, and the estimate holds once it is loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from tests.kv import families
from tests.models import STARTER_FOLDER, tiny_llama
from tqchat import kv
from tqchat.engine import models
from tqchat.engine.events import ModelEstimate
from tqchat.engine.failures import ModelUnusable
from tqchat.engine.memory.cache_sizes import cache_sizes, sizes_by_layer_kind, verdict
from tqchat.engine.memory.estimate import estimate, float32_bytes, model_without_weights
from tqchat.engine.memory.shapes import cache_shapes
from tqchat.kv.memory import MemoryReport
from tqchat.kv.scheme import FP16, parse_scheme


def config_of(name: str) -> dict[str, Any]:
    own = families.FAMILIES[name]
    whole = own if "text_config" in own else families.COMMON | own
    return {"model_type": name.split()[0], **whole}


def layer_shapes(report: MemoryReport) -> list[tuple[object, ...]]:
    return [
        (one.kind, one.tokens, one.heads, one.key_dim, one.value_dim, one.window, one.reason)
        for one in report.layers
    ]


@pytest.mark.parametrize("name", families.FAMILIES)
def test_shapes_without_weights_equal_those_of_the_loaded_model(name: str) -> None:
    real = families.model(name)
    cache = kv.make_prompt_cache(real, "fp16")
    mx.eval(real(mx.array([[0]]), cache=cache))
    assert layer_shapes(cache_shapes(model_without_weights(config_of(name), name))) == layer_shapes(
        kv.memory_report(cache)
    )


def test_estimating_allocates_almost_no_memory() -> None:
    # A wide model: 200 MB in its embeddings alone.
    config = config_of("llama") | {"hidden_size": 1024, "intermediate_size": 8192, "vocab_size": 100_000}
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model = model_without_weights(config, "wide")
    assert cache_shapes(model).tokens == 1
    assert mx.get_peak_memory() - before < 1_000_000
    assert float32_bytes(model) > 600_000_000


def test_the_starters_estimate_equals_its_figures_once_loaded() -> None:
    estimated = estimate(STARTER_FOLDER, "starter")
    loaded = models.load(str(STARTER_FOLDER))
    assert estimated.weight_bytes == loaded.info.weight_bytes
    assert estimated.context_limit == loaded.context_limit
    assert estimated.memory_budget == loaded.info.memory_budget


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "octopus"}))
    with pytest.raises(ModelUnusable, match=r"does not know its architecture \(octopus\)"):
        estimate(folder, "odd")


@pytest.fixture
def estimated() -> ModelEstimate:
    return ModelEstimate("x", 100, cache_shapes(families.model("gemma3_text")), 4096, 10_000, 50_000)


def test_sizes_grow_with_the_length_up_to_the_context_limit(estimated: ModelEstimate) -> None:
    assert [row.tokens for row in cache_sizes(estimated, FP16)] == [4096]
    rows = cache_sizes(replace(estimated, context_limit=None), parse_scheme("turbo4"))
    assert [row.tokens for row in rows] == [8192, 32768]
    assert rows[0].bytes < rows[0].fp16_bytes and rows[0].bytes < rows[1].bytes


def test_sizes_by_layer_kind_add_up_and_windows_stay_bounded(estimated: ModelEstimate) -> None:
    scheme = parse_scheme("fp16")
    short, long = (sizes_by_layer_kind(estimated, tokens, scheme) for tokens in (1024, 4096))
    assert {one.kind for one in long} == {"sliding", "full"}
    for before, after in zip(short, long, strict=True):
        assert (after.bytes == before.bytes) == (after.kind == "sliding")
    assert sum(one.bytes for one in long) == cache_sizes(estimated, scheme)[-1].bytes


def test_verdicts(estimated: ModelEstimate) -> None:
    assert [verdict(estimated, size) for size in (10_000, 49_900, 49_901)] == [
        "fits",
        "tight",
        "does not fit",
    ]

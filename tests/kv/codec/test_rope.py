"""Rotary embeddings found by probing a model."""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.rope_utils import initialize_rope

from tests.kv import families
from tqchat.kv.codec.rope import Rope, model_ropes, probe_rope

SCALINGS = [
    None,
    {"type": "linear", "factor": 4.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096},
]


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("traditional", [False, True])
def test_unrotate_inverts_the_embedding(traditional: bool, scaling: dict[str, object] | None) -> None:
    embedding = initialize_rope(32, 10000.0, traditional, scaling, 4096)
    rope = probe_rope(embedding, 32)
    assert rope is not None
    x = mx.random.normal((1, 2, 50, 32), key=mx.random.key(1))
    rotated = embedding(x, offset=2000)
    restored = rope.unrotate(rotated, 2000)
    # YaRN also scales the rotated vector.
    ratio = (mx.linalg.norm(rotated, axis=-1) / mx.linalg.norm(x, axis=-1)).mean()
    assert mx.allclose(restored, x * ratio, atol=2e-3)


def test_channels_that_are_not_rotated_are_unchanged() -> None:
    rope = probe_rope(nn.RoPE(16), 16)
    assert rope is not None
    wide = rope.padded_to(40)
    assert wide is not None and rope.padded_to(8) is None
    x = mx.random.normal((1, 1, 9, 40), key=mx.random.key(1))
    restored = wide.unrotate(nn.RoPE(16)(x, offset=30), 30)
    assert mx.allclose(restored, x, atol=1e-4)


def test_average_equals_the_mean_over_all_positions() -> None:
    embedding = nn.RoPE(32)
    rope = probe_rope(embedding, 32)
    assert rope is not None
    x = mx.random.normal((1, 2, 1, 32), key=mx.random.key(1))
    every = embedding(mx.broadcast_to(x, (1, 2, 700, 32))).mean(axis=2, keepdims=True)
    assert mx.allclose(rope.average(x, 700), every, atol=1e-4)


def test_probing_rejects_functions_that_are_not_rotary_embeddings() -> None:
    assert probe_rope(lambda x, offset: x * (1 + offset), 16) is None
    assert probe_rope(lambda x, offset: mx.sin(x + offset), 16) is None
    assert probe_rope(lambda x: x, 16) is None


def test_json_round_trips() -> None:
    rope = probe_rope(nn.RoPE(32), 32)
    assert rope is not None
    again = Rope.from_json(rope.to_json())
    assert np.array_equal(again.angles, rope.angles) and np.array_equal(again.partners, rope.partners)


@pytest.mark.parametrize("data", [[[math.nan], [0]], [[1.0], [7]], [[1.0]], [], "x", [[1.0, 2.0], [0]]])
def test_damaged_angles_are_refused(data: object) -> None:
    with pytest.raises((ValueError, TypeError, IndexError)):
        Rope.from_json(data)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox", "phi", "glm4", "gemma3_text", "gpt_oss"])
def test_rotary_embeddings_are_found_in_models(family: str) -> None:
    model = families.model(family)
    found = model_ropes(model, len(model.layers))
    assert all(rope is not None and np.abs(rope.angles).max() > 0.9 for rope in found)


@pytest.mark.parametrize("family", ["gpt2", "deepseek_v2"])
def test_unknown_embeddings_are_none(family: str) -> None:
    model = families.model(family)
    assert model_ropes(model, len(model.layers)) == [None] * len(model.layers)

"""The file of recommended models: its facts, counted again with mlx-lm's classes."""

from __future__ import annotations

from datetime import date
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten, tree_map

from tqchat.engine.hub import loadable, recommended, resolve
from tqchat.engine.memory.estimate import model_without_weights
from tqchat.engine.memory.shapes import at_length, cache_shapes, uniform_shapes
from tqchat.kv.memory import predict_bytes
from tqchat.kv.scheme import FP16, parse_scheme

QWEN3 = {
    "model_type": "qwen3", "rms_norm_eps": 1e-6, "vocab_size": 151936, "head_dim": 128, "rope_theta": 1e6,
    "num_key_value_heads": 8, "max_position_embeddings": 40960, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "rms_norm_eps": 1e-5, "vocab_size": 128256, "rope_theta": 5e5,
    "num_key_value_heads": 8, "max_position_embeddings": 131072, "tie_word_embeddings": True,
}  # fmt: skip
EXPERTS = {
    "num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1, "mlp_only_layers": [],
    "moe_intermediate_size": 768, "norm_topk_prob": True,
}  # fmt: skip


def sized(
    base: dict[str, Any], hidden: int, layers: int, inner: int, heads: int, **more: Any
) -> dict[str, Any]:
    return base | {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        **more,
    }


CONFIGS = {
    "Qwen3-0.6B-4bit": sized(QWEN3, 1024, 28, 3072, 16, tie_word_embeddings=True),
    "Qwen3-1.7B-4bit": sized(QWEN3, 2048, 28, 6144, 16, tie_word_embeddings=True),
    "Qwen3-4B-Instruct-2507-4bit": sized(
        QWEN3, 2560, 36, 9728, 32, tie_word_embeddings=True, max_position_embeddings=262144
    ),
    "Qwen3-8B-4bit": sized(QWEN3, 4096, 36, 12288, 32),
    "Qwen3-14B-4bit": sized(QWEN3, 5120, 40, 17408, 40),
    "Qwen3-32B-4bit": sized(QWEN3, 5120, 64, 25600, 64),
    "Qwen3-30B-A3B-Instruct-2507-4bit": sized(
        QWEN3 | EXPERTS, 2048, 48, 6144, 32,
        model_type="qwen3_moe", num_key_value_heads=4, max_position_embeddings=262144,
    ),
    "Llama-3.2-1B-Instruct-4bit": sized(LLAMA, 2048, 16, 8192, 32, head_dim=64),
    "Llama-3.2-3B-Instruct-4bit": sized(LLAMA, 3072, 28, 8192, 24, head_dim=128),
    "SmolLM3-3B-4bit": sized(
        LLAMA, 2048, 36, 11008, 16, model_type="smollm3", num_key_value_heads=4, rope_theta=5e6,
        max_position_embeddings=65536, no_rope_layer_interval=4,
    ),
    "Phi-4-mini-instruct-4bit": sized(
        LLAMA, 3072, 32, 8192, 24, model_type="phi3", vocab_size=200064, partial_rotary_factor=0.75,
        original_max_position_embeddings=4096, rope_theta=1e4,
    ),
    "Mistral-Small-24B-Instruct-2501-4bit": sized(
        LLAMA, 5120, 40, 32768, 32, model_type="mistral", head_dim=128, vocab_size=131072,
        tie_word_embeddings=False, rope_theta=1e8, max_position_embeddings=32768,
    ),
    "gemma-3-1b-it-4bit": {
        "model_type": "gemma3_text", "hidden_size": 1152, "num_hidden_layers": 26, "intermediate_size": 6912,
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "rms_norm_eps": 1e-6,
        "vocab_size": 262144, "sliding_window": 512, "sliding_window_pattern": 6,
        "max_position_embeddings": 32768,
    },
    "gpt-oss-20b-MXFP4-Q4": {
        "model_type": "gpt_oss", "hidden_size": 2880, "num_hidden_layers": 24, "intermediate_size": 2880,
        "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "rms_norm_eps": 1e-5,
        "vocab_size": 201088, "num_local_experts": 32, "num_experts_per_tok": 4, "sliding_window": 128,
        "max_position_embeddings": 131072, "rope_theta": 150000,
        "rope_scaling": {
            "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
            "original_max_position_embeddings": 4096,
        },
    },
}  # fmt: skip
"""The parts of the published ``config.json`` that a model's size depends on."""


@pytest.mark.parametrize("one", recommended.models(), ids=lambda one: one.repo.partition("/")[2])
def test_size_and_shape_are_those_of_mlx_lms_model(one: recommended.Recommended) -> None:
    config = CONFIGS[one.repo.partition("/")[2]]
    loadable.check(one.repo, config, {})
    model: Any = model_without_weights(config, one.repo)
    shapes = uniform_shapes(one.layers, one.kv_heads, one.head_dim, one.window, one.full_every)
    real = cache_shapes(model)
    for scheme in (FP16, parse_scheme("turbo4")):
        for tokens in (100, 32_768):
            ours = predict_bytes(at_length(shapes, tokens), scheme)
            assert ours == predict_bytes(at_length(real, tokens), scheme)
    parameters: Any = tree_flatten(model.parameters())
    assert sum(weight.size for _, weight in parameters) == one.parameters
    assert config["max_position_embeddings"] == one.context
    zero = mx.zeros((), dtype=mx.bfloat16)
    model.update(tree_map(lambda weight: mx.broadcast_to(zero, weight.shape), model.parameters()))
    nn.quantize(model, 64, 4, class_predicate=quantisation)
    parameters = tree_flatten(model.parameters())
    assert sum(weight.nbytes for _, weight in parameters) == one.bytes


def quantisation(path: str, module: Any) -> bool | dict[str, Any]:
    """How the files hold a part of a model: gpt-oss keeps its experts in MXFP4, routers have 8 bits."""
    if not hasattr(module, "to_quantized"):
        return False
    if "experts" in path:
        return {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    return {"group_size": 64, "bits": 8} if path.endswith("mlp.gate") else True


def test_the_file_is_dated_and_ordered() -> None:
    assert date(2026, 11, 1) <= recommended.checked()
    models = recommended.models()
    assert {one.repo.partition("/")[2] for one in models} == set(CONFIGS)
    assert [one.parameters for one in models] == sorted((one.parameters for one in models), reverse=True)
    assert all(resolve.is_repo_id(one.repo) and one.licence and one.note for one in models)

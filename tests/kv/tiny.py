"""mlx-lm model classes with tiny random weights."""

from __future__ import annotations

import importlib
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map_with_path

from tqchat.kv import SchemeCache, memory_report
from tqchat.kv.memory import MemoryReport
from tqchat.kv.prompt_cache import flat_layers

REPRESENTATIVE = (
    "fp16",
    "affine8",
    "affine4",
    "turbo0v4",
    "turbo0v2",
    "turbo8v4",
    "turbo4",
    "turbo3v2",
    "trellis3v2",
)
"""Schemes that cover every format and code width on both sides."""


def build(architecture: str, dtype: mx.Dtype = mx.float32, seed: int = 0, **config: Any) -> Any:
    """A model of ``mlx_lm.models.<architecture>`` with random weights."""
    module = importlib.import_module(f"mlx_lm.models.{architecture}")
    model = module.Model(module.ModelArgs.from_dict({"model_type": architecture, **config}))
    key = mx.random.key(seed)

    def draw(path: str, weight: mx.array) -> mx.array:
        nonlocal key
        key, own = mx.random.split(key)
        if weight.ndim < 2:
            noise = 0.1 * mx.random.normal(weight.shape, key=own)
            return ((1 if "norm" in path else 0) + noise).astype(dtype)
        return (mx.random.normal(weight.shape, key=own) * weight.shape[-1] ** -0.5).astype(dtype)

    model.update(tree_map_with_path(draw, model.parameters()))
    model.eval()
    mx.eval(model.parameters())
    return model


def llama(dtype: mx.Dtype = mx.float32, **changes: Any) -> Any:
    config = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "vocab_size": 97,
        "rope_theta": 10000.0,
    }
    return build("llama", dtype, **(config | changes))


def tokens(count: int, seed: int = 1, vocab: int = 97) -> mx.array:
    return mx.random.randint(0, vocab, (1, count), key=mx.random.key(seed))


def report_at_rest(cache: list[Any]) -> MemoryReport:
    """The memory report without the working copies that only make steps faster."""
    for layer in flat_layers(cache):
        if isinstance(layer, SchemeCache):
            layer.release_working_arrays()
    return memory_report(cache)

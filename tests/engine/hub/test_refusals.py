"""Models that cannot be loaded: refused before a download, and in a folder before loading."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.hub.stand_in_hub import REPO, Hub, serving
from tqchat.engine import models
from tqchat.engine.hub import architectures, model_folder
from tqchat.engine.hub.resolve import resolve
from tqchat.errors import TqchatError

SEARCH = "search https://huggingface.co/mlx-community for tiny"


def quantised(**table: Any) -> dict[str, Any]:
    return {"quantization_config": table}


def compressed(layout: str, **weights: Any) -> dict[str, Any]:
    groups = {"group_0": {"weights": weights}}
    return quantised(quant_method="compressed-tensors", format=layout, config_groups=groups)


OWN_CODE = {"auto_map": {"AutoModelForCausalLM": "modeling_odd.Odd"}, "model_type": "odd"}

REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "architecture": ({"model_type": "gemma9"}, ["mlx-lm does not know its architecture (gemma9)", "newer"]),
    "module that is no model": ({"model_type": "base"}, ["does not know its architecture (base)"]),
    "package": ({"model_type": "olmo"}, ["needs the Python package hf_olmo, which is not installed"]),
    "path": ({"model_type": "../../evil"}, ["does not know its architecture"]),
    "bert": ({"model_type": "bert"}, ["is an encoder (bert)", "chat model"]),
    "roberta": ({"model_type": "xlm-roberta"}, ["is an encoder (xlm-roberta)"]),
    "modernbert": ({"model_type": "modernbert"}, ["is an encoder (modernbert)"]),
    "nomic": ({"model_type": "nomic_bert", "auto_map": {"AutoModel": "x.Y"}}, ["is an encoder (nomic_bert)"]),
    "t5": ({"model_type": "t5"}, ["encoder-decoder model (t5)"]),
    "whisper": ({"model_type": "whisper"}, ["is a speech model (whisper)"]),
    "clip": ({"model_type": "clip"}, ["is a vision model (clip)"]),
    "classifier": (
        {"architectures": ["LlamaForSequenceClassification"]},
        ["LlamaForSequenceClassification scores or labels it"],
    ),
    "own code": (OWN_CODE, ["its own Python code (auto_map), which tqchat never runs", "(odd)"]),
    "model file": ({"model_file": "model.py"}, ["its own Python code (model.py), which tqchat never runs"]),
    "fp8": (quantised(quant_method="fp8", weight_block_size=[128, 128]), ["holds FP8 weights", "for llama"]),
    "bitsandbytes": (quantised(quant_method="bitsandbytes", load_in_4bit=True), ["bitsandbytes"]),
    "hqq": (quantised(quant_method="hqq"), ["HQQ"]),
    "gptq": (quantised(quant_method="gptq", bits=4, group_size=128), ["GPTQ"]),
    "awq of 8 bits": (
        quantised(quant_method="awq", bits=8),
        ["AWQ weights in another layout than 4-bit gemm"],
    ),
    "awq gemv": (quantised(quant_method="awq", bits=4, version="gemv"), ["AWQ weights in another layout"]),
    "another method": (quantised(quant_method="aqlm"), ["quantised by aqlm, which mlx-lm does not load"]),
    "no method": (quantised(bits=4), ["does not say of which kind (quant_method)"]),
    "no table": ({"quantization_config": "fp8"}, ["does not say of which kind (quant_method)"]),
    "compressed floats": (compressed("float-quantized"), ["holds FP8 weights (compressed-tensors, float-"]),
    "compressed integers": (
        compressed("pack-quantized"),
        ["compressed-tensors (pack-quantized)", "for llama"],
    ),
    "other groups": (
        compressed("pack-quantized", num_bits=8, group_size=128) | {"model_type": "deepseek_v3"},
        ["other groups than 4 bits and 32 values"],
    ),
    "modelopt": (quantised(quant_method="modelopt", quant_algo="FP8"), ["NVIDIA ModelOpt (FP8)"]),
    "within text_config": ({"text_config": quantised(quant_method="hqq")}, ["HQQ"]),
    "layers": ({"num_hidden_layers": 10**9}, ["num_hidden_layers is 1000000000", "from 1 to 2,000"]),
    "layers as text": ({"num_hidden_layers": "32"}, ["num_hidden_layers is 32", "a whole number"]),
    "layers as a float": ({"num_hidden_layers": 2.5}, ["num_hidden_layers is 2.5"]),
    "layers as a flag": ({"num_hidden_layers": True}, ["num_hidden_layers is True"]),
    "layers as a table": ({"num_hidden_layers": {"a": 1}}, ["num_hidden_layers is"]),
    "head_dim": ({"head_dim": 1}, ["head_dim is 1", "from 2"]),
    "derived head_dim": ({"head_dim": None, "hidden_size": 4, "num_attention_heads": 4}, ["for 4 heads"]),
    "no heads": ({"num_attention_heads": 0}, ["num_attention_heads is 0"]),
    "hidden_size": ({"hidden_size": 1 << 40}, ["hidden_size is"]),
    "negative": ({"vocab_size": -1}, ["vocab_size is -1"]),
    "infinite": ({"intermediate_size": float("inf")}, ["intermediate_size is inf"]),
    "list": ({"intermediate_size": [1, 10**12]}, ["intermediate_size is [1, 1000000000000]"]),
    "nested": ({"text_config": {"num_hidden_layers": 10**9}}, ["num_hidden_layers is 1000000000"]),
    "bits": ({"quantization": {"bits": 0, "group_size": 64}}, ["bits is 0"]),
    "group_size": ({"quantization": {"bits": 4, "group_size": "x"}}, ["group_size is x"]),
    "escape": ({"model_type": "a\x1b]52;c;x\x07"}, ["does not know its architecture"]),
}
SEARCHED = {
    "fp8",
    "bitsandbytes",
    "hqq",
    "gptq",
    "awq of 8 bits",
    "another method",
    "compressed floats",
    "modelopt",
}

LOADED: dict[str, dict[str, Any]] = {
    "auto_map of a known architecture": {"auto_map": {"AutoModelForCausalLM": "modeling_odd.Odd"}},
    "another name": {"model_type": "mistral"},
    "MLX's own quantisation beside another": {"quantization": None, "quantization_config": None},
    "null values": {"num_key_value_heads": 2, "num_experts": None, "n_routed_experts": 0},
}


def rewrite(content: bytes, changes: dict[str, Any]) -> bytes:
    return json.dumps(json.loads(content) | changes).encode()


@pytest.fixture
def hub(llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(llama_folder, tmp_path / "hub-cache", monkeypatch) as hub:
        yield hub


@pytest.fixture
def folder(llama_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama_folder, tmp_path / "tiny"))


def sentence(call: Callable[[], object]) -> str:
    with pytest.raises(TqchatError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert "\x1b" not in text
    assert text.endswith(".")
    return text


def refused(hub: Hub) -> str:
    text = sentence(lambda: resolve(REPO))
    assert REPO in text
    assert not [name for name in hub.fetched() if name.endswith((".safetensors", ".bin", ".py", ".gguf"))]
    return text


@pytest.mark.parametrize("kind", REFUSED)
def test_a_repo_that_cannot_be_loaded_is_refused_before_its_weights(hub: Hub, kind: str) -> None:
    changes, words = REFUSED[kind]
    hub.files["config.json"] = rewrite(hub.files["config.json"], changes)
    text = refused(hub)
    assert all(word in text for word in words), text
    assert SEARCH in text or kind not in SEARCHED


@pytest.mark.parametrize("kind", REFUSED)
def test_a_folder_that_cannot_be_loaded_is_refused_before_loading(folder: Path, kind: str) -> None:
    changes, words = REFUSED[kind]
    (folder / "config.json").write_bytes(rewrite((folder / "config.json").read_bytes(), changes))
    text = sentence(lambda: model_folder.check(folder))
    assert all(word in text for word in words), text
    assert "mlx-community" not in text


@pytest.mark.parametrize("kind", LOADED)
def test_what_mlx_lm_loads_is_not_refused(folder: Path, kind: str) -> None:
    (folder / "config.json").write_bytes(rewrite((folder / "config.json").read_bytes(), LOADED[kind]))
    assert models.load(str(folder)).info.layers == 2


@pytest.mark.parametrize(
    "table",
    [
        quantised(quant_method="awq", bits=4, version="gemm"),
        quantised(quant_method="mxfp4"),
        quantised(quant_method="bitnet"),
        quantised(quant_method="fp8", weight_block_size=[128, 128]) | {"model_type": "deepseek_v3"},
        quantised(quant_method="fp8", scale_fmt="ue8m0", weight_block_size=[32, 32]),
        compressed("pack-quantized", num_bits=4, group_size=32) | {"model_type": "kimi_k25"},
        {"quantization": {"bits": 4, "group_size": 64}, "quantization_config": {"bits": 4}},
    ],
)
def test_quantisations_that_mlx_lm_reads_are_downloaded(hub: Hub, table: dict[str, Any]) -> None:
    hub.files["config.json"] = rewrite(hub.files["config.json"], table)
    resolve(REPO)


def test_an_awq_model_answers(folder: Path) -> None:
    """Every projection packed as AutoAWQ packs it; the loaded weights are the quantised ones."""
    import mlx.core as mx

    weights: dict[str, Any] = dict(mx.load(str(folder / "model.safetensors")))
    expected: dict[str, Any] = {}
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def pack(values: Any) -> Any:
        grouped = values.reshape(values.shape[0], -1, 8)[:, :, order].astype(mx.uint32)
        return (grouped << (mx.arange(8, dtype=mx.uint32) * 4)).sum(axis=-1).astype(mx.int32)

    for key in [key for key in weights if "proj" in key]:
        name, dense = key.removesuffix(".weight"), weights.pop(key).astype(mx.float32).T
        inputs, outputs = dense.shape
        groups = dense.reshape(inputs // 64, 64, outputs)
        low, high = groups.min(axis=1), groups.max(axis=1)
        scales = mx.maximum(high - low, 1e-6) / 15
        zeros = mx.clip(mx.round(-low / scales), 0, 15)
        codes = mx.clip(mx.round(groups / scales[:, None]) + zeros[:, None], 0, 15)
        expected[name] = ((codes - zeros[:, None]) * scales[:, None]).reshape(inputs, outputs).T
        weights[f"{name}.qweight"] = pack(codes.reshape(inputs, outputs))
        weights[f"{name}.qzeros"] = pack(zeros)
        weights[f"{name}.scales"] = scales.astype(mx.float16)
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    table = quantised(quant_method="awq", bits=4, group_size=64, version="gemm", zero_point=True)
    (folder / "config.json").write_bytes(rewrite((folder / "config.json").read_bytes(), table))
    loaded = models.load(str(folder))
    if loaded.on_cpu:
        for name in expected:
            dense = dict(loaded.model.named_modules())[name].weight
            assert float(mx.abs(dense - expected[name]).max()) < 1e-3, name


def test_a_quantisation_in_a_file_of_its_own_is_read_first(hub: Hub) -> None:
    hub.files["hf_quant_config.json"] = json.dumps({"quantization": {"quant_algo": "FP8"}}).encode()
    assert "NVIDIA ModelOpt (FP8)" in refused(hub)


def test_fp8_weights_that_the_configuration_does_not_mention_are_refused(folder: Path) -> None:
    import mlx.core as mx

    path = folder / "model.safetensors"
    weights: dict[str, Any] = dict(mx.load(str(path)))
    packed = {key: mx.to_fp8(value) if "proj" in key else value for key, value in weights.items()}
    mx.save_safetensors(str(path), packed)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].replace(b'"U8"', b'"F8_E4M3"')
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    assert "holds FP8 weights, which its config.json does not account for" in sentence(
        lambda: model_folder.check(folder)
    )


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("tiny.Q4_K_M.gguf", "holds GGUF weights only"),
        ("pytorch_model.bin", "pickles, which can run code"),
        ("model.pth", "pickles, which can run code"),
        ("weights.00.safetensors", "other names than model*.safetensors"),
        ("README.md", "has no weights"),
    ],
)
def test_weights_of_other_formats_are_named_with_what_to_take_instead(
    hub: Hub, folder: Path, file: str, words: str
) -> None:
    hub.files[file] = hub.files.pop("model.safetensors")
    text = refused(hub)
    assert words in text
    assert SEARCH in text
    (folder / "model.safetensors").rename(folder / file)
    assert words in sentence(lambda: model_folder.check(folder))


def test_an_adapter_alone_says_so(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"adapter_config.json": b"{}", "adapters.safetensors": b"x"}
    assert "is an adapter without its model" in refused(hub)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert "--adapter" in sentence(lambda: model_folder.check(tmp_path / "adapter"))


def test_the_name_to_search_for_leaves_the_format_out() -> None:
    from tqchat.engine.hub.loadable import instead_of

    for name in ("org/Nice-7B-GGUF", "org/Nice-7B-AWQ", "org/Nice-7B-GPTQ-Int4", "org/Nice-7B-bnb-4bit"):
        assert instead_of(name).endswith(" for Nice-7B")


def test_a_tokenizer_with_own_code_is_refused_before_the_weights(hub: Hub) -> None:
    hub.files["tokenizer_config.json"] = json.dumps(
        {"tokenizer_class": "OddTokenizer", "auto_map": {"AutoTokenizer": ["odd.OddTokenizer", None]}}
    ).encode()
    hub.files["odd.py"] = b"raise SystemExit"
    hub.files["config.json"] = rewrite(hub.files["config.json"], {"model_type": "plamo2"})
    assert "a tokenizer with its own Python code, which tqchat never runs" in refused(hub)


def test_a_repo_without_a_tokenizer_is_refused(hub: Hub) -> None:
    del hub.files["tokenizer.json"]
    assert "has no tokenizer" in refused(hub)


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b"[" * 100_000, b"\xff", b'{"model_type": 1' + b"1" * 5000 + b"}"]
)
def test_a_configuration_that_is_no_table_is_refused(hub: Hub, content: bytes) -> None:
    hub.files["config.json"] = content
    assert "config.json" in refused(hub)


# Files that are none, and headers and indexes of other types.


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "model.safetensors",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
    ],
)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "broken link"])
def test_what_is_no_regular_file_is_refused_without_opening_it(folder: Path, name: str, kind: str) -> None:
    path = folder / name
    path.unlink(missing_ok=True)
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case _:
            path.symlink_to(folder / "gone")
    text = sentence(lambda: model_folder.check(folder))
    assert name in text
    assert "no regular file" in text or "cannot be read" in text


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_tables_that_are_nested_deeply_are_refused(folder: Path, name: str) -> None:
    table = json.loads((folder / name).read_text())
    table["rope_scaling"] = json.loads('[{"a":' * 300 + "1" + "}]" * 300)
    (folder / name).write_text(json.dumps(table))
    assert f"{name} is nested too deeply" in sentence(lambda: model_folder.check(folder))


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{",
        b"[" * 200_000,
        b'{"a": 5}',
        b'{"a": {"dtype": "F16", "shape": "x", "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": 3, "shape": [4], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F16", "shape": [-4], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F16", "shape": [5], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F16", "shape": [4], "data_offsets": [8, 0]}}',
        b'{"a": {"dtype": "F16", "shape": [4], "data_offsets": ["0", "8"]}}',
        b'{"a": {"dtype": "F16", "shape": [1e99], "data_offsets": [0, Infinity]}}',
        b'{"a": {"dtype": "F16", "shape": [4], "data_offsets": [0, 8, 9]}}',
    ],
)
def test_a_header_of_other_types_is_damaged(folder: Path, header: bytes) -> None:
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    assert "are damaged" in sentence(lambda: model_folder.check(folder))


def test_a_header_that_would_fill_memory_is_not_read(folder: Path) -> None:
    with (folder / "model.safetensors").open("wb") as file:
        file.write((1 << 40).to_bytes(8, "little"))
        file.truncate((1 << 40) + 100)  # sparse
    assert "are damaged" in sentence(lambda: model_folder.check(folder))


@pytest.mark.parametrize("content", [b"[]", b"3", b"\xff\xfe\xff", b"[" * 100_000])
def test_generation_settings_of_other_types_are_named(folder: Path, content: bytes) -> None:
    (folder / "generation_config.json").write_bytes(content)
    assert "generation_config.json" in sentence(lambda: model_folder.check(folder))


@pytest.mark.parametrize(
    "table", [[], {"weight_map": []}, {"weight_map": {"a": 5}}, {"weight_map": {"a": "../x"}}, {}]
)
def test_an_index_of_other_types_is_damaged(folder: Path, table: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps(table))
    assert "model.safetensors.index.json" in sentence(lambda: model_folder.check(folder))


def test_shards_without_an_index_must_all_be_there(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00003.safetensors")
    text = sentence(lambda: model_folder.check(folder))
    assert "lacks 2 of 3 weight files (model-00002-of-00003.safetensors first)" in text


# Which architectures mlx-lm has.


def test_known_architectures_are_those_that_mlx_lm_loads() -> None:
    from mlx_lm import utils

    folder = Path(utils.__file__).parent / "models"
    kinds = {path.stem for path in folder.glob("*.py")} | set(utils.MODEL_REMAPPING) | {"bert", "odd"}
    for kind in sorted(kinds):
        try:
            utils._get_classes({"model_type": kind})
            loads = True
        except (ValueError, AttributeError, SystemExit):  # olmo's module exits without its package
            loads = False
        config = {"model_type": kind}
        known = architectures.is_known(config) and architectures.missing_package(config) is None
        assert known == loads, kind
    for (kind, name), _ in utils.MODEL_ARCHITECTURE_REMAPPING.items():
        assert architectures.is_known({"model_type": kind, "architectures": [name]})


def test_a_model_is_checked_without_mlx_and_transformers(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tqchat.engine.hub import model_folder\n"
        "model_folder.check(Path(sys.argv[1]))\n"
        "assert not {'mlx.core', 'mlx_lm', 'transformers'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


PLACES = ("chat_template.jinja", "vocab.txt", "tokenizer.model", "merges.bpe", "additional_chat_templates")


@pytest.mark.parametrize("place", PLACES)
def test_special_files_beside_the_weights_are_not_opened(
    llama_folder: Path, tmp_path: Path, place: str
) -> None:
    folder = tmp_path / "model"
    for kind in ("pipe", "device", "loop", "folder", "long"):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(llama_folder, folder)
        path = folder / place
        match kind:
            case "pipe":
                os.mkfifo(path)
            case "device":
                path.symlink_to("/dev/zero")
            case "loop" if place == "additional_chat_templates":
                continue  # nobody follows it: it is no folder
            case "loop":
                path.symlink_to(path)
            case "folder" if place == "additional_chat_templates":
                path.mkdir()
                os.mkfifo(path / "x.jinja")
            case "folder":
                path.mkdir()
            case _:
                path.touch()
                os.truncate(path, 1 << 40)
        with pytest.raises(model_folder.NotAModel):
            model_folder.check(folder)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("tokenizer_config.json", {"eos_token": "x" * 20_000}, "20,000 characters"),
        ("special_tokens_map.json", {"pad_token": {"content": "x" * 20_000}}, "20,000 characters"),
        ("added_tokens.json", {"x" * 20_000: 3}, "20,000 characters"),
        ("added_tokens.json", {"x": 10**12}, "id 1000000000000"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"99999999999": {"content": "x"}}},
            "id 99999999999",
        ),
        ("tokenizer.json", {"added_tokens": [{"id": 10**10, "content": "x"}]}, "id 10000000000"),
        (
            "tokenizer.json",
            {"model": {"type": "BPE", "vocab": {"a": 10**10}, "merges": []}},
            "id 10000000000",
        ),
    ],
)
def test_tokens_beyond_any_tokenizer_are_refused(
    llama_folder: Path, tmp_path: Path, name: str, changes: dict[str, Any], said: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llama_folder, folder)
    path = folder / name
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))
    with pytest.raises(model_folder.NotAModel, match=said):
        models.load(str(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 2_000, "num_experts": 16_000},
        {"architectures": 1.5},
        {"architectures": [[]]},
        {"o_groups": 10**9},
        {"rope_theta": {}},
        {"rope_scaling": [1]},
        {"rms_norm_eps": "x"},
    ],
)
def test_values_of_wrong_types_and_sizes_are_one_sentence(
    llama_folder: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llama_folder, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    try:
        models.load(str(folder))
    except TqchatError as error:
        assert "\n" not in str(error) and len(str(error)) < 600

"""Whether mlx-lm can load a model, decided from its configuration and the names of its files."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from tqchat.engine.hub import architectures
from tqchat.engine.hub.model_errors import NeedsCustomCode, NotAModel, UnsupportedModel
from tqchat.text import one_line

_ENCODERS = re.compile(
    r"(?:.*_)?(?:bert|roberta|deberta|albert|electra|mpnet|ernie|xlnet|longformer|big_bird|funnel|nomicbert)"
    r"(?:_.*)?|distilbert|modernbert|neobert|eurobert|camembert|xlmroberta|new|gte|layoutlm.*"
)
_ENCODER_DECODERS = re.compile(
    r"(?:u?m|long|switch_)?t5|t5gemma.*|m?bart|pegasus.*|marian|m2m_100|nllb.*|fsmt|led|prophetnet|blenderbot.*"
)
_OTHER_KINDS = (
    (
        re.compile(r"whisper|wav2vec2.*|hubert|wavlm|speecht5|bark|musicgen.*|encodec|seamless.*|moonshine"),
        "speech",
    ),
    (
        re.compile(r"clip.*|siglip.*|vit.*|deit|swin.*|dino.*|detr|sam.*|resnet|convnext.*|beit|segformer"),
        "vision",
    ),
)
_HEADS_WITHOUT_TEXT = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMaskedLM",
    "ForMultipleChoice",
    "ForRewardModel",
)
_OTHER_FORMATS = re.compile(
    r"[-_.](?:gguf|awq|gptq|fp8|bnb|bitsandbytes|hqq|exl[23]|int[48]|w[48]a\d+|4bit|8bit|dynamic|nf4)(?=[-_.]|$).*",
    re.IGNORECASE,
)

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
# Least and most of the numbers that decide how much memory a model takes before its weights are looked at.
_BOUNDS: dict[str, tuple[int, int]] = {
    **dict.fromkeys(_LAYERS, (1, 2_000)),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "model_dim"), (2, 1 << 20)),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "moe_intermediate_size"), (1, 1 << 22)),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), (1, 1 << 14)),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), (0, 1 << 14)),
    **dict.fromkeys(_EXPERTS, (0, 1 << 14)),
    **dict.fromkeys(("o_groups", "n_shared_head", "hc_mult", "num_kv_reuse_layers"), (0, 1 << 10)),
    **dict.fromkeys(("sliding_window", "attention_window_size", "attention_chunk_size"), (-1, 1 << 30)),
    "head_dim": (2, 1 << 14),
    "vocab_size": (1, 1 << 24),
}
_MAX_LISTED_VALUES = 4_096
_MAX_EXPERTS_OF_ALL_LAYERS = 1 << 20
"""mlx-lm looks for the weights of each one by name."""


def check(
    name: str,
    config: dict[str, Any],
    tokenizer_config: dict[str, Any],
    *,
    quant_config: dict[str, Any] | None = None,
    repo: bool = True,
) -> None:
    """Refuse what mlx-lm cannot load, and what needs code of its own.

    Args:
        name: Repo id or folder name, for the sentence.
        quant_config: NVIDIA ModelOpt's ``hf_quant_config.json``.
        repo: Whether ``name`` is a repo on the hub; a suggestion then says where to look.

    Raises:
        NotAModel: if the configuration holds impossible values.
        NeedsCustomCode, UnsupportedModel: if it cannot be loaded.
    """
    kind = _model_type(name, config)
    _check_numbers(name, config)
    if config.get("model_file") is not None:
        raise NeedsCustomCode(
            f"{name} comes with its own Python code ({_short(config['model_file'], 60)}), which tqchat "
            "never runs; choose a model of an architecture that mlx-lm knows."
        )
    _check_architecture(name, kind, config)
    _check_tokenizer(name, kind, tokenizer_config)
    instead = instead_of(name, repo) if repo else "take an MLX version of it, or one that is not quantised"
    _check_quantisation(name, kind, config, quant_config, instead)


def check_weight_names(name: str, files: Collection[str], repo: bool = True) -> None:
    """Refuse a model that has weights in other formats only.

    Raises:
        UnsupportedModel: with what to look for instead.
    """

    def some(*endings: str) -> bool:
        return any(file.lower().endswith(endings) for file in files)

    if any(re.fullmatch(r"model[^/]*\.safetensors", file) for file in files):
        return
    instead = instead_of(name, repo)
    if some("adapter_model.safetensors", "adapters.safetensors", "adapter_model.bin"):
        raise UnsupportedModel(
            f"{name} is an adapter without its model; load the model it was trained for, with --adapter."
        )
    if some(".safetensors"):
        raise UnsupportedModel(
            f"{name} has no weights that tqchat can load: its safetensors files have other names than "
            f"model*.safetensors; {instead}."
        )
    if some(".gguf"):
        raise UnsupportedModel(f"{name} holds GGUF weights only, which tqchat does not read; {instead}.")
    if some(".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        raise UnsupportedModel(
            f"{name} holds PyTorch weights only (pickles, which can run code: tqchat never opens them); "
            f"{instead}."
        )
    raise UnsupportedModel(f"{name} has no weights that tqchat can load (model*.safetensors); {instead}.")


def instead_of(name: str, repo: bool = True) -> str:
    """Advice on where a version is that mlx-lm loads, as the end of a sentence."""
    if not repo:
        return "take an MLX or safetensors version of it"
    base = _OTHER_FORMATS.sub("", name.rpartition("/")[2])
    return f"search https://huggingface.co/mlx-community for {base}"


def _model_type(name: str, config: dict[str, Any]) -> str:
    kind = config.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise NotAModel(f"config.json of {name} does not say what kind of model it is (model_type).")
    return _short(kind, 60)


def _check_numbers(name: str, config: dict[str, Any]) -> None:
    tables = [config, *(value for key, value in config.items() if key.endswith("config"))]
    for table in tables:
        if not isinstance(table, dict):
            continue
        for key, (least, most) in _BOUNDS.items():
            value = table.get(key)
            listed = value if isinstance(value, list) else [value]
            if len(listed) > _MAX_LISTED_VALUES or not all(_within(one, least, most) for one in listed):
                raise NotAModel(
                    f"config.json of {name} says {key} is {_short(value, 40)}, but it must be a "
                    f"whole number from {least:,} to {most:,}: download or copy the model again."
                )
        layers, experts = (
            max((n for key in keys if type(n := table.get(key)) is int), default=0)
            for keys in (_LAYERS, _EXPERTS)
        )
        if layers * experts > _MAX_EXPERTS_OF_ALL_LAYERS:
            raise NotAModel(
                f"config.json of {name} says that {layers:,} layers have {experts:,} experts each, more than "
                "any model has: download or copy the model again."
            )
    heads, width = config.get("num_attention_heads"), config.get("hidden_size")
    if isinstance(heads, int) and isinstance(width, int) and not config.get("head_dim") and width < 2 * heads:
        raise NotAModel(
            f"config.json of {name} says hidden_size is {width} for {heads} heads, which is less than 2 for "
            "each: download or copy the model again."
        )
    quantization = config.get("quantization")
    if isinstance(quantization, dict):
        for key, most in (("bits", 16), ("group_size", 1 << 16)):
            if key in quantization and not _within(quantization[key], 1, most):
                raise NotAModel(
                    f"config.json of {name} says {key} is {_short(quantization[key], 40)}, but it "
                    f"must be a whole number from 1 to {most:,}: download or copy the model again."
                )


def _short(value: object, length: int) -> str:
    text = one_line(str(value)[:400])
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _within(value: object, least: int, most: int) -> bool:
    if value is None:
        return True
    return type(value) is int and least <= value <= most


def _check_architecture(name: str, kind: str, config: dict[str, Any]) -> None:
    classes = config.get("architectures")
    classes = [one for one in classes if isinstance(one, str)] if isinstance(classes, list) else []
    if classes and all(one.endswith(_HEADS_WITHOUT_TEXT) for one in classes):
        raise UnsupportedModel(
            f"{name} is no model that writes text ({_short(classes[0], 60)} scores or labels it); "
            "choose a chat model."
        )
    if architectures.is_known(config):
        if package := architectures.missing_package(config):
            raise UnsupportedModel(
                f"{name} cannot be loaded: mlx-lm's module for its architecture ({kind}) needs the Python "
                f"package {package}, which is not installed."
            )
        return
    plain = kind.lower().replace("-", "_")
    if _ENCODERS.fullmatch(plain):
        raise UnsupportedModel(
            f"{name} is an encoder ({kind}), which turns text into vectors and writes none; "
            "choose a chat model."
        )
    if _ENCODER_DECODERS.fullmatch(plain):
        raise UnsupportedModel(
            f"{name} is an encoder-decoder model ({kind}), which mlx-lm does not load; choose a chat model."
        )
    for pattern, what in _OTHER_KINDS:
        if pattern.fullmatch(plain):
            raise UnsupportedModel(
                f"{name} is a {what} model ({kind}), which writes no replies to text; choose a chat model."
            )
    if config.get("auto_map"):
        raise NeedsCustomCode(
            f"{name} comes with its own Python code (auto_map), which tqchat never runs, and mlx-lm does not "
            f"know its architecture ({kind}); choose a model of an architecture that mlx-lm knows."
        )
    raise UnsupportedModel(
        f"{name} cannot be loaded: mlx-lm does not know its architecture ({kind}); a newer mlx-lm may."
    )


def _check_tokenizer(name: str, kind: str, tokenizer_config: dict[str, Any]) -> None:
    own = tokenizer_config.get("auto_map")
    if not own or (isinstance(own, dict) and not own.get("AutoTokenizer")):
        return
    if not architectures.has_tokenizer(tokenizer_config.get("tokenizer_class"), kind):
        raise NeedsCustomCode(
            f"{name} has a tokenizer with its own Python code, which tqchat never runs; "
            "choose another version of the model."
        )


def _check_quantisation(
    name: str,
    kind: str,
    config: dict[str, Any],
    quant_config: dict[str, Any] | None,
    instead: str,
) -> None:
    """Allow the formats that ``mlx_lm.utils.load_model`` reads.

    Its other formats either fail after everything is loaded, or are read as numbers that they are not.
    """
    if config.get("quantization") is not None:
        return  # MLX's own
    text = config.get("text_config")
    found = config.get("quantization_config")
    if found is None and isinstance(text, dict):
        found = text.get("quantization_config")
    if found is None:
        found = quant_config
    if found is None:
        return
    table = found if isinstance(found, dict) else {}
    method = str(table.get("quant_method", "")).lower()
    if quant_config is not None and not method:
        method = "modelopt"
    problem = _format_problem(method, table, kind, architectures.source(config))
    if problem:
        raise UnsupportedModel(f"{name} {problem}; {instead}.")


def _format_problem(method: str, table: dict[str, Any], kind: str, source: str) -> str | None:
    """Why a format cannot be loaded, ``None`` if it can. ``source`` is mlx-lm's for the architecture."""
    unread = f"which mlx-lm does not load for {kind}"
    match method:
        case "mxfp4" | "mxfp8" | "bitnet":
            return None
        case "fp8":
            blocks = table.get("weight_block_size")
            if (table.get("scale_fmt") == "ue8m0" and blocks == [32, 32]) or "weight_scale_inv" in source:
                return None
            return f"holds FP8 weights, {unread}"
        case "compressed-tensors":
            return _compressed_tensors_problem(table, source, unread)
        case "modelopt":
            settings = table.get("quantization", table)
            algorithm = settings.get("quant_algo") if isinstance(settings, dict) else None
            if algorithm == "NVFP4" and "weight_scale" in source:
                return None
            return f"holds weights of NVIDIA ModelOpt ({_short(algorithm, 30)}), {unread}"
        case "awq":
            version = str(table.get("version", "gemm")).lower()
            if table.get("bits", table.get("w_bit", 4)) != 4 or version != "gemm":
                return "holds AWQ weights in another layout than 4-bit gemm, the only one that mlx-lm loads"
            return None
        case "gptq":
            return "holds GPTQ weights, whose layout and group indices mlx-lm does not load"
        case "bitsandbytes":
            return "holds weights quantised by bitsandbytes, which only its own library reads"
        case "hqq":
            return "holds HQQ weights, which only its own library reads"
        case "":
            return "has quantised weights, but its config.json does not say of which kind (quant_method)"
        case _:
            return f"holds weights quantised by {_short(method, 30)}, which mlx-lm does not load"


def _compressed_tensors_problem(table: dict[str, Any], source: str, unread: str) -> str | None:
    layout = str(table.get("format"))
    if "float-quantized" in layout:
        return f"holds FP8 weights (compressed-tensors, {_short(layout, 30)}), {unread}"
    problem = f"holds weights of compressed-tensors ({_short(layout, 30)}), {unread}"
    if layout not in ("pack-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized"):
        return problem
    # The names of these tensors are not MLX's; the architecture's `sanitize` must know them.
    if "weight_packed" not in source:
        return problem
    groups = table.get("config_groups")
    for group in groups.values() if layout == "pack-quantized" and isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict) and (weights.get("num_bits", 4), weights.get("group_size", 32)) != (
            4,
            32,
        ):
            return f"{problem} in other groups than 4 bits and 32 values"
    return None

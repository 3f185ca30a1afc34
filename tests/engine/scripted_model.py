"""Tiny models that say, token by token, what a test dictates; files and loading are as for any model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.models import STARTER_FOLDER
from tqchat.engine.commands import ChatMessage

CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WIDTH, POSITIONS = 128, 512


def tokenizer_files(
    folder: Path,
    template: str | None = CHATML,
    *,
    special: Sequence[str] = (),
    plain: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    decoder: Mapping[str, Any] | None = None,
) -> int:
    """Write the starter's tokenizer with more added tokens and another template; its vocabulary's size."""
    folder.mkdir(parents=True, exist_ok=True)
    table = json.loads((STARTER_FOLDER / "tokenizer.json").read_text("utf-8"))
    told = json.loads((STARTER_FOLDER / "tokenizer_config.json").read_text("utf-8"))
    known = {one["content"] for one in table["added_tokens"]}
    size = 1 + max([*table["model"]["vocab"].values(), *(one["id"] for one in table["added_tokens"])])
    for content, is_special in [*((one, True) for one in special), *((one, False) for one in plain)]:
        if content in known:
            continue
        flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
        entry = {"content": content, "special": is_special, **flags}
        table["added_tokens"].append({"id": size, **entry})
        told["added_tokens_decoder"][str(size)] = entry
        size += 1
    if decoder is not None:
        table["decoder"] = decoder
    told.pop("chat_template", None)
    if template is not None:
        told["chat_template"] = template
    told.update(config or {})
    (folder / "tokenizer.json").write_text(json.dumps(table), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(told), "utf-8")
    (folder / "special_tokens_map.json").write_text("{}")
    return size


def scripted(
    folder: Path,
    turns: Sequence[tuple[Sequence[ChatMessage], str | Sequence[int]]],
    *,
    template: str | None = CHATML,
    special: Sequence[str] = (),
    plain: Sequence[str] = (),
    ends: Any = ("<|im_end|>",),
    config: Mapping[str, Any] | None = None,
    generation: Any = None,
    tokenizer: Mapping[str, Any] | None = None,
    variables: Mapping[str, Any] | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
    spare_ids: int = 0,
) -> Path:
    """Write a model whose next token depends on its position alone: behind each prompt comes its reply.

    Args:
        turns: Transcripts and what is said behind them: text with control tokens, or token ids.
        ends: Contents of the end tokens that ``config.json`` names; ``None`` names none.
        variables: What the chat template is told.
        tools: Functions that the transcripts are asked with.
        spare_ids: Ids that the model has beyond the tokenizer's.
    """
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.models import gpt2
    from mlx_lm.utils import load_tokenizer

    from tqchat.engine.templates import render

    size = spare_ids + tokenizer_files(folder, template, special=special, plain=plain, config=tokenizer)
    table: dict[str, Any] = {
        "model_type": "gpt2",
        "n_ctx": POSITIONS,
        "n_positions": POSITIONS,
        "n_embd": WIDTH,
        "n_head": 2,
        "n_layer": 2,
        "layer_norm_epsilon": 1e-5,
        "vocab_size": size,
        "torch_dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(table))
    loaded = load_tokenizer(folder)
    if ends is not None:
        table["eos_token_id"] = [loaded.convert_tokens_to_ids(one) for one in ends]
    table.update(config or {})
    (folder / "config.json").write_text(json.dumps(table))
    told = {"do_sample": False} if generation is None else generation
    (folder / "generation_config.json").write_text(json.dumps(told))

    said = [loaded.convert_tokens_to_ids("<|im_end|>")] * POSITIONS
    for messages, reply in turns:
        start = len(render(loaded, messages, variables=variables, tools=tools)) - 1
        ids = loaded.encode(reply, add_special_tokens=False) if isinstance(reply, str) else list(reply)
        said[start : start + len(ids)] = ids
    mx.random.seed(1)
    weights = dict(tree_flatten(gpt2.Model(gpt2.ModelArgs.from_dict(table)).parameters()))
    tokens = mx.random.normal((size, WIDTH)) / 16
    for name, value in weights.items():
        if "c_proj" in name:
            weights[name] = mx.zeros_like(value)
        elif name.endswith("wte.weight"):
            weights[name] = tokens
        elif name.endswith("wpe.weight"):
            weights[name] = tokens[mx.array(said[:POSITIONS])] * 50
    halves = {name: value.astype(mx.float16) for name, value in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), halves, metadata={"format": "mlx"})
    return folder

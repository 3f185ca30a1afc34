"""Current model families. Their chat templates in ``jinja/`` are minimal equivalents in our own words: each
writes what the family's template writes for plain chats, without tools and pictures.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.engine.templates import tokenizers

_TEMPLATES = Path(__file__).with_name("jinja")


@dataclass(frozen=True)
class Family:
    """A family's tokens, and what is to be found in its template.

    Attributes:
        special: Control tokens that are special in the tokenizer.
        end: The token that ends a reply.
        plain: Control tokens that are not special.
        bos: The beginning-of-sequence token.
        adds_bos: Whether the tokenizer writes it too.
        choices: What the thinking switch offers.
        off, on: Text that the prompt contains with thinking switched off and on.
        opens: Opening mark of the thought that the prompt opens by default.
        strict: Whether the template raises on other orders than user, assistant, user.
        read_again: Tokens of the first turn that are read again in the second.
    """

    name: str
    special: tuple[str, ...]
    end: str
    plain: tuple[str, ...] = ()
    bos: str | None = None
    adds_bos: bool = False
    choices: tuple[str, ...] = ()
    off: str = ""
    on: str = ""
    opens: str | None = None
    strict: bool = False
    read_again: int = 0
    kind: Callable[..., Any] = tokenizers.byte_level
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def template(self) -> str:
        """The family's chat template."""
        name = re.sub(r"[^a-z0-9.]+", "_", self.name.lower())
        return (_TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")

    def tokenizer(self) -> Any:
        """A small tokenizer with the family's tokens and template."""
        options = dict(self.options)
        if self.bos is not None:
            options["bos_token"] = self.bos
        known = ("<s>", "</s>", "<unk>") if self.kind is not tokenizers.byte_level else ()
        special = [one for one in self.special if one not in known]
        return self.kind(special, self.plain, template=self.template, **options)


def _metaspace(*arguments: Any, **options: Any) -> Any:
    return tokenizers.sentencepiece_bpe(*arguments, metaspace=True, **options)


FAMILIES = [
    Family(
        "Llama 3.2",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>",
        bos="<|begin_of_text|>",
    ),
    Family(
        "Qwen2.5",
        ("<|im_start|>", "<|im_end|>"),
        "<|im_end|>",
    ),
    Family(
        "Qwen3",
        ("<|im_start|>", "<|im_end|>"),
        "<|im_end|>",
        plain=("<think>", "</think>", "<tool_response>"),
        choices=("off", "on"),
        off="<think>\n\n</think>\n\n",
    ),
    Family(
        "Qwen3 Thinking",
        ("<|im_start|>", "<|im_end|>"),
        "<|im_end|>",
        plain=("<think>", "</think>"),
        opens="<think>",
        read_again=13,  # the thought is left out of history
    ),
    Family(
        "Gemma 2",
        ("<s>", "<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
        bos="<s>",
        strict=True,
        kind=tokenizers.sentencepiece_bpe,
    ),
    Family(
        "Gemma 3",
        ("<s>", "<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
        bos="<s>",
        adds_bos=True,
        strict=True,
        kind=tokenizers.sentencepiece_bpe,
    ),
    Family(
        "Gemma 4",
        ("<s>", "<|turn>", "<turn|>", "<|think|>", "<|channel>", "<channel|>"),
        "<turn|>",
        bos="<s>",
        choices=("off", "on"),
        off="<|channel>thought\n<channel|>",
        on="<|think|>",
        kind=_metaspace,
    ),
    Family(
        "Mistral v3",
        ("<s>", "</s>", "[INST]", "[/INST]"),
        "</s>",
        bos="<s>",
        strict=True,
        read_again=45,  # its template moves the system prompt to the last message
        kind=_metaspace,
        options={"eos_token": "</s>"},
    ),
    Family(
        "Mistral Magistral",
        ("<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[THINK]", "[/THINK]"),
        "</s>",
        bos="<s>",
        options={"eos_token": "</s>"},
    ),
    Family(
        "Mistral Small 4",
        (
            "<s>",
            "</s>",
            "[INST]",
            "[/INST]",
            "[SYSTEM_PROMPT]",
            "[/SYSTEM_PROMPT]",
            "[MODEL_SETTINGS]",
            "[/MODEL_SETTINGS]",
        ),
        "</s>",
        bos="<s>",
        choices=("off", "high"),
        off='"none"',
        on='"high"',
        options={"eos_token": "</s>"},
    ),
    Family(
        "Phi-3.5",
        ("<s>", "</s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>"),
        "<|endoftext|>",
        plain=("<|end|>",),
        kind=tokenizers.sentencepiece_bpe,
        options={"eos_token": "<|endoftext|>"},
    ),
    Family(
        "Phi-4",
        ("<|im_start|>", "<|im_end|>", "<|im_sep|>"),
        "<|im_end|>",
    ),
    Family(
        "DeepSeek R1",
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        "<｜end▁of▁sentence｜>",
        plain=("<think>", "</think>"),
        bos="<｜begin▁of▁sentence｜>",
        opens="<think>",
        read_again=13,  # the thought is left out of history
    ),
    Family(
        "DeepSeek V3.1",
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        "<｜end▁of▁sentence｜>",
        plain=("<think>", "</think>"),
        bos="<｜begin▁of▁sentence｜>",
        choices=("off", "on"),
        off="</think>",
        on="<think>",
    ),
    Family(
        "gpt-oss",
        ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>"),
        "<|return|>",
        choices=("low", "medium", "high"),
        on="Reasoning: medium",
        read_again=11,  # the model writes the channel itself
    ),
    Family(
        "Granite 3.3",
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
        "<|end_of_text|>",
        choices=("off", "on"),
        on="Write your thoughts",
    ),
    Family(
        "SmolLM2",
        ("<|im_start|>", "<|im_end|>"),
        "<|im_end|>",
    ),
    Family(
        "SmolLM3",
        ("<|im_start|>", "<|im_end|>"),
        "<|im_end|>",
        plain=("<think>", "</think>"),
        choices=("off", "on"),
        off="<think>\n\n</think>\n",
        on="Reasoning Mode: /think",
    ),
    Family(
        "Command R",
        (
            "<BOS_TOKEN>",
            "<|START_OF_TURN_TOKEN|>",
            "<|END_OF_TURN_TOKEN|>",
            "<|USER_TOKEN|>",
            "<|CHATBOT_TOKEN|>",
            "<|SYSTEM_TOKEN|>",
            "<|START_RESPONSE|>",
            "<|END_RESPONSE|>",
        ),
        "<|END_OF_TURN_TOKEN|>",
        bos="<BOS_TOKEN>",
        strict=True,
        read_again=11,  # the model writes <|START_RESPONSE|> itself
    ),
    Family(
        "GLM-4.5",
        ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>"),
        "<|user|>",
        plain=("<think>", "</think>", "/nothink"),
        choices=("off", "on"),
        off="/nothink<|assistant|>\n<think></think>",
        read_again=11,  # an empty thought is put before the reply
    ),
    Family(
        "Kimi K2",
        ("<|im_system|>", "<|im_user|>", "<|im_assistant|>", "<|im_middle|>", "<|im_end|>"),
        "<|im_end|>",
    ),
    Family(
        "Kimi K3",
        ("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"),
        "<|end_of_msg|>",
        choices=("off", "on", "low", "medium", "high"),
        off="<|open|>response<|sep|>",
        on="thinking_effort=medium",
        opens="<|open|>think<|sep|>",
        read_again=11,  # the thought is closed before the reply
    ),
    Family(
        "Seed-OSS",
        ("<seed:bos>", "<seed:eos>"),
        "<seed:eos>",
        plain=("<seed:think>", "</seed:think>", "<seed:cot_budget_reflect>"),
        bos="<seed:bos>",
        choices=("off", "on", "low", "medium", "high"),
        off="<seed:think><seed:cot_budget_reflect>",
    ),
    Family(
        "OLMo 2",
        ("<|endoftext|>",),
        "<|endoftext|>",
        bos="<|endoftext|>",
        options={"eos_token": "<|endoftext|>"},
    ),
    Family(
        "Falcon 3",
        ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>"),
        "<|endoftext|>",
        options={"eos_token": "<|endoftext|>"},
    ),
    Family(
        "Yi",
        ("<|im_start|>", "<|im_end|>"),
        "<|im_end|>",
        kind=tokenizers.sentencepiece_bpe,
    ),
    Family(
        "Nemotron Super 1.5",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>",
        plain=("<think>", "</think>"),
        bos="<|begin_of_text|>",
        adds_bos=True,
        choices=("off", "on"),
        off="<think>\n\n</think>\n\n",
    ),
    Family(
        "EXAONE 4",
        ("[|user|]", "[|assistant|]", "[|system|]", "[|endofturn|]"),
        "[|endofturn|]",
        plain=("<think>", "</think>"),
        choices=("off", "on"),
        off="<think>\n\n</think>\n\n",
        on="<think>\n",
        opens="<think>",
        read_again=13,  # the thought is left out of history
    ),
    Family(
        "Hunyuan",
        ("<|hy_begin|>", "<|hy_User|>", "<|hy_Assistant|>", "<|hy_eos|>", "<|hy_sep|>"),
        "<|hy_eos|>",
        plain=("<think>", "</think>", "<answer>", "</answer>"),
        choices=("off", "on"),
        off="<think>\n\n</think>\n",
    ),
    Family(
        "MiniMax M2",
        ("]~!b[", "]~b]", "[e~["),
        "[e~[",
        plain=("<think>", "</think>"),
        bos="]~!b[",
        opens="<think>",
        read_again=13,  # the thought is left out of history
    ),
    Family(
        "LFM2",
        ("<|startoftext|>", "<|im_start|>", "<|im_end|>"),
        "<|im_end|>",
        bos="<|startoftext|>",
    ),
    Family(
        "Qwen3.5",
        ("<|im_start|>", "<|im_end|>"),
        "<|im_end|>",
        plain=("<think>", "</think>"),
        choices=("off", "on"),
        off="<think>\n\n</think>\n\n",
        on="<think>\n",
        opens="<think>",
        read_again=13,  # the thought is left out of history
    ),
    Family(
        "Vicuna",
        ("<s>", "</s>"),
        "</s>",
        bos="<s>",
        adds_bos=True,
        read_again=9,  # a space is put before the reply
        kind=tokenizers.unigram,
    ),
]

"""Marks that models write around their reasoning."""

from __future__ import annotations

import re
from typing import NamedTuple


class ReasoningMarks(NamedTuple):
    """The text before and after a model's reasoning."""

    opening: str
    closing: str


REASONING_MARKS = (
    ReasoningMarks(
        "<think>", "</think>"
    ),  # DeepSeek, Qwen, GLM, MiniMax, SmolLM3, Nemotron, Hunyuan, Granite ...
    ReasoningMarks("[THINK]", "[/THINK]"),  # Mistral
    ReasoningMarks("<|channel>thought", "<channel|>"),  # Gemma 4
    ReasoningMarks("<|channel|>analysis<|message|>", "<|end|>"),  # gpt-oss
    ReasoningMarks("<seed:think>", "</seed:think>"),  # Seed-OSS
    ReasoningMarks("◁think▷", "◁/think▷"),  # Kimi-VL
    ReasoningMarks("<|open|>think<|sep|>", "<|close|>think<|sep|>"),  # Kimi K3
    ReasoningMarks("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    ReasoningMarks("<longcat_think>", "</longcat_think>"),  # LongCat
    ReasoningMarks("<|think:start|>", "<|think:end|>"),
    ReasoningMarks("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    ReasoningMarks("<|begin_of_thought|>", "<|end_of_thought|>"),
    ReasoningMarks("<thought>", "</thought>"),  # EXAONE Deep
    ReasoningMarks("<thinking>", "</thinking>"),
    ReasoningMarks("<reasoning>", "</reasoning>"),
)


def opened_at_end(text: str) -> ReasoningMarks | None:
    """The marks of a thought that a text opens and does not close."""
    last: tuple[int, ReasoningMarks] | None = None
    for marks in REASONING_MARKS:
        at = text.rfind(marks.opening)
        if (
            at >= 0
            and marks.closing not in text[at + len(marks.opening) :]
            and (last is None or at > last[0])
        ):
            last = (at, marks)
    return last[1] if last else None


def split_thought(text: str, opened: ReasoningMarks | None = None) -> tuple[str, str, str, str] | None:
    """Split a reply that contains its reasoning: opening mark, thought, closing mark, answer.

    Args:
        opened: Marks of a thought that the prompt opened; the reply then begins inside it.

    Returns:
        ``None`` if the reply does not begin with reasoning. A thought that is not closed has no closing mark.
    """
    body = text.lstrip()
    for marks in REASONING_MARKS:
        if body.startswith(marks.opening):
            opening = text[: len(text) - len(body)] + marks.opening
            thought, closing, answer = body.removeprefix(marks.opening).partition(marks.closing)
            return opening, thought, closing, answer
    if opened is not None:
        # An answer may mention the mark within a line or in a code block.
        for match in re.finditer(rf"(?m)^[ \t]*(?={re.escape(opened.closing)})", text):
            thought = text[: match.end()]
            if thought.count("```") % 2 == 0:
                return "", thought, opened.closing, text[match.end() + len(opened.closing) :]
    return None

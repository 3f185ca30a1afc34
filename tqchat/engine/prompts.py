"""From a transcript to the model's tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tqchat.engine.commands import ChatMessage
from tqchat.errors import TqchatError

PLAIN_STOP = "\nUser:"
"""Where a reply ends for a model without a chat template: it has begun to speak for the person."""

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length")
_NESTED = ("text_config", "llm_config", "language_config", "language_model")

_Turns = list[dict[str, str]]


class PromptRejected(TqchatError):
    """The model's chat template cannot take this conversation."""


def render(
    tokenizer: Any, messages: Sequence[ChatMessage], *, add_generation_prompt: bool = True
) -> list[int]:
    """The token ids of a transcript, as the model's chat template writes it.

    Templates that refuse a system message (or leave it out) get it in front of the first user message; ones
    that insist on alternating roles get neighbours of the same role joined. A model without a template gets
    ``plain_text``. Templates are as untrusted as the model: transformers runs them in a Jinja sandbox.

    Args:
        tokenizer: mlx-lm's ``TokenizerWrapper``.
        add_generation_prompt: Whether the tokens end where the reply begins.

    Raises:
        PromptRejected: if there is nothing to say, or the template refuses every form.
    """
    if not messages:
        raise PromptRejected("There is no message to answer yet.")
    turns = [{"role": message.role, "content": message.content} for message in messages]
    if not getattr(tokenizer, "has_chat_template", False):
        return list(tokenizer.encode(plain_text(turns, add_generation_prompt)))
    text = _apply_template(tokenizer, turns, add_generation_prompt)
    return list(tokenizer.encode(text, add_special_tokens=False))


def render_unfinished(
    tokenizer: Any, messages: Sequence[ChatMessage], held: Sequence[int]
) -> tuple[list[int], list[int]]:
    """The token ids of a transcript whose last message is a reply that goes on.

    Args:
        held: The tokens in the cache. If they are this very reply, they are kept as they were generated: the
            same text can be written in other tokens.

    Returns:
        The whole prompt, and the part of it that is the reply so far.

    Raises:
        PromptRejected: as ``render`` does.
    """
    prompt = render(tokenizer, messages[:-1])
    said = messages[-1].content
    if common_prefix(held, prompt) == len(prompt):
        reply = [token for token in held[len(prompt) :] if token not in tokenizer.eos_token_ids]
        # The last character may have been cut inside.
        if reply and tokenizer.decode(reply).rstrip("\ufffd").strip() == said.strip():
            return prompt + reply, reply
    reply = list(tokenizer.encode(said, add_special_tokens=False))
    return prompt + reply, reply


def plain_text(turns: Sequence[dict[str, str]], add_generation_prompt: bool) -> str:
    """The form for models without a chat template: ``User: ...``, ``Assistant: ...``, blank lines between."""
    names = {"user": "User: ", "assistant": "Assistant: ", "system": ""}
    parts = [names[turn["role"]] + turn["content"].strip() for turn in turns]
    if add_generation_prompt:
        parts.append("Assistant:")
    return "\n\n".join(parts)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading tokens two sequences share."""
    for index, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return index
    return min(len(a), len(b))


def context_limit(config: dict[str, Any]) -> int | None:
    """How many tokens the model was made for, ``None`` if its config does not say."""
    for table in (config, *(config.get(name) for name in _NESTED)):
        if not isinstance(table, dict):
            continue
        for key in _CONTEXT_KEYS:
            value = table.get(key)
            if isinstance(value, int) and value > 0:
                return value
    return None


def _apply_template(tokenizer: Any, turns: _Turns, add_generation_prompt: bool) -> str:
    refusal: Exception | None = None
    accepted: str | None = None
    system = turns[0]["content"].strip() if turns[0]["role"] == "system" else ""
    for shape in _shapes():
        shaped = shape(turns)
        try:
            text = tokenizer.apply_chat_template(
                shaped, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # a template can raise whatever it likes
            refusal = error
            continue
        if system in text:
            return str(text)
        accepted = accepted or str(text)
    if accepted is not None:  # it writes the system prompt in some way of its own
        return accepted
    reason = str(refusal).strip().rstrip(".")
    raise PromptRejected(f"This model's chat template cannot take the conversation: {reason}.") from refusal


def _shapes() -> Iterator[Callable[[_Turns], _Turns]]:
    yield lambda turns: turns
    yield _without_system
    yield _alternating
    yield lambda turns: _alternating(_without_system(turns))


def _without_system(turns: _Turns) -> _Turns:
    """The system prompt moved to the front of the first user message."""
    if turns[0]["role"] != "system":
        return turns
    system, *rest = turns
    for index, turn in enumerate(rest):
        if turn["role"] == "user":
            joined = {"role": "user", "content": f"{system['content'].strip()}\n\n{turn['content']}"}
            return [*rest[:index], joined, *rest[index + 1 :]]
    return [{"role": "user", "content": system["content"]}, *rest]


def _alternating(turns: _Turns) -> _Turns:
    """Neighbours of the same role joined into one message."""
    joined: _Turns = []
    for turn in turns:
        if joined and joined[-1]["role"] == turn["role"]:
            joined[-1] = {**turn, "content": f"{joined[-1]['content']}\n\n{turn['content']}"}
        else:
            joined.append(dict(turn))
    return joined

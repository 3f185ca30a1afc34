"""Prompts for continuing a reply that was cut off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tqchat.engine.commands import ChatMessage
from tqchat.engine.sequences import common_prefix
from tqchat.engine.templates.finding import chat_template
from tqchat.engine.templates.marks import REASONING_MARKS, opened_at_end
from tqchat.engine.templates.rendering import Rendered, encoded, rendered_text, with_bos


def render_unfinished(
    tokenizer: Any,
    messages: Sequence[ChatMessage],
    held: Sequence[int],
    *,
    variables: Mapping[str, Any] | None = None,
    began: float | None = None,
) -> tuple[list[int], list[int]]:
    """The token ids of a transcript whose last message is a reply to continue.

    Args:
        held: The tokens in the cache. If they are this very reply, they are kept as they were generated: the
            same text can be written in other tokens.
        variables, began: As for ``render``.

    Returns:
        The whole prompt, and the part of it that is the reply so far.

    Raises:
        PromptRejected: as ``render`` does.
    """
    before = rendered_text(tokenizer, messages[:-1], variables=variables, began=began)
    plain = chat_template(tokenizer) is None
    prompt = with_bos(tokenizer, encoded(before), plain=plain)
    reply = messages[-1]
    if common_prefix(held, prompt) == len(prompt):
        tokens = [token for token in held[len(prompt) :] if token not in tokenizer.eos_token_ids]
        if tokens and _is_reply(tokenizer, tokens, reply):
            return prompt + tokens, tokens
    said = before.disguise.content(reply.content)
    if reply.reasoning:
        said = _with_reasoning(tokenizer, before, replace(reply, content=said))
    whole = with_bos(tokenizer, encoded(replace(before, disguised=before.disguised + said)), plain=plain)
    if common_prefix(whole, prompt) == len(prompt):
        return whole, whole[len(prompt) :]
    # The reply's first characters would merge with the prompt's last ones.
    tokens = encoded(replace(before, disguised=said))
    return prompt + tokens, tokens


def _is_reply(tokenizer: Any, tokens: list[int], reply: ChatMessage) -> bool:
    # The last character may have been cut inside.
    text = str(tokenizer.decode(tokens)).rstrip("\ufffd").strip()
    if text == reply.content.strip():
        return True
    thought, answer = reply.reasoning.strip(), reply.content.strip()
    if not thought:
        return False
    at = text.find(thought)
    return at >= 0 and text.endswith(answer) and len(text) >= at + len(thought) + len(answer)


def _with_reasoning(tokenizer: Any, before: Rendered, reply: ChatMessage) -> str:
    """A reply with its reasoning in the model's marks. Without an answer the thought stays open."""
    thought = before.disguise.content(reply.reasoning.strip("\n"))
    opened = opened_at_end(before.text[-200:])
    marks = opened
    if marks is None:
        known = tokenizer.get_vocab()
        marks = next((one for one in REASONING_MARKS if one.opening in known and one.closing in known), None)
    if marks is None:
        return reply.content
    start = thought if opened else f"{marks.opening}\n{thought}"
    return f"{start}\n{marks.closing}\n\n{reply.content}" if reply.content.strip() else start

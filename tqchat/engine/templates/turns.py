"""End of turn, as a chat template writes it behind a reply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tqchat.engine.commands import ChatMessage
from tqchat.engine.templates.control_tokens import control_tokens
from tqchat.engine.templates.errors import PromptRejected
from tqchat.engine.templates.finding import chat_template
from tqchat.engine.templates.rendering import PLAIN_STOP, rendered_text

_QUESTION, _REPLY, _NEXT = "tqchatquestion", "tqchatreply", "tqchatnext"


@dataclass(frozen=True)
class EndOfTurn:
    """The text and control tokens that a template writes after a reply.

    Attributes:
        tokens: Control tokens that end the turn; none if the template ends it with ordinary text.
        text: What is written from the end of a reply to the next user message.
        begins: Control tokens that the model writes itself before the words of a reply; user messages may
            begin with the same.
    """

    tokens: frozenset[int]
    text: str
    begins: frozenset[int] = frozenset()


def end_of_turn(tokenizer: Any, variables: Mapping[str, Any] | None = None) -> EndOfTurn:
    """The end of a reply in the model's chat template.

    It is the last control token behind a reply that ends the conversation, or, if there is none, the first
    one of the next turn. A model without a template has ``PLAIN_STOP``.
    """
    template = chat_template(tokenizer)
    if template is None:
        return EndOfTurn(frozenset(), PLAIN_STOP)
    said = (ChatMessage("user", _QUESTION), ChatMessage("assistant", _REPLY))
    behind = _behind(tokenizer, said, variables, _REPLY)
    more = _behind(tokenizer, (*said, ChatMessage("user", _NEXT)), variables, _REPLY).partition(_NEXT)[0]
    control = control_tokens(tokenizer, template)
    last = [token for token, *_ in control.spans(behind)][-1:]
    following = [token for token, *_ in control.spans(more)][:1]
    opening = _behind(tokenizer, said, variables, _QUESTION).partition(_REPLY)[0]
    asked = _behind(tokenizer, said[:1], variables, _QUESTION, add_generation_prompt=True)
    begins = {token for token, *_ in control.spans(opening)} - {token for token, *_ in control.spans(asked)}
    return EndOfTurn(frozenset(last or following), more or behind, frozenset(begins))


def _behind(
    tokenizer: Any,
    messages: tuple[ChatMessage, ...],
    variables: Mapping[str, Any] | None,
    probe: str,
    add_generation_prompt: bool = False,
) -> str:
    try:
        rendered = rendered_text(
            tokenizer,
            messages,
            add_generation_prompt=add_generation_prompt,
            variables=variables,
            began=0.0,
        )
    except PromptRejected:
        return ""
    return rendered.text.rpartition(probe)[2] if probe in rendered.text else ""

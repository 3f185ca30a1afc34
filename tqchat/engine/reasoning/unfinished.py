"""Token ids of a cut-off reply, for continuing it."""

from __future__ import annotations

from collections.abc import Sequence

from tqchat.engine.commands import ChatMessage
from tqchat.engine.reasoning.stream import ReplyFormat, ReplyStream
from tqchat.engine.templates import chat_template
from tqchat.engine.templates.control_tokens import Disguise, control_tokens


def unfinished_reply(
    format: ReplyFormat, prompt: Sequence[int], said: ChatMessage, held: Sequence[int]
) -> list[int]:
    """The tokens of a reply so far, reasoning and marks included.

    Args:
        prompt: The tokens before the reply.
        said: The cut-off reply.
        held: The tokens in the cache. If they are this very reply, they are kept as they were generated: the
            same text can be written in other tokens.
    """
    if len(held) > len(prompt) and list(held[: len(prompt)]) == list(prompt):
        stream = ReplyStream(format, prompt)
        generated: list[int] = []
        for token in held[len(prompt) :]:
            if stream.is_end(token):
                break
            generated.append(token)
            stream.add(token)
        stream.finish()
        if generated and (stream.reasoning.strip(), stream.text.strip()) == (
            said.reasoning.strip(),
            said.content.strip(),
        ):
            return generated
    return _encoded(format, prompt, said)


def _encoded(format: ReplyFormat, prompt: Sequence[int], said: ChatMessage) -> list[int]:
    """The reply with the model's marks; marks inside its texts are encoded as ordinary text."""
    inside = ReplyStream(format, prompt).thinking
    control = control_tokens(format.tokenizer, chat_template(format.tokenizer))
    disguise = Disguise(control, [said.reasoning, said.content])

    def ordinary(text: str) -> list[int]:
        return disguise.encode(disguise.content(text)) if text else []

    marks = format.controls.encode
    tokens: list[int] = []
    if said.reasoning:
        tokens += [] if inside else marks(format.opening())
        tokens += ordinary(said.reasoning)
        tokens += marks(format.closing()) if said.content else []
    elif said.content:
        tokens += marks(format.closing().lstrip() if inside else format.answer())
    tokens += ordinary(said.content)
    return tokens

"""The tokens of a reply that was cut and goes on."""

from __future__ import annotations

from collections.abc import Sequence

from tqchat.engine.commands import ChatMessage
from tqchat.engine.reasoning.stream import ReplyFormat, ReplyStream


def unfinished_reply(
    format: ReplyFormat, prompt: Sequence[int], said: ChatMessage, held: Sequence[int]
) -> list[int]:
    """The tokens of a reply so far, thought and marks included.

    Args:
        prompt: The tokens before the reply.
        said: The reply as it was cut.
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
    inside = ReplyStream(format, prompt).thinking
    written = ""
    if said.reasoning:
        written = said.reasoning if inside else format.opening() + said.reasoning
        if said.content:
            written += format.closing()
    elif said.content:
        written = format.closing().lstrip() if inside else format.answer()
    return format.controls.encode(written + said.content)

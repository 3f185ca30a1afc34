"""A reply's tokens into reasoning and answer, and where the reply ends."""

from tqchat.engine.reasoning.ends import ends_of, named_eos_tokens
from tqchat.engine.reasoning.splitter import Span
from tqchat.engine.reasoning.stream import Ends, ReplyFormat, ReplyStream, TextStream
from tqchat.engine.reasoning.unfinished import unfinished_reply

__all__ = [
    "Ends",
    "ReplyFormat",
    "ReplyStream",
    "Span",
    "TextStream",
    "ends_of",
    "named_eos_tokens",
    "unfinished_reply",
]

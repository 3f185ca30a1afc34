"""Parts that a reply of a chat with tools needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tqchat.engine.reasoning import ReplyStream
from tqchat.engine.templates.call_formats import PLAIN_FORMAT, ToolFormat
from tqchat.engine.templates.tool_support import tool_support
from tqchat.engine.tools.splitter import ToolCallSplitter

if TYPE_CHECKING:
    from tqchat.engine.models import LoadedModel


def reply_stream(
    model: LoadedModel, prompt: Sequence[int], tools: Sequence[Mapping[str, Any]] = ()
) -> ReplyStream:
    """The stream of a reply to a prompt; with tools, calls and their marks are text of the answer."""
    if not tools:
        return ReplyStream(model.reply_format, prompt)
    format = call_format(model.tokenizer)
    return ReplyStream(model.reply_format, prompt, (format.start, format.end))


def tool_calls(tokenizer: Any, tools: Sequence[Mapping[str, Any]]) -> ToolCallSplitter | None:
    """The splitter for the answer of such a reply; ``None`` without tools."""
    return ToolCallSplitter(call_format(tokenizer), tools) if tools else None


def call_format(tokenizer: Any) -> ToolFormat:
    """The format in which the model is told to write calls."""
    support = tool_support(tokenizer)
    return PLAIN_FORMAT if support is None else support.format

"""Calls of tools in replies."""

from __future__ import annotations

from tqchat.engine.tools.parsing import parsed_calls
from tqchat.engine.tools.replies import reply_stream, tool_calls
from tqchat.engine.tools.splitter import ToolCallSplitter

__all__ = ["ToolCallSplitter", "parsed_calls", "reply_stream", "tool_calls"]

"""Calls of tools in replies."""

from __future__ import annotations

from tqchat.engine.tools.opening import Opening, call_opening
from tqchat.engine.tools.parsing import parsed_calls
from tqchat.engine.tools.replies import reply_stream, tool_calls
from tqchat.engine.tools.splitter import ToolCallSplitter

__all__ = ["Opening", "ToolCallSplitter", "call_opening", "parsed_calls", "reply_stream", "tool_calls"]

"""Chat templates: from messages to the model's tokens."""

from __future__ import annotations

from tqchat.engine.templates.errors import PromptRejected
from tqchat.engine.templates.finding import ChatTemplate, chat_template
from tqchat.engine.templates.rendering import PLAIN_STOP, default_variables, plain_text, render
from tqchat.engine.templates.thinking import ThinkingSwitch, default_choice, thinking_switch
from tqchat.engine.templates.turns import EndOfTurn, end_of_turn

__all__ = [
    "PLAIN_STOP",
    "ChatTemplate",
    "EndOfTurn",
    "PromptRejected",
    "ThinkingSwitch",
    "chat_template",
    "default_choice",
    "default_variables",
    "end_of_turn",
    "plain_text",
    "render",
    "thinking_switch",
]

"""Finds out whether a chat template has a place for tools, their calls and results, and in which form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from tqchat.engine.commands import ChatMessage, ToolCall
from tqchat.engine.templates.call_formats import ToolFormat, native_format
from tqchat.engine.templates.control_tokens import Disguise, control_tokens
from tqchat.engine.templates.errors import PromptRejected
from tqchat.engine.templates.finding import ChatTemplate, chat_template
from tqchat.engine.templates.limits import own_budget
from tqchat.engine.templates.tool_forms import CALL_FORMS, CallForm, ToolForms
from tqchat.engine.templates.writer import TemplateWriter

_TOOL = {
    "type": "function",
    "function": {
        "name": "tqchatfunction",
        "description": "tqchatdescription",
        "parameters": {
            "type": "object",
            "properties": {"tqchatkey": {"type": "string", "description": "tqchatmeaning"}},
            "required": ["tqchatkey"],
        },
    },
}
_CALL = ToolCall("call_tqchat", "tqchatfunction", '{"tqchatkey": "tqchatvalue"}')
_CHAT = (
    ChatMessage("user", "tqchatquestion"),
    ChatMessage("assistant", "", tool_calls=(_CALL,)),
    ChatMessage("tool", "tqchatresult", tool_call_id="call_tqchat", name="tqchatfunction"),
)


@dataclass(frozen=True)
class ToolSupport:
    """A template with a place for tools, the form of calls that it takes, and how the model writes them."""

    template: ChatTemplate
    form: CallForm
    format: ToolFormat


_known: WeakKeyDictionary[Any, dict[ChatTemplate, ToolSupport | None]] = WeakKeyDictionary()


def tool_support(tokenizer: Any) -> ToolSupport | None:
    """The tool support of a model's template, cached per tokenizer.

    ``None`` if it has no place for tools, or for calls in a format that can be parsed.
    """
    template = chat_template(tokenizer, for_tools=True)
    if template is None:
        return None
    table = _known.setdefault(getattr(tokenizer, "_tokenizer", tokenizer), {})
    if template not in table:
        table.clear()
        table[template] = _found(tokenizer, template)
    return table[template]


def _found(tokenizer: Any, template: ChatTemplate) -> ToolSupport | None:
    format = native_format(tokenizer, template)
    if format is None or (template.function is None and "tools" not in template.variables):
        return None
    disguise = Disguise(control_tokens(tokenizer, template), ())
    with own_budget():
        for form in CALL_FORMS:
            tools = ToolForms((_TOOL,), form, disguise)
            writer = TemplateWriter(template, True, {}, 0.0, disguise, tools)
            try:
                writer.written(_CHAT)
            except PromptRejected:
                continue
            return ToolSupport(template, form, format)
    return None

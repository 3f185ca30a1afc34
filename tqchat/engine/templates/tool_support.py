"""Finds out whether a chat template has a place for tools, their calls and results, and in which form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

from tqchat.engine.commands import ChatMessage, ToolCall
from tqchat.engine.templates.call_formats import ToolFormat, Writer, is_read, native_format, writer_for
from tqchat.engine.templates.control_tokens import Disguise, control_tokens
from tqchat.engine.templates.errors import PromptRejected
from tqchat.engine.templates.finding import ChatTemplate, chat_template
from tqchat.engine.templates.limits import own_budget
from tqchat.engine.templates.plain_tools import with_definitions, with_written_calls
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
_SHOWN = {"tqchatfunction": "function name", "tqchatkey": "argument name", "tqchatvalue": "value"}
_FENCE = "```"


@dataclass(frozen=True)
class ToolSupport:
    """A template with a place for tools or their calls, and how the model writes calls.

    Attributes:
        form: The form of calls that the template takes.
        writer: Writes calls into the text of replies, for a template that has no place for them.
        example: A call, for the system prompt, if the template has no place for definitions.
    """

    template: ChatTemplate
    form: CallForm
    format: ToolFormat
    writer: Writer | None = None
    example: str = ""

    def placed(
        self, messages: Sequence[ChatMessage], tools: Sequence[Mapping[str, Any]], disguise: Disguise
    ) -> tuple[Sequence[ChatMessage], Sequence[Mapping[str, Any]]]:
        """Messages and definitions for the template; what it has no place for is part of contents."""
        if (writer := self.writer) is not None:
            marks = disguise.trusted(self.format.start), disguise.trusted(self.format.end)
            messages = with_written_calls(messages, lambda calls: writer(*marks, calls))
        if self.example and tools:
            form = f"its name and arguments in this form:\n{disguise.trusted(self.example)}"
            return with_definitions(messages, tools, form), ()
        return messages, tools


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
    if format is None:
        return None
    disguise = Disguise(control_tokens(tokenizer, template), ())
    takes_tools = template.function is not None or "tools" in template.variables
    with own_budget():
        for form in CALL_FORMS:
            support = ToolSupport(template, form, format)
            text = _written(support, (_TOOL,) if takes_tools else (), disguise)
            if text is not None and takes_tools:
                return support
            if text is not None:
                example = _example(text, format)
                return replace(support, example=example) if example else None
        writer = writer_for(format, _CALL)
        if takes_tools and writer is not None:
            support = ToolSupport(template, CallForm(), format, writer)
            return support if _written(support, (_TOOL,), disguise) is not None else None
    return None


def _written(support: ToolSupport, tools: Sequence[Mapping[str, Any]], disguise: Disguise) -> str | None:
    """A chat with a call and its result; ``None`` if the template leaves one of them out."""
    messages, tools = support.placed(_CHAT, tools, disguise)
    forms = ToolForms(tools, support.form, disguise)
    writer = TemplateWriter(support.template, True, {}, 0.0, disguise, forms)
    try:
        return disguise.restored(writer.written(messages))
    except PromptRejected:
        return None


def _example(text: str, format: ToolFormat) -> str:
    """The form of a call as a template writes it; empty if that is not what the model is known to write.

    Models distilled from DeepSeek R1 have its template, with calls in a fence, but are not trained on calls:
    all of them are asked for the plain form.
    """
    body, end, _ = text.partition(format.start)[2].partition(format.end or "\0")
    if not end or _FENCE in body or not is_read(format, body, _CALL):
        return ""
    for probe, shown in _SHOWN.items():
        body = body.replace(probe, shown)
    return f"{format.start}{body}{end}"

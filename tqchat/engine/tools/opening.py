"""The beginning of a call, in a model's own form: a reply that is made to begin so can only be a call."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple

from tqchat.engine.commands import ChatMessage, ToolCall
from tqchat.engine.sequences import common_prefix
from tqchat.engine.templates.errors import PromptRejected, PromptStopped
from tqchat.engine.templates.tool_forms import tool_name
from tqchat.engine.tools.parsing import LONGEST_NAME
from tqchat.engine.tools.replies import reply_stream, tool_calls

if TYPE_CHECKING:
    from tqchat.engine.models import LoadedModel

Tools = Sequence[Mapping[str, Any]]
Render = Callable[[Sequence[ChatMessage], bool, Tools], list[int]]
"""``Prompts.render``."""


class Opening(NamedTuple):
    """The beginning of a reply.

    Attributes:
        call: Tokens that begin a call.
        thought_end: Tokens before it, which close the thought that the prompt has opened.
        replaced: Tokens at the end of the prompt whose text ``call`` begins with, in other tokens.
    """

    call: Sequence[int] = ()
    thought_end: Sequence[int] = ()
    replaced: Sequence[int] = ()

    def after(self, prompt: Sequence[int]) -> list[int]:
        """A prompt up to the call."""
        count = len(self.replaced)
        if count and list(prompt[-count:]) == list(self.replaced):
            prompt = prompt[:-count]
        return [*prompt, *self.thought_end]


_ASKED = ChatMessage("user", "tqchatquestion")
_ANSWERED = ChatMessage("assistant", "tqchatanswer")
_KEY, _MEANING = "tqchatkey", "tqchatmeaning"
_IDS = (("tqchat1", "2tqchat"), ("functions.{name}:0", "functions.{name}:1"))
"""Ids of calls; the second ones for models that write the name as part of the id (Kimi)."""


def call_opening(model: LoadedModel, render: Render, tools: Tools) -> Opening:
    """The tokens with which a call of any of some functions begins, as a prompt has those of past calls.

    They are what the model's chat template writes before the arguments, or before the name if there are
    several functions.

    Returns:
        Nothing if the template writes no such beginning, or none that is parsed as a call.
    """
    # What the first and the last name share, all between them share.
    by_name = {tool_name(one): one for one in tools}
    names = sorted({min(by_name), max(by_name)})
    if max(map(len, names)) > LONGEST_NAME:
        return Opening()
    tools = [_short(by_name[name]) for name in names]
    decode = model.tokenizer.decode
    try:
        prompt = render((_ASKED,), True, tools)
        header = render((_ASKED, _ANSWERED), False, tools)
        in_thought = reply_stream(model, prompt, tools).thinking
        for ids in _IDS:
            calls = [
                ToolCall(id.format(name=name), name, arguments)
                for name, one in zip(names, tools, strict=True)
                for id, arguments in zip(ids, _arguments(one), strict=True)
            ]
            replies = [ChatMessage("assistant", "", tool_calls=(call,)) for call in calls]
            found = [render((_ASKED, reply), False, tools) for reply in replies]
            shared = reduce(_shared, found)
            if in_thought or not decode(found[0]).startswith(decode(prompt)):
                # Past replies are written without the thought.
                begins, replaced = common_prefix(header, shared), []
            else:
                begins = common_prefix(prompt, shared)
                replaced = prompt[begins:]
            opening = shared[begins:]
            if (
                opening
                and (len(names) > 1 or names[0] in decode(opening))
                and _is_parsed(model, tools, found[0][:begins], found[0][begins:], names[0])
            ):
                return Opening(opening, _thought_end(model) if in_thought else (), replaced)
    except PromptStopped:
        raise
    except PromptRejected:
        pass  # the template takes no calls, or not behind such a question
    return Opening()


def _short(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """A function without what its call does not begin with: descriptions, and parameters but the first."""
    parameters = tool["function"].get("parameters")
    known = parameters if isinstance(parameters, Mapping) else {}
    properties = known.get("properties")
    first = next(iter(properties), _KEY) if isinstance(properties, Mapping) else _KEY
    first = first if len(first) <= LONGEST_NAME else _KEY
    schema = {"type": "object", "properties": {first: {"type": "string", "description": _MEANING}}}
    required = {"required": [first]} if known.get("required") else {}
    return {
        "type": "function",
        "function": {"name": tool_name(tool), "description": _MEANING, "parameters": schema | required},
    }


def _arguments(tool: Mapping[str, Any]) -> tuple[str, str]:
    """Arguments of such a function that begin differently; the second ones are none, if that is possible."""
    parameters = tool["function"]["parameters"]
    (first,) = parameters["properties"]
    other = {} if "required" not in parameters else {"0": 1} if first[:1] != "0" else {"x": 1}
    return json.dumps({first: "tqchatvalue"}), json.dumps(other)


def _shared(one: list[int], other: list[int]) -> list[int]:
    return one[: common_prefix(one, other)]


def _is_parsed(model: LoadedModel, tools: Tools, prompt: list[int], reply: list[int], name: str) -> bool:
    """Whether a reply is taken for a call of a function."""
    stream, splitter = reply_stream(model, prompt, tools), tool_calls(model.tokenizer, tools)
    assert splitter is not None
    spans = []
    for token in reply:
        if stream.is_end(token):
            break
        spans += stream.add(token)
    spans += stream.finish(cut=False)
    pieces = [piece for span in spans if span.part == "answer" for piece in splitter.feed(span.text)]
    pieces += splitter.finish()
    return any(isinstance(piece, ToolCall) and piece.name == name for piece in pieces)


def _thought_end(model: LoadedModel) -> list[int]:
    format = model.reply_format
    return list(format.controls.encode(format.closing()))

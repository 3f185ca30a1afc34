"""What a request asks of the engine: OpenAI's fields as a ``Request``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tqchat.api.errors import ApiError, invalid, unsupported
from tqchat.api.fields import Fields, clean
from tqchat.engine.commands import ChatMessage, Role, Sampling, Thinking, ThinkingChoice, ToolCall
from tqchat.engine.requests.request import Request, ToolChoice
from tqchat.kv.scheme import UnknownScheme, scheme_setting
from tqchat.settings import Settings

MAX_STOPS = 16
MAX_LOGPROBS, MAX_COMPLETION_LOGPROBS = 20, 5
UNLIMITED_TOKENS = 1_000_000
_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_EFFORTS: Mapping[str, ThinkingChoice] = {
    "none": "off",
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
    "max": "high",
}
_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "xtc_probability",
    "xtc_threshold",
)
_REFUSED = {
    "logit_bias": "logit_bias is not supported by this server; leave it out.",
    "audio": "This server returns text only; leave audio out.",
}
_REFUSED_IN_CHATS = _REFUSED | {
    "functions": "functions and function_call are obsolete; use tools and tool_choice.",
    "function_call": "functions and function_call are obsolete; use tools and tool_choice.",
}
_REFUSED_IN_COMPLETIONS = _REFUSED | {
    "echo": "echo is not supported: the prompt is not returned.",
    "suffix": "suffix is not supported: text is continued at its end only.",
}


@dataclass(frozen=True)
class Defaults:
    """What applies where a request says nothing.

    Attributes:
        sampling: ``max_tokens`` included.
        scheme: Cache scheme; ``None`` for the engine's.
        thinking: Whether and how much the model reasons.
    """

    sampling: Sampling
    scheme: str | None = None
    thinking: Thinking = field(default_factory=Thinking)

    @classmethod
    def of(cls, settings: Settings, scheme: str) -> Defaults:
        """Those of the user's settings. A reply has no limit but the user's own and the model's context."""
        sampling = settings.sampling
        if sampling.max_tokens == Settings.max_tokens:
            sampling = replace(sampling, max_tokens=UNLIMITED_TOKENS)
        return cls(sampling, scheme, settings.reasoning)


@dataclass(frozen=True)
class Asked:
    """A request, and the form in which the client wants its answer.

    Attributes:
        model: The model that it names.
        stream: Whether the answer is sent as it comes.
        with_usage: Whether a stream ends with the counts of tokens.
    """

    request: Request
    model: str | None
    stream: bool
    with_usage: bool


def chat(value: Mapping[str, Any], defaults: Defaults) -> Asked:
    """Read the body of ``/v1/chat/completions``.

    Raises:
        ApiError: if a field is wrong or asks for what is not supported.
    """
    fields = Fields(value)
    _refuse(fields, _REFUSED_IN_CHATS)
    _refuse_formats(fields)
    messages = tuple(_message(one) for one in fields.objects("messages"))
    if not messages:
        raise invalid("messages", fields.get("messages"), "a list with at least one message")
    tools = tuple(_tool(one, place) for place, one in enumerate(fields.objects("tools")))
    tool_choice = _tool_choice(fields, tools)
    return _asked(
        fields,
        Request(
            messages=messages,
            tools=() if tool_choice is None else tools,
            tool_choice=tool_choice or ToolChoice(),
            scheme=_scheme(fields, defaults),
            sampling=_sampling(fields, defaults),
            stops=_stops(fields),
            thinking=_thinking(fields, defaults),
            logprobs=_chat_logprobs(fields),
        ),
    )


def completion(value: Mapping[str, Any], defaults: Defaults) -> Asked:
    """Read the body of ``/v1/completions``.

    Raises:
        ApiError: if a field is wrong or asks for what is not supported.
    """
    fields = Fields(value)
    _refuse(fields, _REFUSED_IN_COMPLETIONS)
    if fields.get("best_of") not in (None, 1):
        raise unsupported("best_of", "best_of is not supported: one completion is generated.")
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, list) and prompt:
        if isinstance(prompt[0], str):
            raise unsupported("prompt", "One prompt is answered at a time; send the others on their own.")
        raise unsupported("prompt", "The prompt must be text; lists of tokens are not supported.")
    if not isinstance(prompt, str) or not prompt:
        raise invalid("prompt", prompt, "a string that is not empty")
    return _asked(
        fields,
        Request(
            prompt=clean(prompt),
            scheme=_scheme(fields, defaults),
            sampling=_sampling(fields, defaults),
            stops=_stops(fields),
            # 0 asks for those of the tokens themselves.
            logprobs=None
            if fields.get("logprobs") is False
            else fields.count("logprobs", MAX_COMPLETION_LOGPROBS),
        ),
    )


def _chat_logprobs(fields: Fields) -> int | None:
    asked, count = fields.flag("logprobs"), fields.count("top_logprobs", MAX_LOGPROBS)
    if count and not asked:
        raise invalid("top_logprobs", count, "left out, or logprobs true")
    return count or 0 if asked else None


def _asked(fields: Fields, request: Request) -> Asked:
    if (count := fields.get("n")) is not None and (type(count) is not int or count != 1):
        raise invalid("n", count, "1: one answer is generated")
    options = fields.object("stream_options")
    return Asked(
        request,
        fields.text("model"),
        fields.flag("stream"),
        options is not None and options.flag("include_usage"),
    )


def _refuse(fields: Fields, refused: Mapping[str, str]) -> None:
    for name, reason in refused.items():
        if fields.has(name):
            raise unsupported(name, reason)


def _refuse_formats(fields: Fields) -> None:
    answer_format = fields.object("response_format")
    if answer_format is not None and answer_format.get("type") != "text":
        raise unsupported("response_format", "Only text is generated: response_format.type must be text.")
    if fields.get("modalities") not in (None, [], ["text"]):
        raise unsupported("modalities", "This server returns text only: modalities must be ['text'].")


def _tool_choice(fields: Fields, tools: Sequence[Mapping[str, Any]]) -> ToolChoice | None:
    """Whether the model has to call a function; ``None`` if it must not."""
    given = fields.get("tool_choice")
    parallel = fields.get("parallel_tool_calls")
    choice = ToolChoice(at_most_one=parallel is not None and not fields.flag("parallel_tool_calls"))
    if given is None or given == "auto":
        return choice
    if given == "none":
        return None
    if given != "required" and not isinstance(given, dict):
        raise invalid("tool_choice", given, "auto, none, required, or an object that names a function")
    name = "" if given == "required" else _chosen(fields)
    if not tools:
        raise ApiError("A function must be called, but there are no tools.", param="tool_choice")
    if not name:
        return replace(choice, required=True)
    if all(one["function"]["name"] != name for one in tools):
        raise invalid("tool_choice.function.name", name, "the name of a function in tools")
    return ToolChoice(required=True, name=name, at_most_one=True)


def _chosen(fields: Fields) -> str:
    choice = fields.object("tool_choice")
    function = choice.object("function") if choice is not None else None
    name = function.text("name") if function is not None else None
    if choice is None or choice.get("type") != "function" or not name:
        raise invalid(
            "tool_choice", fields.get("tool_choice"), "of type function, with the name of a function in tools"
        )
    return name


def _tool(fields: Fields, place: int) -> Mapping[str, Any]:
    if fields.get("type") not in (None, "function"):
        raise unsupported(fields.named("type"), "Tools of this server are functions: type must be function.")
    function = fields.object("function")
    if function is None or not function.text("name"):
        raise invalid(f"tools[{place}].function", fields.get("function"), "an object with a name")
    function.text("description")
    if function.get("parameters") is not None:
        function.object("parameters")
    return {"type": "function", "function": fields.plain("function")}


def _message(fields: Fields) -> ChatMessage:
    name = fields.get("role")
    role = _ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise invalid(fields.named("role"), name, f"one of {', '.join(_ROLES)}")
    calls = tuple(_call(one) for one in fields.objects("tool_calls"))
    if calls and role != "assistant":
        raise ApiError(
            f"{fields.named('tool_calls')} must be in a message of the assistant.",
            param=fields.named("tool_calls"),
            code="invalid_value",
        )
    content = _content(fields)
    if content is None and role in ("system", "user", "tool"):
        raise invalid(fields.named("content"), None, "a string or a list of text parts")
    reasoning = fields.text("reasoning_content") or fields.text("reasoning") or ""
    return ChatMessage(
        role,
        content or "",
        reasoning=reasoning if role == "assistant" else "",
        tool_calls=calls,
        tool_call_id=fields.text("tool_call_id") or "" if role == "tool" else "",
        name=fields.text("name") or "" if role == "tool" else "",
    )


def _content(fields: Fields) -> str | None:
    """A message's text; parts are joined as they are."""
    content = fields.get("content")
    if not isinstance(content, list):
        return fields.text("content") if content is None or isinstance(content, str) else _no_text(fields)
    return "".join(_part(one) for one in fields.objects("content"))


def _no_text(fields: Fields) -> str:
    raise invalid(fields.named("content"), fields.get("content"), "a string or a list of text parts")


def _part(fields: Fields) -> str:
    kind = fields.get("type")
    if kind not in ("text", "input_text", "output_text", "refusal"):
        what = {"image_url": "Images", "input_audio": "Audio", "file": "Files"}.get(
            kind if isinstance(kind, str) else "", "Parts other than text"
        )
        raise unsupported(fields.named("type"), f"{what} cannot be read: this server takes text only.")
    text = fields.text("refusal" if kind == "refusal" else "text")
    if text is None:
        raise invalid(fields.named("text"), None, "a string")
    return text


def _call(fields: Fields) -> ToolCall:
    function = fields.object("function")
    name = function.text("name") if function is not None else None
    if function is None or not name:
        raise invalid(fields.named("function"), fields.get("function"), "an object with a name")
    if isinstance(function.get("arguments"), dict):
        arguments = json.dumps(function.plain("arguments"))
    else:
        arguments = function.text("arguments") or "{}"
    return ToolCall(fields.text("id") or "", name, arguments)


def _scheme(fields: Fields, defaults: Defaults) -> str | None:
    name = fields.text("cache_scheme")
    if name is None:
        return defaults.scheme
    try:
        return scheme_setting(name)
    except UnknownScheme as error:
        raise ApiError(str(error), param="cache_scheme", code="invalid_value") from None


def _sampling(fields: Fields, defaults: Defaults) -> Sampling:
    given = {name: fields.setting(name, name) for name in _SAMPLING if name != "top_k"}
    given["top_k"] = _limit(fields, "top_k", "top_k", 0)
    own = {name: value for name, value in given.items() if value is not None}
    own["max_tokens"] = defaults.sampling.max_tokens
    for name in ("max_tokens", "max_completion_tokens"):
        if (limit := _limit(fields, name, "max_tokens", UNLIMITED_TOKENS)) is not None:
            own["max_tokens"] = limit
    seed = fields.get("seed")
    if seed is not None:
        if type(seed) is not int:
            raise invalid("seed", seed, "a whole number of at most 20 digits")
        own["seed"] = seed % 2**63
    base = {name: getattr(defaults.sampling, name) for name in (*_SAMPLING, "seed")}
    return Sampling(**(base | own))


def _limit(fields: Fields, name: str, setting: str, unlimited: int) -> Any:
    """The value of a limit; ``unlimited`` for -1, which clients of other servers send for none."""
    value = fields.get(name)
    return unlimited if type(value) is int and value == -1 else fields.setting(name, setting)


def _stops(fields: Fields) -> tuple[str, ...]:
    stop = fields.get("stop")
    if stop is None:
        return ()
    texts = [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise invalid("stop", stop, "a string or a list of strings")
    if len(texts) > MAX_STOPS:
        raise ApiError(f"stop has {len(texts)} texts, but at most {MAX_STOPS} are taken.", param="stop")
    return tuple(clean(text) for text in texts if text)


def _thinking(fields: Fields, defaults: Defaults) -> Thinking:
    choice = defaults.thinking.choice
    arguments = fields.object("chat_template_kwargs")
    if arguments is not None and arguments.get("enable_thinking") is not None:
        choice = "on" if arguments.flag("enable_thinking") else "off"
    effort = fields.get("reasoning_effort")
    if effort is not None:
        if not isinstance(effort, str) or effort not in _EFFORTS:
            raise invalid("reasoning_effort", effort, f"one of {', '.join(_EFFORTS)}")
        choice = _EFFORTS[effort]
    return Thinking(choice, defaults.thinking.budget)

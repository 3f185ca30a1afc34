"""Answers in OpenAI's form, made of the engine's events."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqchat.api.logprobs import of_chat, of_completion
from tqchat.engine.commands import ToolCall
from tqchat.engine.events import Done, Event, ModelInfo, Notice, TextDelta, TokenLogprob, ToolCalled

_CUT = ("length", "context", "memory")


@dataclass
class Reply:
    """One answer: as a whole, or as the chunks of a stream.

    Text that was sent as part of the answer can turn out to be reasoning: some models mark only its end. The
    answer as a whole is right then. A stream cannot take the text back: it repeats it as
    ``reasoning_content``, in a chunk with ``"x_tqchat": {"content_is_reasoning": true}``, which says that all
    ``content`` before it was reasoning.

    Attributes:
        id: Id of the answer without OpenAI's prefix.
        model: The model that answers.
        is_chat: Whether it answers a chat, not a text to be continued.
        with_usage: Whether the stream ends with a chunk of the counts of tokens.
        with_logprobs: Whether log-probabilities of tokens are told.
        function_named: Whether the request named the function to call: a call is then no reason for the end.
    """

    id: str
    model: ModelInfo
    is_chat: bool
    with_usage: bool = False
    with_logprobs: bool = False
    function_named: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    _calls: list[ToolCall] = field(default_factory=list)
    _notices: list[str] = field(default_factory=list)
    _answered: str = ""
    _begun: bool = False

    def chunks(self, event: Event) -> Iterator[dict[str, Any]]:
        """The chunks of a stream that an event becomes."""
        match event:
            case TextDelta():
                yield from self._text(event)
            case ToolCalled(call=call):
                yield self._chunk({"tool_calls": [{"index": len(self._calls), **_call(call)}]})
                self._calls.append(call)
            case Notice():
                self._notices.append(event.text)
            case Done():
                last = self._chunk({} if self.is_chat else {"text": ""}, self._finish_reason(event))
                yield last | {"x_tqchat": self._figures(event)}
                if self.with_usage:
                    yield self._base("chunk") | {"choices": [], "usage": usage(event)}
            case _:
                pass

    def whole(self, events: list[Event]) -> dict[str, Any]:
        """The answer as one object. The last event is ``Done``; texts matter only for log-probabilities."""
        texts: list[TextDelta] = []
        for event in events:
            if isinstance(event, TextDelta):
                texts = [] if event.takes_answer else texts
                texts.append(event)
            if isinstance(event, ToolCalled):
                self._calls.append(event.call)
            elif isinstance(event, Notice):
                self._notices.append(event.text)
        done = events[-1]
        assert isinstance(done, Done)
        shown = [one for event in texts for one in event.logprobs]
        choice: dict[str, Any] = {
            "index": 0,
            "logprobs": self._logprobs(shown),
            "finish_reason": self._finish_reason(done),
        }
        if self.is_chat:
            message: dict[str, Any] = {"role": "assistant", "content": done.text}
            if done.reasoning:
                message["reasoning_content"] = done.reasoning
            if self._calls:
                message["content"] = done.text or None
                message["tool_calls"] = [_call(call) for call in self._calls]
            choice["message"] = message
        else:
            choice["text"] = done.text
        return self._base("") | {
            "choices": [choice],
            "usage": usage(done),
            "x_tqchat": self._figures(done),
        }

    def _text(self, event: TextDelta) -> Iterator[dict[str, Any]]:
        if not self.is_chat:
            if event.text:
                yield self._chunk({"text": event.text}, logprobs=self._logprobs(event.logprobs))
        elif event.takes_answer:
            taken = self._chunk({"reasoning_content": self._answered + event.text})
            self._answered = ""
            yield taken | {"x_tqchat": {"content_is_reasoning": True}}
        elif event.text and event.part == "reasoning":
            yield self._chunk({"reasoning_content": event.text})
        elif event.text:
            self._answered += event.text
            yield self._chunk({"content": event.text}, logprobs=self._logprobs(event.logprobs))

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self.with_logprobs:
            return None
        return of_chat(tokens) if self.is_chat else of_completion(tokens)

    def _chunk(
        self,
        delta: Mapping[str, Any],
        finish_reason: str | None = None,
        logprobs: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "logprobs": logprobs, "finish_reason": finish_reason}
        if self.is_chat:
            if not self._begun:
                delta = {"role": "assistant", **delta}
            choice["delta"] = delta
        else:
            choice |= delta
        self._begun = True
        return self._base("chunk") | {"choices": [choice]} | ({"usage": None} if self.with_usage else {})

    def _base(self, kind: str) -> dict[str, Any]:
        name = "text_completion"
        if self.is_chat:
            name = f"chat.completion.{kind}" if kind else "chat.completion"
        return {
            "id": f"{'chatcmpl' if self.is_chat else 'cmpl'}-{self.id}",
            "object": name,
            "created": self.created,
            "model": self.model.name,
            "system_fingerprint": self.model.fingerprint,
        }

    def _finish_reason(self, done: Done) -> str:
        if done.stop_reason in _CUT:
            return "length"
        return "tool_calls" if self._calls and not self.function_named else "stop"

    def _figures(self, done: Done) -> dict[str, Any]:
        """The memory report of the gauge, and where the prompt's tokens came from."""
        counts = done.counts
        return {
            "scheme": done.scheme,
            **done.report.to_json(),
            "restored_tokens": counts.restored,
            "reused_tokens": counts.reused,
            "read_tokens": counts.prefilled,
            "first_token_seconds": round(done.first_token_seconds, 4),
            "prompt_tokens_per_second": round(done.prompt_tokens_per_second, 2),
            "decode_tokens_per_second": round(done.decode_tokens_per_second, 2),
            "stop_reason": done.stop_reason,
            **({"notices": self._notices} if self._notices else {}),
        }


def usage(done: Done) -> dict[str, Any]:
    """The counts of tokens."""
    counts = done.counts
    return {
        "prompt_tokens": counts.prompt,
        "completion_tokens": counts.generated,
        "total_tokens": counts.prompt + counts.generated,
        "prompt_tokens_details": {"cached_tokens": counts.restored + counts.reused},
        "completion_tokens_details": {"reasoning_tokens": done.reasoning_tokens},
    }


def _call(call: ToolCall) -> dict[str, Any]:
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }

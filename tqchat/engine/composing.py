"""Titles and summaries: texts that the model writes about a conversation."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

from tqchat.engine.commands import ChatMessage, Compose, Sampling, Thinking
from tqchat.engine.events import Composed, Done, Event, Failed, PrefillProgress, TextDelta
from tqchat.engine.models import LoadedModel
from tqchat.engine.session import Session
from tqchat.engine.templates import render


class PreemptibleStop(threading.Event):
    """A stop event that is also set while more urgent work is queued."""

    def __init__(self, stop: threading.Event, urgent: Callable[[], bool]) -> None:
        super().__init__()
        self._stop, self._urgent = stop, urgent

    def is_set(self) -> bool:
        """Whether to stop."""
        return self._stop.is_set() or self._urgent()


def compose(
    model: LoadedModel, scheme: str, command: Compose, stop: threading.Event
) -> Iterator[Event | None]:
    """Write a title or summary with a temporary cache, in slices; ends with ``Composed`` or ``Failed``.

    If a title fails, it is empty; reasoning is left out. For a summary, prefill progress is reported.
    """
    session = Session(model, scheme, began=command.began)
    budget = 0 if command.purpose == "title" else command.max_tokens // 2
    switch = model.thinking_switch
    can_be_off = switch is not None and "off" in switch.choices
    session.thinking = Thinking("off" if can_be_off else None, budget)
    text = ""
    sampling = Sampling(temperature=0.0, max_tokens=command.max_tokens)
    messages = _cut(model, command)
    for event in session.send(messages, sampling, stop, command.conversation_id):
        match event:
            case PrefillProgress() if command.purpose == "summary":
                yield event
            case Failed() if command.purpose == "summary":
                yield event
                return
            case Done() if event.stop_reason != "stopped":
                text = event.text
            case TextDelta():
                yield None
    yield Composed(command.conversation_id, command.purpose, text)


def _cut(model: LoadedModel, command: Compose) -> tuple[ChatMessage, ...]:
    """The messages, with the beginning of the last one cut to fit the model's context limit."""
    limit, messages = model.context_limit, command.messages
    if limit is None:
        return messages
    surplus = len(render(model.tokenizer, messages, began=command.began)) + command.max_tokens - limit
    if surplus <= 0:
        return messages
    last = messages[-1]
    tokens = model.tokenizer.encode(last.content, add_special_tokens=False)
    # A few more, because the cut text may be tokenised differently.
    rest = model.tokenizer.decode(tokens[surplus + 8 :]) if surplus + 8 < len(tokens) else ""
    return (*messages[:-1], replace(last, content=rest))

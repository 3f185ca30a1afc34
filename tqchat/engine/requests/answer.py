"""The answer to one request, in slices."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

import json
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from tqchat.engine.commands import ToolCall
from tqchat.engine.decoding.logprobs import Logprobs
from tqchat.engine.decoding.step import Step
from tqchat.engine.events import Done, Event, MemoryUpdate, TextDelta, ToolCalled
from tqchat.engine.failures import ContextFull
from tqchat.engine.memory import auto_scheme
from tqchat.engine.models import LoadedModel
from tqchat.engine.prompts import Prompts, Tools
from tqchat.engine.reasoning import Span, TextStream
from tqchat.engine.reasoning.token_bytes import TokenBytes
from tqchat.engine.requests.pool import Cached, CachePool
from tqchat.engine.requests.request import Request, Ticket
from tqchat.engine.requests.text import PlainStream, StoppedStream
from tqchat.engine.session import Prompt, Session
from tqchat.engine.templates.errors import PromptStopped
from tqchat.engine.templates.limits import stopped_by
from tqchat.engine.templates.rendering import with_bos
from tqchat.engine.templates.sandbox import wall_clock
from tqchat.engine.templates.tool_forms import tool_name
from tqchat.engine.tools import Opening, call_opening, reply_stream, tool_calls

_DAY_S = 86_400
MAX_TOKEN_CHARACTERS = 128
"""A text longer than this times the context limit is not even split into tokens."""

Slices = Generator[Event | Step | None, None, None]
"""Slices of work: the event that one led to, the step that the next one is about to run, or ``None``."""


def answer(
    ticket: Ticket,
    model: LoadedModel,
    pool: CachePool,
    *,
    default_scheme: str,
    lookup: bool,
    other_bytes: Callable[[], int],
) -> Slices:
    """Answer a request; the last event is ``Done`` or ``Failed``. Its cache is in the pool by then.

    Args:
        default_scheme: The scheme of a request that names none; may be ``auto``.
        lookup: Whether tokens are proposed from the prompt.
        other_bytes: Bytes of caches outside the pool that share its memory budget.

    Raises:
        TqchatError: if the prompt cannot be rendered, or is too long.
    """
    request = ticket.request
    prompts = Prompts(model, began=_today())
    prompts.thinking = request.thinking
    limit = model.context_limit
    characters = _characters(request)
    if limit is not None and characters > limit * MAX_TOKEN_CHARACTERS:
        raise ContextFull(characters // MAX_TOKEN_CHARACTERS, limit)
    with stopped_by(ticket.stopped.is_set):
        rendered = _rendered(request, model, prompts)
    tokens = rendered.tokens
    if limit is not None and len(tokens) >= limit:
        raise ContextFull(len(tokens), limit)
    yield None
    scheme = auto_scheme.resolve_scheme(
        request.scheme or default_scheme,
        profile=model.profile,
        shapes=model.info.shapes,
        budget=model.info.memory_budget,
        on_cpu=model.on_cpu,
    ).scheme

    def make(name: str) -> Session:
        return Session(model, name, began=prompts.began, lookup=lookup)

    while (cached := pool.take(make, tokens, scheme, other_bytes())) is None:
        returned = pool.returned
        while pool.returned == returned:
            yield None
            if ticket.stopped.is_set():
                raise PromptStopped("The request was dropped.")
    last: Event | None = None
    try:
        for event in _answered(ticket, cached, prompts, rendered):
            if isinstance(event, Done):
                last = event  # told once the next request can have the cache
            else:
                yield event
    finally:
        pool.give_back(cached)
    yield last


@dataclass(frozen=True)
class _Rendered:
    """A request's prompt.

    Attributes:
        tokens: Of the prompt and of the beginning of the reply, if that is given.
        stream: The reply's, after that beginning.
        tools: The functions that the prompt offers.
        calls: Takes the calls of tools out of the reply.
        begun: Text of the beginning.
    """

    tokens: list[int]
    stream: TextStream
    tools: Tools
    calls: _Calls
    begun: Sequence[Span] = ()


def _answered(ticket: Ticket, cached: Cached, prompts: Prompts, rendered: _Rendered) -> Slices:
    request, session, calls = ticket.request, cached.session, rendered.calls
    session.thinking = request.thinking
    turn = None
    if request.messages and session.cache.needs_checkpoints:
        turn = prompts.end_of_messages(request.messages, rendered.tokens, rendered.tools)
    for span in rendered.begun:
        yield from calls.taken_from(TextDelta(ticket.id, span.text, span.part))
    logprobs = None
    if request.logprobs is not None:
        given = "".join(span.text for span in rendered.begun)
        logprobs = Logprobs(request.logprobs, TokenBytes(session.model.tokenizer), given)
    prompt = Prompt(rendered.tokens, rendered.stream, turn, logprobs)
    with closing(session.answer(prompt, request.sampling, ticket.stopped, ticket.id)) as events:
        for event in events:
            if isinstance(event, Step):
                yield event
                continue
            if isinstance(event, MemoryUpdate):
                continue
            for one in calls.taken_from(event):
                yield one if logprobs is None else _with_logprobs(one, logprobs)


def _with_logprobs(event: Event, logprobs: Logprobs) -> Event:
    """The event; a piece of the answer with the log-probabilities of its tokens."""
    if not isinstance(event, TextDelta):
        return event
    shown = logprobs.shown_by(event.text)
    is_answer = event.part == "answer" and not event.takes_answer
    return replace(event, logprobs=shown) if is_answer else event


class _Calls:
    """Takes the calls of tools out of a reply."""

    def __init__(self, tokenizer: Any, tools: Tools, at_most_one: bool = False) -> None:
        self._of = tokenizer, tools
        self._splitter = tool_calls(tokenizer, tools)
        self._text: list[str] = []
        self._at_most_one = at_most_one
        self._taken = 0

    @property
    def are_enough(self) -> bool:
        """Whether what follows is left out."""
        return self._at_most_one and self._taken > 0

    def taken_from(self, event: Event) -> Iterator[Event]:
        """The event without calls in its text, which become events of their own."""
        splitter = self._splitter
        if splitter is None:
            yield event
            return
        if isinstance(event, TextDelta) and event.part == "answer":
            yield from self._pieces(event.conversation_id, splitter.feed(event.text))
            return
        if isinstance(event, TextDelta) and event.takes_answer:
            self._splitter, self._text = tool_calls(*self._of), []
        elif isinstance(event, Done):
            rest = splitter.finish(cut=event.stop_reason != "stop")
            yield from self._pieces(event.conversation_id, rest)
            event = replace(event, text="".join(self._text))
        yield event

    def _pieces(self, id: str, pieces: Sequence[str | ToolCall]) -> Iterator[Event]:
        for piece in pieces:
            if self.are_enough:
                return
            if isinstance(piece, ToolCall):
                self._taken += 1
                yield ToolCalled(id, piece)
            else:
                self._text.append(piece)
                yield TextDelta(id, piece)


def _rendered(request: Request, model: LoadedModel, prompts: Prompts) -> _Rendered:
    if not request.messages:
        text = request.prompt or ""
        tokens = with_bos(model.tokenizer, list(model.tokenizer.encode(text, add_special_tokens=False)), True)
        format = model.reply_format
        special = frozenset(format.special)
        plain: TextStream = PlainStream(model.tokenizer, tokens, format.ends.named, special)
        stream = StoppedStream(plain, request.stops) if request.stops else plain
        return _Rendered(tokens, stream, (), _Calls(model.tokenizer, ()))
    tools, opening = _opening(request, model, prompts)
    calls = _Calls(model.tokenizer, tools, request.tool_choice.at_most_one)
    tokens = opening.after(prompts.render(request.messages, tools=tools))
    reply = reply_stream(model, tokens, tools)
    begun = [span for token in opening.call for span in reply.add(token)]
    limited = request.stops or request.tool_choice.at_most_one
    stream = StoppedStream(reply, request.stops, lambda: calls.are_enough) if limited else reply
    return _Rendered([*tokens, *opening.call], stream, tools, calls, begun)


def _characters(request: Request) -> int:
    """Characters that a prompt is made of, about: chat templates may leave some out."""
    count = len(request.prompt or "") + len(json.dumps(request.tools, ensure_ascii=False))
    for one in request.messages:
        count += len(one.content) + sum(len(call.arguments) for call in one.tool_calls)
    return count


def _opening(request: Request, model: LoadedModel, prompts: Prompts) -> tuple[Tools, Opening]:
    """The functions to offer, and the beginning that the reply has to have.

    A reply that has to call one function, of a model whose calls have no known beginning, is offered only
    that one.
    """
    tools, choice = request.tools, request.tool_choice
    if not tools or not choice.required:
        return tools, Opening()
    chosen = tuple(one for one in tools if choice.name in ("", tool_name(one)))
    opening = call_opening(model, prompts.render, chosen)
    return tools if opening.call else chosen, opening


def _today() -> float:
    """The clock that chat templates see: the beginning of the day, so that prompts repeat."""
    return wall_clock() // _DAY_S * _DAY_S

"""One conversation's model side: what its cache holds, and how it answers."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import mlx.core as mx

from tqchat.engine.cache import persistence
from tqchat.engine.cache.memory_budget import MemoryBudget
from tqchat.engine.cache.prompt_cache import PromptCache
from tqchat.engine.commands import ChatMessage, Limits, Sampling, Thinking, resolve_sampling
from tqchat.engine.decoding import Decoder, check_draft
from tqchat.engine.events import (
    Done,
    Event,
    Failed,
    MemoryUpdate,
    Notice,
    PrefillProgress,
    SchemeChanged,
    StopReason,
    TextDelta,
)
from tqchat.engine.failures import ContextFull, RereadStopped, user_message
from tqchat.engine.models import LoadedModel
from tqchat.engine.prompts import Prompts, reread_notice
from tqchat.engine.reasoning import ReplyStream, Span
from tqchat.engine.reply import Reply
from tqchat.engine.sequences import common_prefix
from tqchat.errors import TqchatError
from tqchat.kv.memory import MemoryReport
from tqchat.kv.scheme import TILE, parse_scheme
from tqchat.store.vault import Vault

REPORT_SECONDS = 0.25
"""How often the gauge hears of the cache while a reply is generated."""

WORTH_TELLING = 64
"""Tokens that are read again for want of a way back: more than these are mentioned."""


class Session:
    """Answers the transcripts of one conversation, reading only what its cache does not hold yet.

    Everything happens on the calling thread, which must be the one that loaded the model.
    """

    def __init__(
        self,
        model: LoadedModel,
        scheme: str = "fp16",
        limits: Limits | None = None,
        draft: LoadedModel | None = None,
        began: float | None = None,
    ) -> None:
        """
        Args:
            limits: What the cache may take; by default a share of what the weights leave.
            draft: A smaller model of the same vocabulary, which proposes tokens.
            began: When the conversation began, as ``wall_clock`` tells it; by default now. A chat template
                that writes the date writes this one, so that its prompts do not change from day to day.

        Raises:
            DraftMismatch: if its vocabulary is another.
        """
        if draft is not None:
            check_draft(model, draft)
        self.model = model
        self._held = PromptCache(model, scheme)
        self._room = MemoryBudget(limits or Limits())
        self._draft = draft
        self._drafting: PromptCache | None = None
        self.changed = False
        """Whether the cache holds something that is not saved."""
        self._prompts = Prompts(model, began)

    @property
    def thinking(self) -> Thinking:
        """Whether and how much the model reasons; it may be changed between two replies."""
        return self._prompts.thinking

    @thinking.setter
    def thinking(self, thinking: Thinking) -> None:
        self._prompts.thinking = thinking

    @property
    def began(self) -> float:
        """When the conversation began."""
        return self._prompts.began

    @property
    def scheme(self) -> str:
        """Name of the cache's scheme."""
        return self._held.scheme

    @property
    def tokens(self) -> tuple[int, ...]:
        """What the cache holds."""
        return tuple(self._held.tokens)

    def memory(self) -> MemoryReport:
        """What the cache takes now."""
        return self._held.report()

    @property
    def limits(self) -> Limits:
        """What the cache may take in memory; it may be changed between two replies."""
        return self._room.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._room.limits = limits

    def send(
        self,
        messages: Sequence[ChatMessage],
        sampling: Sampling | None = None,
        stop: threading.Event | None = None,
        conversation_id: str = "",
        continues: bool = False,
        vault: Vault | None = None,
    ) -> Iterator[Event]:
        """Answer a transcript; ends with ``Done`` or ``Failed``.

        Args:
            messages: The transcript, the person's new message last.
            sampling: What it leaves open, the model's own defaults decide.
            stop: Ends the reply within one token, or the reading of the prompt within one chunk.
            conversation_id: Goes into the events.
            continues: The last message is a reply that was cut off: go on where it ends. The events tell only
                what is new.
            vault: Where to look for a saved branch, if the transcript is another than that in the cache.
        """
        stop = stop or threading.Event()
        reply = Reply(began=time.perf_counter())
        certain = False
        try:
            yield from self._prompts.notices(conversation_id)
            prompt, said = self._prompts.with_beginning(messages, continues, self._held.tokens)
            text = self._stream_after(prompt, said)
            turn = None if said else self._turn(messages, prompt)
            yield from self._reuse(prompt, vault, conversation_id, reply)
            yield from self._send(prompt, turn, text, sampling or Sampling(), stop, conversation_id, reply)
            certain = True
        except GeneratorExit:
            certain = True  # only ever at a yield, where cache and tokens agree
            raise
        except Exception as error:
            yield self._failed(error, conversation_id, reply.text, reply.reasoning)
        finally:
            self._held.settle(certain)

    def _turn(self, messages: Sequence[ChatMessage], prompt: list[int]) -> int | None:
        """Where in the prompt the person's words end, if the cache needs a checkpoint there."""
        return self._prompts.end_of_messages(messages, prompt) if self._held.needs_checkpoints else None

    def _stream_after(self, prompt: list[int], said: list[int]) -> ReplyStream:
        stream = ReplyStream(self.model.reply_format, prompt[: len(prompt) - len(said)])
        stream.begin_after(said)
        return stream

    def _send(
        self,
        prompt: list[int],
        turn: int | None,
        text: ReplyStream,
        sampling: Sampling,
        stop: threading.Event,
        conversation_id: str,
        reply: Reply,
    ) -> Iterator[Event]:
        self.changed = True
        self._held.restored = 0
        plan = self._room.plan(self._held, len(prompt))
        if plan.scheme is not None:
            yield from self.set_scheme(plan.scheme, conversation_id=conversation_id)
            words = f"The prompt would not fit the cache's memory budget: it is read under {plan.scheme}."
            yield Notice(conversation_id, words, "warning")
        self._held.pack_prompts(plan.pack_prompts)
        self._held.reset_peak()
        total = reply.prefilled
        yield PrefillProgress(conversation_id, 0, total)
        if stop.is_set():
            yield self._done("stopped", conversation_id, reply)
            return
        begin = len(self._held.tokens)
        for end in (turn or 0, len(prompt) - 1):
            for _ in self._held.prefill_in_chunks(prompt[len(self._held.tokens) : end]):
                yield PrefillProgress(conversation_id, len(self._held.tokens) - begin, total)
                if stop.is_set():
                    yield self._done("stopped", conversation_id, reply)
                    return
            if turn == len(self._held.tokens):
                self._held.take_checkpoint()
        yield from self._generate(prompt, text, sampling, stop, conversation_id, reply)

    def _reuse(
        self, prompt: list[int], vault: Vault | None, conversation_id: str, reply: Reply
    ) -> Iterator[Event]:
        """Keep what cache and prompt share, but for the last token: reading it gives the first logits."""
        held = self._held
        limit = self.model.context_limit
        if limit is not None and len(prompt) >= limit:
            raise ContextFull(len(prompt), limit)
        reply.prompt = len(prompt)
        if vault is not None:
            persistence.recall(held, vault, conversation_id, prompt)
        shared = min(common_prefix(held.tokens, prompt), len(prompt) - 1)
        restored = held.restored
        held.trim_to(shared)
        keep = len(held.tokens)
        if shared - keep >= WORTH_TELLING:
            sliding = any(layer.kind == "sliding" for layer in held.report().layers)
            yield reread_notice(
                conversation_id, len(prompt), keep, "sliding-window" if sliding else "recurrent"
            )
        reply.restored = min(keep, restored)
        reply.reused = keep - reply.restored

    def _generate(
        self,
        prompt: list[int],
        text: ReplyStream,
        sampling: Sampling,
        stop: threading.Event,
        conversation_id: str,
        reply: Reply,
    ) -> Iterator[Event]:
        held = self._held
        sampling = resolve_sampling(sampling, self.model.info.sampling)
        limit = self.model.context_limit
        room = sampling.max_tokens if limit is None else min(sampling.max_tokens, limit - len(prompt))
        room = max(room, 1)
        if sampling.seed is not None:
            mx.random.seed(sampling.seed)
        decoder = Decoder(held, prompt, sampling, room, self._draft_cache())
        reason: StopReason | None = None
        reported = time.perf_counter()
        try:
            if self._over_budget(text):
                yield from self._end_thought(decoder, text, conversation_id, reply, room)
            for token in decoder:
                now = time.perf_counter()
                if not reply.generated:
                    reply.first_token = now
                    yield PrefillProgress(conversation_id, reply.prefilled, reply.prefilled)
                reply.generated += 1
                reply.last_token = now
                reply.drafted, reply.accepted = decoder.drafted, decoder.accepted
                if text.is_end(token):
                    reason = "stop"
                else:
                    yield from self._spoken(text.add(token), text, conversation_id, reply, now)
                if reason is None and self._over_budget(text):
                    yield from self._end_thought(decoder, text, conversation_id, reply, room)
                if reason is None:
                    reason = self._ended(text, stop, reply, room, limit)
                if reason is not None:
                    break
                if reply.generated % TILE == 0 and self._room.exceeded(held):
                    yield from (news := self._made_smaller(decoder, conversation_id))
                    if not news:
                        reason = "memory"
                        break
                if now - reported >= REPORT_SECONDS:
                    reported = now
                    yield MemoryUpdate(conversation_id, held.report(), reply.decode_speed)
        finally:
            decoder.close()
        rest = text.finish(cut=reason != "stop")
        yield from self._spoken(rest, text, conversation_id, reply, time.perf_counter())
        yield self._done(reason or "length", conversation_id, reply)

    def _spoken(
        self, spans: list[Span], text: ReplyStream, conversation_id: str, reply: Reply, now: float
    ) -> Iterator[Event]:
        """The events of what a token has made certain."""
        if text.reasoning_tokens > reply.reasoning_tokens:
            reply.reasoning_tokens, reply.last_thought = text.reasoning_tokens, now
        reply.text, reply.reasoning = text.text, text.reasoning
        reply.takes_answer = text.took_answer
        for span in spans:
            yield TextDelta(conversation_id, span.text, span.part, span.takes_answer)

    def _over_budget(self, text: ReplyStream) -> bool:
        budget = self.thinking.budget
        return budget is not None and text.thinking and text.reasoning_tokens >= budget

    def _end_thought(
        self, decoder: Decoder, text: ReplyStream, conversation_id: str, reply: Reply, room: int
    ) -> Iterator[Event]:
        """Close a thought that has reached its budget: the answer begins, if there is room for one."""
        marks = self.model.reply_format
        closing = marks.controls.encode(marks.closing())
        if room - reply.generated <= len(closing):
            return
        decoder.force(closing)
        reply.generated += len(closing)
        for token in closing:
            yield from self._spoken(text.add(token), text, conversation_id, reply, time.perf_counter())

    def _draft_cache(self) -> PromptCache | None:
        """The draft model's cache, under the scheme that the model's own has now."""
        if self._draft is None:
            return None
        if self._drafting is None or self._drafting.scheme != self.scheme:
            self._drafting = PromptCache(self._draft, self.scheme)
        return self._drafting

    def _made_smaller(self, decoder: Decoder, conversation_id: str) -> list[Event]:
        """Put a cache that has reached its budget under a smaller scheme; nothing if that cannot be."""
        room, held = self._room, self._held
        scheme = room.smaller_scheme(held, len(held.tokens)) if room.limits.step_down else None
        if scheme is None or not decoder.pause():
            return []
        events = list(self.set_scheme(scheme, conversation_id=conversation_id))
        if not isinstance(events[-1], SchemeChanged) or room.exceeded(held):
            return []
        words = f"The cache has reached its memory budget: it goes on under {scheme}."
        return [*events, Notice(conversation_id, words, "warning")]

    @staticmethod
    def _ended(
        text: ReplyStream, stop: threading.Event, reply: Reply, room: int, limit: int | None
    ) -> StopReason | None:
        if text.ended:
            return "stop"
        return "stopped" if stop.is_set() else reply.limit_reached(room, limit)

    def _done(self, reason: StopReason, conversation_id: str, reply: Reply) -> Done:
        self._held.settle(certain=True)
        return reply.done(reason, conversation_id, self.scheme, self.model.info.name, self.memory())

    @staticmethod
    def _failed(error: Exception, conversation_id: str, text: str = "", reasoning: str = "") -> Failed:
        return Failed(conversation_id, user_message(error), text, isinstance(error, ContextFull), reasoning)

    def set_scheme(
        self,
        scheme: str,
        reread: bool = False,
        messages: Sequence[ChatMessage] = (),
        stop: threading.Event | None = None,
        conversation_id: str = "",
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Iterator[Event]:
        """Put the live cache under another scheme; ends with ``SchemeChanged`` or ``Failed``.

        An error or a stop leaves the old cache whole and current. History is converted layer by layer, so
        that no more than one layer is held twice; a re-reading makes a new cache beside the old one.

        Args:
            reread: Let the model read the transcript again, so that history carries no earlier rounding.
            messages: The transcript; without it the tokens that the cache holds are read.
            stop: Ends a conversion within one layer, a re-reading within one chunk; the old scheme stays.
            progress: Told of each layer that was converted, and how many there are.
        """
        began = time.perf_counter()
        previous, before = self.scheme, self.memory().bytes
        fresh: PromptCache | None = None
        try:
            name = parse_scheme(scheme).name
            if reread:
                fresh = PromptCache(self.model, name)
                target = self._prompts.transcript(messages) if messages else list(self._held.tokens)
                yield PrefillProgress(conversation_id, 0, len(target))
                for done in fresh.prefill_in_chunks(target):
                    yield PrefillProgress(conversation_id, done, len(target))
                    if stop is not None and stop.is_set() and done < len(target):
                        raise RereadStopped(previous)
                self._held = fresh
            elif name != previous:
                self._held.convert(name, stop.is_set if stop is not None else lambda: False, progress)
        except Exception as error:
            yield self._failed(error, conversation_id)
            return
        self.changed = self.changed or reread or name != previous
        report = self.memory()
        yield SchemeChanged(
            conversation_id=conversation_id,
            scheme=name,
            previous=previous,
            tokens=len(self._held.tokens),
            seconds=time.perf_counter() - began,
            reread=reread,
            kept_rounding=self._held.carries_coarser_rounding(),
            bytes_before=before,
            bytes_after=report.bytes,
            report=report,
        )

    def save(
        self, vault: Vault, conversation_id: str, interrupted: Callable[[], bool] = lambda: False
    ) -> int:
        """Save what is new in the cache; the bytes that it takes on disk, 0 if the save was interrupted.

        Args:
            interrupted: Asked every few megabytes; ends the save once it says yes. What was saved before then
                still is, and the next save goes on where this one was.

        Raises:
            VaultError: if that fails. What was saved before is then still there.
        """
        size = persistence.save(self._held, vault, conversation_id, interrupted)
        self.changed = self.changed and not size
        return size

    def restore(
        self, vault: Vault, conversation_id: str, messages: Sequence[ChatMessage]
    ) -> tuple[int, str | None]:
        """Bring the conversation's cache back, as far as it agrees with the transcript.

        Returns:
            How many tokens came back; and why not all of them, ``None`` if nothing that was said is missing.
        """
        try:
            wanted = self._prompts.render(messages, add_generation_prompt=False)
        except TqchatError:
            wanted = []  # an empty conversation, or one that sending will explain
        return persistence.restore(self._held, vault, conversation_id, messages, wanted)

"""A conversation's prompt cache and the generation of its replies."""

from __future__ import annotations

import tqchat.engine.prepare_mlx  # noqa: F401

# isort: split

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from tqchat.engine.cache import persistence
from tqchat.engine.cache.memory_budget import MemoryBudget
from tqchat.engine.cache.prompt_cache import PromptCache
from tqchat.engine.cache.stop_between_layers import PrefillStopped
from tqchat.engine.commands import ChatMessage, Limits, Sampling, Thinking, resolve_sampling
from tqchat.engine.decoding import Decoder, check_draft
from tqchat.engine.decoding.logprobs import Logprobs
from tqchat.engine.decoding.step import Step, alone
from tqchat.engine.events import (
    MIN_REREAD_NOTICE_TOKENS,
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
from tqchat.engine.reasoning import ReplyStream, Span, TextStream
from tqchat.engine.reply import Reply
from tqchat.engine.sequences import common_prefix
from tqchat.engine.templates.errors import PromptStopped
from tqchat.engine.templates.limits import stopped_by
from tqchat.errors import TqchatError
from tqchat.kv.memory import MemoryReport
from tqchat.kv.scheme import TILE, UnknownScheme, parse_scheme
from tqchat.store.vault import Vault

REPORT_INTERVAL_S = 0.25
"""Time between two memory reports while a prompt is read or a reply is generated."""


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt.

    Attributes:
        stream: Converts the tokens of its reply to text.
        turn: Number of tokens up to the end of the last message, for a checkpoint; ``None`` for none.
        logprobs: Gets those of the reply's tokens.
    """

    tokens: list[int]
    stream: TextStream
    turn: int | None = None
    logprobs: Logprobs | None = None


class Session:
    """Generates replies to one conversation; only tokens that its cache does not hold are prefilled.

    All work is done on the calling thread, which must be the one that loaded the model.
    """

    def __init__(
        self,
        model: LoadedModel,
        scheme: str = "fp16",
        limits: Limits | None = None,
        draft: LoadedModel | None = None,
        began: float | None = None,
        lookup: bool = False,
    ) -> None:
        """
        Args:
            limits: Memory limits of the cache; by default a share of the memory that the weights leave.
            draft: Draft model of the same vocabulary.
            began: Start of the conversation, as returned by ``wall_clock``; by default now. Chat templates
                that write the date get this one, so that prompts do not change from day to day.
            lookup: Whether tokens are proposed from the conversation itself where there is no draft model.

        Raises:
            DraftMismatch: if the vocabularies differ.
        """
        if draft is not None:
            check_draft(model, draft)
        self.model = model
        self._cache = PromptCache(model, scheme, draft)
        self._memory = MemoryBudget(limits or Limits())
        self._draft = draft
        self._lookup = lookup
        self.changed = False
        """Whether the cache has unsaved changes."""
        self.transcript_tokens = 0
        self._prompts = Prompts(model, began)

    @property
    def thinking(self) -> Thinking:
        """Reasoning setting; may be changed between replies."""
        return self._prompts.thinking

    @thinking.setter
    def thinking(self, thinking: Thinking) -> None:
        self._prompts.thinking = thinking

    @property
    def began(self) -> float:
        """Start of the conversation, in seconds since the epoch."""
        return self._prompts.began

    @began.setter
    def began(self, began: float) -> None:
        self._prompts.began = began

    @property
    def scheme(self) -> str:
        """Name of the cache's scheme."""
        return self._cache.scheme

    @property
    def cache(self) -> PromptCache:
        """The cache of the conversation so far."""
        return self._cache

    def fork(self) -> Session:
        """A session that goes on from the same cache, which it copies."""
        twin = Session(self.model, self.scheme, self.limits, self._draft, self.began, self._lookup)
        twin._cache = self._cache.copy(self._draft)
        return twin

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens in the cache."""
        return tuple(self._cache.tokens)

    def memory(self) -> MemoryReport:
        """Memory report of the cache, the draft model's included."""
        return self._cache.report()

    @property
    def memory_budget(self) -> int | None:
        """Bytes that the cache may take; ``None`` if unknown."""
        return self._memory.budget_bytes(self._cache)

    @property
    def limits(self) -> Limits:
        """Memory limits of the cache; may be changed between replies."""
        return self._memory.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._memory.limits = limits

    def send(
        self,
        messages: Sequence[ChatMessage],
        sampling: Sampling | None = None,
        stop: threading.Event | None = None,
        conversation_id: str = "",
        continues: bool = False,
        vault: Vault | None = None,
    ) -> Iterator[Event]:
        """Generate the reply to a transcript. The last event is ``Done`` or ``Failed``.

        Args:
            messages: The transcript; the last message is the user's new one.
            sampling: Unset values are the model's defaults.
            stop: Ends decoding within one token, prefill within one chunk; on a CPU within one layer of a
                chunk, which is dropped, if the cache can be trimmed.
            conversation_id: Copied to the events.
            continues: The last message is a reply that was cut off; continue it. Events hold only new text.
            vault: Searched for a saved branch if the transcript differs from the cached one.
        """
        stop = stop or threading.Event()

        def prepare() -> Prompt:
            prompt, said = self._prompts.with_beginning(messages, continues, self._cache.tokens)
            stream = ReplyStream(self.model.reply_format, prompt[: len(prompt) - len(said)])
            stream.begin_after(said)
            return Prompt(prompt, stream, None if said else self._turn(messages, prompt))

        work = self._answer(prepare, sampling or Sampling(), stop, conversation_id, vault)
        events: Iterator[Event] = alone(work)
        yield from events

    def answer(
        self, prompt: Prompt, sampling: Sampling, stop: threading.Event, conversation_id: str
    ) -> Generator[Event | Step, None, None]:
        """Generate the reply to a prompt that is rendered already, like ``send``.

        Steps of the model are yielded before they are run: they can be run with those of other sessions. A
        cache that holds tokens back (``PromptCache.held_back``) is left for the caller to settle.
        """
        yield from self._answer(lambda: prompt, sampling, stop, conversation_id, None)

    def _answer(
        self,
        prepare: Callable[[], Prompt],
        sampling: Sampling,
        stop: threading.Event,
        conversation_id: str,
        vault: Vault | None,
    ) -> Iterator[Event | Step]:
        reply = Reply(began=time.perf_counter())
        certain = False
        try:
            yield from self._prompts.notices(conversation_id)
            with stopped_by(stop.is_set):
                prompt = prepare()
            yield from self._reuse(prompt.tokens, vault, conversation_id, reply)
            yield from self._send(prompt, sampling, stop, conversation_id, reply)
            certain = True
        except GeneratorExit:
            certain = True  # raised at a yield, where cache and tokens agree
            raise
        except PromptStopped:
            yield self._done("stopped", conversation_id, reply)
        except Exception as error:
            yield self._failed(error, conversation_id, reply.text, reply.reasoning)
        finally:
            if not (certain and self._cache.held_back):
                self._cache.settle(certain)

    def _turn(self, messages: Sequence[ChatMessage], prompt: list[int]) -> int | None:
        """Index in the prompt after the last user message, if the cache needs a checkpoint there."""
        return self._prompts.end_of_messages(messages, prompt) if self._cache.needs_checkpoints else None

    def _send(
        self,
        prompt: Prompt,
        sampling: Sampling,
        stop: threading.Event,
        conversation_id: str,
        reply: Reply,
    ) -> Iterator[Event | Step]:
        self.changed = True
        self._cache.restored = 0
        tokens = prompt.tokens
        turn = prompt.turn if self._cache.needs_checkpoints else None
        plan = self._memory.plan(self._cache, len(tokens))
        if plan.scheme is not None:
            for event in self.set_scheme(plan.scheme, stop=stop, conversation_id=conversation_id):
                if isinstance(event, Failed):
                    yield self._done("stopped", conversation_id, reply) if stop.is_set() else event
                    return
                yield event
            words = f"The prompt would not fit the cache's memory budget: it is read under {plan.scheme}."
            yield Notice(conversation_id, words, "warning")
        self._cache.pack_prompts(plan.pack_prompts)
        self._cache.hold_back(not plan.pack_prompts)
        self._cache.reset_peak()
        total = reply.prefilled
        begin = len(self._cache.tokens)
        yield PrefillProgress(conversation_id, 0, total, begin)
        if stop.is_set():
            yield self._done("stopped", conversation_id, reply)
            return
        reported = time.perf_counter()
        for end in (turn or 0, len(tokens) - 1):
            unread = tokens[len(self._cache.tokens) : end]
            try:
                for _ in self._cache.prefill_in_chunks(unread, stop.is_set):
                    yield PrefillProgress(conversation_id, len(self._cache.tokens) - begin, total, begin)
                    if (now := time.perf_counter()) - reported >= REPORT_INTERVAL_S:
                        reported = now
                        yield MemoryUpdate(conversation_id, self.memory())
                if unread and stop.is_set():
                    raise PrefillStopped
            except PrefillStopped:
                yield self._done("stopped", conversation_id, reply)
                return
            if turn == len(self._cache.tokens):
                self._cache.take_checkpoint()
        yield from self._generate(prompt, sampling, stop, conversation_id, reply)

    def _reuse(
        self, prompt: list[int], vault: Vault | None, conversation_id: str, reply: Reply
    ) -> Iterator[Event]:
        """Trim the cache to the prefix shared with the prompt, at most all but the prompt's last token."""
        cache = self._cache
        limit = self.model.context_limit
        if limit is not None and len(prompt) >= limit:
            raise ContextFull(len(prompt), limit)
        self.model.check_tokens(prompt)
        reply.prompt = len(prompt)
        if vault is not None:
            persistence.recall(cache, vault, conversation_id, prompt)
        shared = min(common_prefix(cache.tokens, prompt), len(prompt) - 1)
        restored = cache.restored
        cache.trim_to(shared)
        keep = len(cache.tokens)
        if shared - keep >= MIN_REREAD_NOTICE_TOKENS:
            sliding = any(layer.kind == "sliding" for layer in cache.report().layers)
            yield reread_notice(
                conversation_id, len(prompt), keep, "sliding-window" if sliding else "recurrent"
            )
        reply.restored = min(keep, restored)
        reply.reused = keep - reply.restored

    def _generate(
        self,
        prompt: Prompt,
        sampling: Sampling,
        stop: threading.Event,
        conversation_id: str,
        reply: Reply,
    ) -> Iterator[Event | Step]:
        cache, tokens, text, logprobs = self._cache, prompt.tokens, prompt.stream, prompt.logprobs
        sampling = resolve_sampling(sampling, self.model.info.sampling)
        limit = self.model.context_limit
        max_tokens = sampling.max_tokens if limit is None else min(sampling.max_tokens, limit - len(tokens))
        max_tokens = max(max_tokens, 1)
        decoder = Decoder(cache, tokens, sampling, max_tokens, self._lookup, logprobs=logprobs)
        reason: StopReason | None = None
        reported = time.perf_counter()
        try:
            if self._over_budget(text):
                yield from self._end_thought(decoder, text, conversation_id, reply, max_tokens)
            for token in decoder.steps():
                if isinstance(token, Step):
                    yield token
                    continue
                now = time.perf_counter()
                if not reply.generated:
                    reply.first_token = now
                    held = reply.prompt - reply.prefilled
                    yield PrefillProgress(conversation_id, reply.prefilled, reply.prefilled, held)
                reply.generated += 1
                reply.last_token = now
                reply.drafted, reply.accepted = decoder.drafted, decoder.accepted
                if logprobs is not None:
                    logprobs.add(token, reply.generated - 1)
                if text.is_end(token):
                    reason = "stop"
                else:
                    yield from self._emit(text.add(token), text, conversation_id, reply, now)
                if reason is None and self._over_budget(text):
                    yield from self._end_thought(decoder, text, conversation_id, reply, max_tokens)
                if reason is None:
                    reason = self._ended(text, stop, reply, max_tokens, limit)
                if reason is not None:
                    break
                if reply.generated % TILE == 0 and self._exceeds_memory():
                    yield from (news := self._step_down(decoder, conversation_id))
                    if not news:
                        reason = "memory"
                        break
                if now - reported >= REPORT_INTERVAL_S:
                    reported = now
                    yield MemoryUpdate(conversation_id, self.memory(), reply.decode_speed)
            if reason != "memory":
                yield from decoder.last_step()
        finally:
            decoder.close()
        rest = text.finish(cut=reason != "stop")
        yield from self._emit(rest, text, conversation_id, reply, time.perf_counter())
        yield self._done(reason or "length", conversation_id, reply)

    def _emit(
        self, spans: list[Span], text: TextStream, conversation_id: str, reply: Reply, now: float
    ) -> Iterator[Event]:
        """Record new spans of text in the reply and emit them."""
        if text.reasoning_tokens > reply.reasoning_tokens:
            reply.reasoning_tokens, reply.last_thought = text.reasoning_tokens, now
        reply.text, reply.reasoning = text.text, text.reasoning
        reply.takes_answer = text.took_answer
        for span in spans:
            yield TextDelta(conversation_id, span.text, span.part, span.takes_answer)

    def _over_budget(self, text: TextStream) -> bool:
        budget = self.thinking.budget
        return budget is not None and text.thinking and text.reasoning_tokens >= budget

    def _end_thought(
        self, decoder: Decoder, text: TextStream, conversation_id: str, reply: Reply, max_tokens: int
    ) -> Iterator[Event]:
        """Close a thought that has reached its budget, unless no token is left for the answer."""
        marks = self.model.reply_format
        closing = marks.controls.encode(marks.closing())
        if max_tokens - reply.generated <= len(closing):
            return
        decoder.force(closing)
        reply.generated += len(closing)
        for token in closing:
            yield from self._emit(text.add(token), text, conversation_id, reply, time.perf_counter())

    def _exceeds_memory(self) -> bool:
        """Whether the cache is larger than its budget, also once tokens that it held back are packed."""
        if not self._memory.exceeded(self._cache):
            return False
        self._cache.hold_back(False)
        self._cache.pack_due()
        return self._memory.exceeded(self._cache)

    def _step_down(self, decoder: Decoder, conversation_id: str) -> list[Event]:
        """Convert a cache that has reached its budget to a smaller scheme. Empty if that is impossible."""
        budget, cache = self._memory, self._cache
        scheme = budget.smaller_scheme(cache, len(cache.tokens)) if budget.limits.step_down else None
        if scheme is None or not decoder.pause():
            return []
        events = list(self.set_scheme(scheme, conversation_id=conversation_id))
        if not isinstance(events[-1], SchemeChanged) or budget.exceeded(cache):
            return []
        words = f"The cache has reached its memory budget: it continues under {scheme}."
        return [*events, Notice(conversation_id, words, "warning")]

    @staticmethod
    def _ended(
        text: TextStream, stop: threading.Event, reply: Reply, max_tokens: int, limit: int | None
    ) -> StopReason | None:
        if text.ended:
            return "stop"
        return "stopped" if stop.is_set() else reply.limit_reached(max_tokens, limit)

    def _done(self, reason: StopReason, conversation_id: str, reply: Reply) -> Done:
        if not self._cache.held_back:
            self._cache.settle(certain=True)
        return reply.done(reason, conversation_id, self.scheme, self.model.info.label, self.memory())

    @staticmethod
    def _failed(error: Exception, conversation_id: str, text: str = "", reasoning: str = "") -> Failed:
        tokens = error.tokens if isinstance(error, ContextFull) else 0
        return Failed(
            conversation_id,
            user_message(error),
            text,
            isinstance(error, ContextFull),
            reasoning,
            refused=isinstance(error, TqchatError),
            tokens=tokens,
        )

    def set_scheme(
        self,
        scheme: str,
        reread: bool = False,
        messages: Sequence[ChatMessage] = (),
        stop: threading.Event | None = None,
        conversation_id: str = "",
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Iterator[Event]:
        """Change the scheme of the live cache. The last event is ``SchemeChanged`` or ``Failed``.

        After an error or a stop the old cache is unchanged. Conversion works layer by layer; for its memory
        see ``kv.convert_in_place``. Re-reading builds a new cache beside the old one. A scheme that does not
        fit the memory budget is refused, or replaced by a smaller one with a notice, as for a reply.

        Args:
            reread: Prefill the transcript again, so that no earlier rounding remains.
            messages: The transcript; if empty, the cached tokens are prefilled.
            stop: Ends a conversion within one layer, a re-read within one chunk; the old scheme stays.
            progress: Called after each converted layer with the number done and the total.
        """
        began = time.perf_counter()
        previous, before = self.scheme, self.memory().bytes
        fresh: PromptCache | None = None
        stopped = stop.is_set if stop is not None else lambda: False
        try:
            name = parse_scheme(scheme).name
            if reread:
                target = self._prompts.transcript(messages) if messages else list(self._cache.tokens)
                fresh = PromptCache(self.model, name, self._draft)
                plan = self._memory.plan(fresh, len(target))
                if plan.scheme is not None:
                    yield self._stepped_down(conversation_id, name, plan.scheme)
                    name = plan.scheme
                    fresh = PromptCache(self.model, name, self._draft)
                fresh.pack_prompts(plan.pack_prompts)
                yield PrefillProgress(conversation_id, 0, len(target))
                try:
                    for done in fresh.prefill_in_chunks(target, stopped):
                        yield PrefillProgress(conversation_id, done, len(target))
                except PrefillStopped:
                    raise RereadStopped(previous) from None
                fresh.settle(certain=True)
                self._cache = fresh
            elif name != previous:
                if (fitting := self._memory.scheme_to_convert_to(self._cache, name)) != name:
                    yield self._stepped_down(conversation_id, name, fitting)
                    name = fitting
                spare = self._memory.spare_bytes(self._cache, name)
                self._cache.convert(name, stopped, progress, spare)
        except Exception as error:
            yield self._failed(error, conversation_id)
            return
        self.changed = self.changed or reread or name != previous
        report = self.memory()
        yield SchemeChanged(
            conversation_id=conversation_id,
            scheme=name,
            previous=previous,
            tokens=len(self._cache.tokens),
            seconds=time.perf_counter() - began,
            reread=reread,
            kept_rounding=report.rounded_tokens > 0,
            bytes_before=before,
            bytes_after=report.bytes,
            report=report,
        )

    def prepare_scheme(self, scheme: str, stop: threading.Event, conversation_id: str) -> Iterator[Event]:
        """Change the scheme for the reply that follows. If that fails or is stopped, the present one stays.

        Raises:
            UnknownScheme: if there is no such scheme.
        """
        if parse_scheme(scheme).name == self.scheme:
            return
        for event in self.set_scheme(scheme, stop=stop, conversation_id=conversation_id):
            if not isinstance(event, Failed):
                yield event
            elif not stop.is_set():
                words = f"{event.message} The reply is generated under {self.scheme}."
                yield Notice(conversation_id, words, "warning")

    @staticmethod
    def _stepped_down(conversation_id: str, scheme: str, fitting: str) -> Notice:
        words = f"{scheme} would not fit the cache's memory budget: the scheme changes to {fitting}."
        return Notice(conversation_id, words, "warning")

    def save(
        self, vault: Vault, conversation_id: str, interrupted: Callable[[], bool] = lambda: False
    ) -> int:
        """Save new tokens of the cache. Returns its size on disk in bytes, 0 if the save was interrupted.

        Args:
            interrupted: Called every few megabytes; ``True`` ends the save; the next one continues it.

        Raises:
            VaultError: if the save fails. Earlier saves stay usable.
        """
        size = persistence.save(self._cache, vault, conversation_id, interrupted)
        self.changed = self.changed and not size
        return size

    def restore(
        self, vault: Vault, conversation_id: str, messages: Sequence[ChatMessage]
    ) -> tuple[int, str | None]:
        """Restore the conversation's cache as far as it agrees with the transcript.

        The session's scheme becomes the one that the cache was saved under; ``set_scheme`` converts it, which
        is faster than reading the transcript again.

        Returns:
            The number of restored tokens, and the reason if messages are missing from them, else ``None``.
        """
        wanted = self._transcript(messages)
        self.transcript_tokens = len(wanted)
        cache = self._cache
        with suppress(UnknownScheme):
            if (saved := vault.scheme(conversation_id)) is not None and saved != cache.scheme:
                cache = PromptCache(self.model, saved, self._draft)
        restored, reason = persistence.restore(cache, vault, conversation_id, messages, wanted)
        if restored:
            self._cache = cache
        return restored, reason

    def forget_all_but(self, messages: Sequence[ChatMessage]) -> None:
        """Trim the cache to a transcript from which messages were deleted; the next save writes all of it."""
        self._cache.trim_to(common_prefix(self._cache.tokens, self._transcript(messages)))
        self._cache.forget_saved()
        self.changed = True

    def _transcript(self, messages: Sequence[ChatMessage]) -> list[int]:
        """The transcript's tokens; none if it is empty, or one that sending will explain."""
        try:
            return self._prompts.render(messages, add_generation_prompt=False)
        except TqchatError:
            return []

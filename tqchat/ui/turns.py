"""The engine's side of the chat: the one queue in front of it, and what its events mean for the database."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace

from tqchat.engine import commands, events
from tqchat.engine.memory.quality_profile import Profile
from tqchat.errors import TqchatError
from tqchat.kv.memory import MemoryReport
from tqchat.store.database import Conversation, Database, Message, SamplingChoice
from tqchat.ui import composing, sentences
from tqchat.ui.bridge import EngineLike
from tqchat.ui.chat_state import ChatState
from tqchat.ui.replies import ReplyWriter
from tqchat.ui.state import History, Reply, SchemeWish, Waiting
from tqchat.ui.tenancy import Tenancy
from tqchat.ui.transcript import for_engine
from tqchat.ui.view import View

YOUNG = 6
"""Messages up to which a conversation is given a title by the model."""
TELLING_TOKENS = 32
"""Tokens that must have been read for their speed to say something."""


class Turns(ChatState):
    """Answers what waits, one thing after another, and takes the engine's events."""

    def __init__(
        self,
        database: Database,
        view: View,
        *,
        scheme: str,
        sampling: commands.Sampling | None = None,
        system_prompt: str | None = None,
        profiles: Callable[[events.ModelInfo], Profile | None] = lambda model: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(scheme)
        self.database = database
        self.view = view
        self.default_scheme = scheme
        self.sampling = sampling or commands.Sampling()
        self.default_prompt = self._draft_prompt = system_prompt
        self._profiles = profiles
        self._converting: SchemeWish | None = None
        self._pausing: str | None = None
        self._tenancy = Tenancy(database.leases)
        self._engine: EngineLike | None = None
        self._titled: set[str] = set()
        self._reading_from = (0.0, 0)
        self._clock = clock
        self._writer = ReplyWriter(database, view, clock)

    def connect(self, engine: EngineLike, model: str | None) -> None:
        """Take an engine into service and let it load a model."""
        self._engine = engine
        self.load_model(model)

    def load_model(self, ref: str | None) -> None:
        """Load another model; the one before it stays until the new one is ready."""
        if self._engine is None:
            return
        self.loading = events.ModelProgress(ref or "starter", "loading")
        self._engine.submit(commands.LoadModel(ref))
        self.view.figures_changed()

    def inherited(self, name: str) -> str:
        """What holds for a sampling setting that a conversation leaves open: the user's, else the model's."""
        given = {other: value for other, value in self.sampling_choice.given.items() if other != name}
        chosen = replace(self.sampling, **given)  # type: ignore[arg-type]
        if self.model is not None:
            chosen = commands.resolve_sampling(chosen, self.model.sampling)
        value: float | None = getattr(chosen, name)
        if value is not None:
            return f"{value:g}"
        if name == "seed":
            return "another each time"
        return "the model's own" if self.model is None else "off"

    def new(self) -> None:
        """Begin a conversation. It comes into the database with its first message."""
        self.conversation, self.messages, self.fork = None, [], None
        self.places, self.read_only = {}, None
        self._draft_scheme, self._draft_prompt = self.default_scheme, self.default_prompt
        self._draft_sampling = SamplingChoice()
        self._let_go()
        self.view.transcript_changed()

    def delete(self, conversation_id: str) -> None:
        """Delete a conversation and its cache."""
        if self.reply and self.reply.conversation_id == conversation_id:
            if self._engine:
                self._engine.stop()
            self.reply = None
        self.waiting = [waiting for waiting in self.waiting if waiting.conversation_id != conversation_id]
        if self._wish and self._wish.conversation_id == conversation_id:
            self._wish = None
        self.database.delete(conversation_id)
        self._removed.append(None)
        self.caches.forget(conversation_id)
        if self._engine:
            self._engine.submit(commands.ForgetConversation(conversation_id))
        if self._engine_conversation == conversation_id:
            self._engine_conversation = None
        if self._shown(conversation_id):
            self.new()
        self.view.conversations_changed()

    # What the engine says

    def handle(self, event: events.Event) -> None:
        """Take one engine event. What the database then refuses is said, and the engine goes on."""
        try:
            self._take(event)
        except TqchatError as error:
            self.view.say(str(error), "error")
            self._free()
        self.view.figures_changed()

    def _take(self, event: events.Event) -> None:
        match event:
            case events.ModelProgress():
                self.loading = event
                self._pump()
            case events.ModelReady():
                self._model_ready(event)
            case events.ModelFailed():
                self._model_failed(event)
            case events.Opened():
                self._opened(event)
            case events.PrefillProgress():
                self._read_on(event)
                self.activity = "reading" if self.activity == "answering" else self.activity
            case events.Notice():
                if event.conversation_id is None or self._shown(event.conversation_id):
                    self.view.say(event.text, event.severity)
            case events.TextDelta():
                self._grow(event)
            case events.MemoryUpdate():
                self._count(event.conversation_id, event.report)
                self.speed = event.tokens_per_second
            case events.Done():
                self._done(event)
            case events.Failed():
                self._failed(event)
            case events.Composed():
                self._composed(event)
            case events.Saved():
                self.caches.disk_bytes[event.conversation_id] = event.bytes
                self.view.conversations_changed()
            case events.SaveFailed():
                self.view.say(event.message, "warning")
            case events.ConversionProgress():
                self.converted = event
            case events.SchemeChanged():
                self._scheme_changed(event)

    def _read_on(self, event: events.PrefillProgress) -> None:
        """So much of a prompt is read. How long the rest takes shows from the second look on."""
        now, before = self._clock(), self.prefill
        if before is None or event.done <= before.done or event.total != before.total:
            self._reading_from = (now, event.done)
        self.prefill = event
        since, done = self._reading_from
        speed = (event.done - done) / (now - since) if now > since and event.done > done else self.read_speed
        self.reading_seconds = (event.total - event.done) / speed if speed else None

    def _model_ready(self, event: events.ModelReady) -> None:
        self.model, self.loading = event.info, None
        self.profile, self._chosen = self._profiles(event.info), {}
        self.scheme_before, self.read_speed = {}, None
        self.caches.another_model()  # The engine brings the conversation that it has open back by itself.
        self._pump()

    def _model_failed(self, event: events.ModelFailed) -> None:
        self.loading = None
        paused, self._pausing = self._pausing, None
        if event.ref == paused:
            self.view.say(
                f"The download of {event.ref} is paused; loaded again, it goes on where it stopped."
            )
        else:
            stays = f" {self.model.name} stays." if self.model else ""
            self.view.say(f"{event.message}{stays}", "error")
        self._pump()

    def pause_download(self) -> bool:
        """Stop a download; what has arrived stays. Whether there was one."""
        if self._engine is None or self.loading is None or self.loading.stage != "downloading":
            return False
        self._pausing = self.loading.ref
        self._engine.cancel_download()
        return True

    def _opened(self, event: events.Opened) -> None:
        if (sentence := sentences.opened(event)) is not None:
            self.caches.returned[event.conversation_id] = sentence
        if self.activity == "opening":
            self._free()

    def _grow(self, event: events.TextDelta) -> None:
        reply = self.reply
        if reply is None or reply.conversation_id != event.conversation_id:
            return
        self.activity, self.prefill = "answering", None
        reply.text += event.text
        self._writer.grow(reply)
        if self._shown(event.conversation_id):
            self.view.reply_grew(event.text)

    def _count(self, conversation_id: str, report: MemoryReport) -> None:
        """The engine has counted a cache: the next point of its curve, which outlives restarts."""
        if conversation_id not in self.caches.histories:
            self._recall_curve(conversation_id)
        self.caches.count(conversation_id, report)

    def _recall_curve(self, conversation_id: str) -> None:
        """Draw the curve from what is on record of the branch."""
        if self.model is not None:
            said = self.messages if self._shown(conversation_id) else self.database.messages(conversation_id)
            self.caches.histories[conversation_id] = History.of(said, self.model.name)

    def _done(self, event: events.Done) -> None:
        reply, self.reply = self.reply, None
        self.caches.returned.pop(event.conversation_id, None)
        self._count(event.conversation_id, event.report)
        self.speed = event.decode_tokens_per_second or None
        if event.counts.prefilled >= TELLING_TOKENS:
            self.read_speed = event.prompt_tokens_per_second
        if reply is None or reply.conversation_id != event.conversation_id:
            self._free()
            return
        stopped = event.stop_reason == "stopped"
        reply.text = _whole(reply, event.text)
        if stopped and not reply.text.strip():
            self._discard(reply)
            self._free()
            return
        self._writer.finish(reply, event)
        if reply.message_id:
            self.endings.pop(reply.message_id, None)
            if ending := sentences.ending(event.stop_reason):
                self.endings[reply.message_id] = ending
        self._finish(reply)

    def _composed(self, event: events.Composed) -> None:
        """A title: taken while nobody has given one, and if it can stand in a list."""
        if not event.text:
            self._titled.discard(
                event.conversation_id
            )  # It gave way to something; the next reply asks again.
            return
        title = composing.title_from_answer(event.text)
        with contextlib.suppress(TqchatError):  # Deleted, or another process's by now: no title is needed.
            if title and self.database.conversation(event.conversation_id).title_is_automatic:
                self.database.rename(event.conversation_id, title, automatic=True)
                self._reread_rows()
                self.view.conversations_changed()

    def _ask_for_title(self, conversation_id: str) -> None:
        """Have a young conversation named by the model, while the engine has nothing else to do."""
        if self._engine is None or self.model is None or self.activity is not None or self.waiting:
            return
        if self.model.weight_bytes < composing.LEAST_WEIGHTS or conversation_id in self._titled:
            return
        if not self.database.conversation(conversation_id).title_is_automatic:
            return
        said = [one for one in self.database.messages(conversation_id) if one.role != "system"]
        if 2 <= len(said) <= YOUNG and said[-1].role == "assistant":
            self._titled.add(conversation_id)
            request = composing.title_request(said)
            self._engine.submit(commands.Compose(conversation_id, "title", request, composing.TITLE_TOKENS))

    def _failed(self, event: events.Failed) -> None:
        reply, self.reply = self.reply, None
        if self._wish and self._wish.conversation_id == event.conversation_id:
            self._wish = None
        if reply is not None and reply.conversation_id == event.conversation_id:
            reply.text = _whole(reply, event.text) if event.text else reply.text
            if reply.text.strip():
                self._writer.keep(reply)
            self._finish(reply)
        else:
            self.reply = reply
            if self.active_id == event.conversation_id:
                self._free()
        self.view.say(event.message, "error")

    def _scheme_changed(self, event: events.SchemeChanged) -> None:
        self._count(event.conversation_id, event.report)
        wish, self._converting = self._converting, None
        self.scheme_before[event.conversation_id] = self.database.conversation(event.conversation_id).scheme
        if wish is not None and wish.conversation_id == event.conversation_id:
            self.database.set_scheme(event.conversation_id, wish.scheme)
        else:
            chosen = self.database.conversation(event.conversation_id).scheme
            if self._resolved(event.conversation_id, chosen) != event.scheme:
                self.database.set_scheme(event.conversation_id, event.scheme)
        self._reread_rows()
        self.caches.returned.pop(event.conversation_id, None)
        self.view.say(sentences.scheme_changed(event))
        if self.activity == "converting":
            self._free()

    def close(self) -> None:
        """Keep what has been said of a reply that will not be finished. The engine is gone by now."""
        if self.reply is not None and self.reply.text.strip():
            self._writer.keep(self.reply)
        self.reply = None
        if self._wish is not None:
            # Too late to convert: next time the conversation is read again, under the scheme that was wanted.
            self.database.set_scheme(self._wish.conversation_id, self._wish.scheme)
        self._tenancy.keep_only([])

    # The one queue in front of the engine

    def _pump(self) -> None:
        """Give the engine its next work, if it is free and has a model."""
        # While another model is downloaded, the one before it goes on answering.
        loading = self.loading is not None and self.loading.stage == "loading"
        if self._engine is None or self.model is None or loading or self.activity is not None:
            return
        if self.waiting:
            self._answer(self.waiting.pop(0))
        elif self._wish is not None:
            wish, self._wish = self._wish, None
            self._converting = wish
            scheme = self._resolved(wish.conversation_id, wish.scheme)
            self.activity, self.active_id = "converting", wish.conversation_id
            self.converted = None
            self._engine_conversation = wish.conversation_id
            turns = for_engine(
                self.database.messages(wish.conversation_id),
                self.database.conversation(wish.conversation_id).system_prompt,
            )
            self._engine.submit(commands.SetScheme(wish.conversation_id, scheme, wish.reread, turns))
        elif self.conversation and not self.read_only and self._engine_conversation != self.conversation.id:
            self.activity, self.active_id = "opening", self.conversation.id
            self._open_in_engine(self.conversation, self.messages)

    def _open_in_engine(self, conversation: Conversation, messages: list[Message]) -> None:
        assert self._engine is not None
        self._engine_conversation = conversation.id
        self._engine.submit(
            commands.OpenConversation(
                conversation.id,
                for_engine(messages, conversation.system_prompt),
                self._resolved(conversation.id, conversation.scheme),
            )
        )

    def _answer(self, waiting: Waiting) -> None:
        assert self._engine is not None and self.model is not None
        conversation = self.database.conversation(waiting.conversation_id)
        messages = self.database.messages(conversation.id)
        if self._engine_conversation != conversation.id:
            self._open_in_engine(conversation, messages)
        if conversation.model != self.model.ref:
            self.database.set_model(conversation.id, self.model.ref)
        self.reply = Reply(conversation.id, waiting.head_before, waiting.returns, self.model.name)
        self.activity, self.active_id, self.speed = "answering", conversation.id, None
        if waiting.continues:
            last = messages[-1]
            self.reply.message_id, self.reply.text, self.reply.continued = last.id, last.content, last
        if self._shown(conversation.id):
            if waiting.continues:
                self.view.transcript_changed()
            else:
                self.view.reply_started(self.reply)
        turns = for_engine(messages, conversation.system_prompt)
        sampling = replace(self.sampling, **conversation.sampling.given)  # type: ignore[arg-type]
        scheme = self._resolved(conversation.id, conversation.scheme)
        self._engine.submit(commands.Send(conversation.id, turns, scheme, sampling, waiting.continues))

    def _free(self) -> None:
        self.activity = self.active_id = self.prefill = None
        self._pump()
        self._let_go()

    def _let_go(self) -> None:
        """Other processes may write what is neither shown nor worked on here."""
        shown = self.conversation.id if self.conversation else None
        wish = self._wish.conversation_id if self._wish else None
        waiting = [one.conversation_id for one in self.waiting]
        self._tenancy.keep_only([shown, wish, self.active_id, *waiting])

    def _finish(self, reply: Reply) -> None:
        if self._shown(reply.conversation_id):
            self._reread_rows()
            finished = next((message for message in self.messages if message.id == reply.message_id), None)
            self.view.reply_finished(finished)
        self.view.conversations_changed()
        self._free()
        self._ask_for_title(reply.conversation_id)

    def _discard(self, reply: Reply) -> None:
        """Nothing was answered: as if nothing had been asked, and the words return to the person."""
        if self._shown(reply.conversation_id):
            self.view.reply_finished(None)
        self._unsend(reply.conversation_id, reply.head_before, reply.returns)

    def _unsend(self, conversation_id: str, head_before: str | None, returns: str | None) -> None:
        shown = self._shown(conversation_id)
        self.database.rewind_to(conversation_id, head_before)
        conversation = self.database.conversation(conversation_id)
        said = [message for message in self.database.messages(conversation_id) if message.role != "system"]
        if not said and conversation.title_is_automatic:
            # It began with this message: an empty conversation in the list would only be in the way.
            self.delete(conversation_id)
            self._removed.pop()  # The person deleted nothing.
        else:
            self._reread_rows()
            if shown:
                self.view.transcript_changed()
        if shown and returns is not None:
            self.view.prompt_returned(returns)
        self.view.conversations_changed()
        self.view.figures_changed()

    def _reread_rows(self) -> None:
        """The shown conversation as the database has it now."""
        if self.conversation:
            before = [one.id for one in self.messages if one.conversation_id == self.conversation.id]
            self.conversation = self.database.conversation(self.conversation.id)
            self.messages = self.database.messages(self.conversation.id)
            if [one.id for one in self.messages[: len(before)]] != before:
                self._recall_curve(self.conversation.id)  # Another branch has another curve.
            self.places = self.database.version_positions(self.conversation.id)


def _whole(reply: Reply, text: str) -> str:
    """What the engine says it wrote, behind what a continued reply said before."""
    return reply.continued.content + text if reply.continued else text

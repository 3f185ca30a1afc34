"""Replies: sends queued turns to the engine, and the generated text to the database and the view."""

from __future__ import annotations

from collections.abc import Callable

from tqchat.engine import commands, events
from tqchat.store.database import Database
from tqchat.ui.controller.cache.figures import CacheFigures
from tqchat.ui.controller.cache.restore import CacheRestore
from tqchat.ui.controller.cache.schemes import SchemeChanges
from tqchat.ui.controller.conversation.deletion import Deletions
from tqchat.ui.controller.conversation.open_conversation import OpenConversation
from tqchat.ui.controller.conversation.sampling import SamplingSettings
from tqchat.ui.controller.conversation.thinking import ThinkingSettings
from tqchat.ui.controller.engine.connection import EngineConnection
from tqchat.ui.controller.engine.models import ModelState
from tqchat.ui.controller.engine.work import EngineWork
from tqchat.ui.controller.records import QueuedTurn, Reply
from tqchat.ui.controller.texts import sentences
from tqchat.ui.controller.texts.transcript import for_engine
from tqchat.ui.controller.turns.reply_writer import ReplyWriter
from tqchat.ui.controller.view import View


class Replies:
    """Starts replies and takes the engine's events about them.

    ``on_finished`` is called with the conversation's id after a reply, when the engine has its next job.

    Attributes:
        decode_speed: Tokens per second of the reply under way, or of the last one.
        endings: Which limit cut off replies of this process, by message id; they are stored as ``stopped``.
        closing: Whether the app is quitting: a first message that was read in part stays then, unanswered, so
            that the next start goes on from the saved cache.
    """

    def __init__(
        self,
        database: Database,
        view: View,
        engine: EngineConnection,
        shown: OpenConversation,
        models: ModelState,
        work: EngineWork,
        *,
        schemes: SchemeChanges,
        sampling: SamplingSettings,
        thinking: ThinkingSettings,
        caches: CacheFigures,
        restore: CacheRestore,
        deletion: Deletions,
        writer: ReplyWriter,
        on_finished: Callable[[str], None] = lambda conversation_id: None,
    ) -> None:
        self._database, self._view, self._engine = database, view, engine
        self._shown, self._models, self._work = shown, models, work
        self._schemes, self._sampling, self._thinking, self._caches = schemes, sampling, thinking, caches
        self._restore, self._deletion, self._writer = restore, deletion, writer
        self._on_finished = on_finished
        self.decode_speed: float | None = None
        self.endings: dict[str, str] = {}
        self.closing = False

    def start(self) -> bool:
        """Send the oldest queued turn to the engine; whether there was one.

        A message is in the file before its reply begins.
        """
        if not self._work.waiting or self._models.current is None:
            return False
        if not self._database.is_written(self._work.waiting[0].conversation_id):
            return False
        turn, model = self._work.waiting.pop(0), self._models.current
        conversation = self._database.conversation(turn.conversation_id)
        messages = self._database.messages(conversation.id)
        tokens_before = self._caches.tokens_of(conversation.id)
        self._restore.ensure_open(conversation, messages)
        if conversation.model != model.ref:
            self._database.set_model(conversation.id, model.ref)
        reply = Reply(
            conversation.id, turn.head_before, turn.prompt_text, self._models.label(conversation.adapter)
        )
        reply.tokens_before = tokens_before
        if turn.continues:
            last = messages[-1]
            reply.message_id, reply.text, reply.continued = last.id, last.content, last
            reply.reasoning = last.reasoning or ""
        self._work.reply, self.decode_speed = reply, None
        self._work.begin("answering", conversation.id)
        if self._shown.is_shown(conversation.id):
            if turn.continues:
                self._view.transcript_changed()
            else:
                self._view.reply_started(reply)
        self._engine.submit(
            commands.Send(
                conversation.id,
                for_engine(messages, conversation.system_prompt),
                self._schemes.resolve(conversation.id, self._schemes.of(conversation)),
                self._sampling.of(conversation),
                turn.continues,
                began=conversation.began,
                thinking=self._thinking.of(conversation),
                adapter=conversation.adapter,
            )
        )
        return True

    def grew(self, event: events.TextDelta) -> None:
        """The engine has generated text."""
        reply = self._work.reply
        if reply is None or reply.conversation_id != event.conversation_id:
            return
        self._work.activity, self._work.prefill = "answering", None
        reply.grow(event)
        self._writer.grew(reply)
        if self._shown.is_shown(event.conversation_id):
            self._view.reply_grew(event)

    def measured(self, event: events.MemoryUpdate) -> None:
        """Take the current decode speed."""
        self.decode_speed = event.tokens_per_second

    def done(self, event: events.Done) -> None:
        """A reply is complete or was stopped."""
        reply, self._work.reply = self._work.reply, None
        self._caches.restore_notes.pop(event.conversation_id, None)
        self._caches.finished(event)
        self._models.measured(event)
        self.decode_speed = event.decode_tokens_per_second or None
        if reply is None or reply.conversation_id != event.conversation_id:
            self._work.end()
            return
        reply.replace(event)
        if event.stop_reason == "stopped" and reply.is_empty:
            if self._shown.is_shown(reply.conversation_id):
                self._view.reply_finished(None)
            if not (self.closing and event.report.tokens and self._is_first(reply)):
                self.withdraw(reply)
            self._work.end()
            return
        self._writer.write_finished(reply, event)
        if reply.message_id:
            self.endings.pop(reply.message_id, None)
            if ending := sentences.ending(event.stop_reason):
                self.endings[reply.message_id] = ending
        self._finish(reply)

    def failed(self, event: events.Failed) -> None:
        """A reply, or other work on a conversation, has failed."""
        reply = self._work.reply
        if reply is not None and reply.conversation_id == event.conversation_id:
            self._work.reply = None
            if event.tokens:
                self._caches.counted[event.conversation_id] = event.tokens
            if event.text or event.reasoning:
                reply.replace(event)
            if not reply.is_empty:
                self._writer.write_unfinished(reply)
            self._finish(reply)
        elif self._work.conversation_id == event.conversation_id:
            self._work.end()
        self._view.say(event.message, "error")

    def _finish(self, reply: Reply) -> None:
        if self._shown.is_shown(reply.conversation_id):
            self._shown.reread()
            messages = self._shown.messages
            finished = next((message for message in messages if message.id == reply.message_id), None)
            self._view.reply_finished(finished)
        self._view.conversations_changed()
        self._work.end()
        self._on_finished(reply.conversation_id)

    def _is_first(self, turn: Reply) -> bool:
        """Whether a conversation would be deleted, with its cache, if this turn were withdrawn."""
        conversation = self._database.conversation(turn.conversation_id)
        asked = [one for one in self._database.messages(turn.conversation_id) if one.role != "system"]
        return conversation.title_is_automatic and len(asked) == 1

    def withdraw(self, turn: Reply | QueuedTurn) -> None:
        """Undo a turn that was not answered: the user's text goes back into the prompt.

        A conversation that began with it is deleted.
        """
        shown = self._shown.is_shown(turn.conversation_id)
        self._database.rewind_to(turn.conversation_id, turn.head_before)
        conversation = self._database.conversation(turn.conversation_id)
        messages = self._database.messages(turn.conversation_id)
        if conversation.title_is_automatic and all(message.role == "system" for message in messages):
            self._deletion.discard(turn.conversation_id, withdrawn=True)
        else:
            self._shown.reread()
            if shown:
                self._view.transcript_changed()
            if isinstance(turn, Reply):
                if shown:
                    self._caches.branch_changed(turn.conversation_id)
                if turn.tokens_before or not shown:
                    self._caches.counted[turn.conversation_id] = turn.tokens_before
        if shown and turn.prompt_text is not None:
            self._view.prompt_returned(turn.prompt_text)
        self._view.conversations_changed()
        self._view.figures_changed()

    def close(self) -> None:
        """Write the text so far of an unfinished reply."""
        if self._work.reply is not None and not self._work.reply.is_empty:
            self._writer.write_unfinished(self._work.reply)
        self._work.reply = None

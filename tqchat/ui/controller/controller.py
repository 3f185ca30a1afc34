"""The chat without a screen: composes the controller's parts and routes engine events to them."""

from __future__ import annotations

import time
from collections.abc import Callable

from tqchat.engine import commands, events
from tqchat.engine.memory.quality_profile import Profile
from tqchat.errors import TqchatError
from tqchat.store.database import Database, UnknownConversation
from tqchat.ui.controller.cache.figures import CacheFigures
from tqchat.ui.controller.cache.restore import CacheRestore
from tqchat.ui.controller.cache.schemes import SchemeChanges
from tqchat.ui.controller.context_limit import ContextLimit
from tqchat.ui.controller.conversation.deletion import Deletions
from tqchat.ui.controller.conversation.leases import ConversationLeases
from tqchat.ui.controller.conversation.open_conversation import OpenConversation
from tqchat.ui.controller.conversation.sampling import SamplingSettings
from tqchat.ui.controller.conversation.thinking import ThinkingSettings
from tqchat.ui.controller.conversation.titles import Titles
from tqchat.ui.controller.conversation.tree import TranscriptTree
from tqchat.ui.controller.engine.connection import EngineConnection, EngineLike
from tqchat.ui.controller.engine.models import ModelState
from tqchat.ui.controller.engine.work import EngineWork
from tqchat.ui.controller.turns.replies import Replies
from tqchat.ui.controller.turns.reply_writer import ReplyWriter
from tqchat.ui.controller.turns.turns import Turns
from tqchat.ui.controller.view import View


class Controller:
    """A user's operations on conversations, by part: ``controller.turns.send("Hello")``.

    Every method is called on the screen's thread, ``handle`` for engine events too.

    Attributes:
        models: The loaded model, the one being loaded.
        work: What the engine is doing, and what is queued for it.
        shown: The conversation that is shown.
        sampling: Its sampling settings.
        thinking: Whether and how much its model reasons.
        caches: Cache sizes.
        schemes: Cache schemes and their changes.
        tree: Versions and branches of messages.
        deletion: Deleting and restoring.
        context: The context limit.
        replies: From the queue to the engine, and from its events to the database.
        turns: Send, regenerate, continue, stop.
        titles: Automatic titles.
    """

    def __init__(
        self,
        database: Database,
        view: View,
        *,
        scheme: str,
        sampling: commands.Sampling | None = None,
        system_prompt: str | None = None,
        thinking: commands.Thinking | None = None,
        profiles: Callable[[events.ModelInfo], Profile | None] = lambda model: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.database, self.view = database, view
        self._engine = engine = EngineConnection()
        self.models = models = ModelState(engine, view, profiles)
        self.work = work = EngineWork(engine, models, clock)
        self._leases = ConversationLeases(database.leases, self._conversations_in_use)
        self.shown = shown = OpenConversation(
            database,
            view,
            self._leases,
            work,
            scheme=scheme,
            system_prompt=system_prompt,
            on_branch_changed=lambda conversation_id: self.caches.branch_changed(conversation_id),
        )
        self.sampling = SamplingSettings(database, shown, models, sampling)
        self.thinking = ThinkingSettings(database, shown, models, thinking)
        self.caches = caches = CacheFigures(database, shown, models, work)
        self.schemes = schemes = SchemeChanges(
            database, view, engine, shown, models, work, caches, self.thinking
        )
        self.tree = tree = TranscriptTree(database, view, shown, work)
        self.deletion = Deletions(database, view, engine, shown, tree, work, schemes, caches)
        self.titles = Titles(database, view, engine, shown, models, work)
        self.context = ContextLimit(database, view, engine, shown, tree, models, work, caches)
        self._restore = CacheRestore(engine, shown, work, schemes, caches, self.thinking)
        self.replies = Replies(
            database,
            view,
            engine,
            shown,
            models,
            work,
            schemes=schemes,
            sampling=self.sampling,
            thinking=self.thinking,
            caches=caches,
            restore=self._restore,
            deletion=self.deletion,
            writer=ReplyWriter(database, view, clock),
            on_finished=self._reply_finished,
        )
        self.turns = Turns(
            database,
            view,
            engine,
            shown,
            tree,
            models,
            work,
            withdraw=self.replies.withdraw,
        )
        work.serve(
            [self.replies.start, schemes.start_pending, self._restore.start],
            when_free=self._leases.release_unused,
        )

    def connect(self, engine: EngineLike, model: str | None) -> None:
        """Use an engine, and have it load a model."""
        self._engine.connect(engine)
        self.models.load(model)

    def use_defaults(self, scheme: str, system_prompt: str | None, sampling: commands.Sampling) -> None:
        """Change the settings, for new conversations and for the next replies."""
        self.shown.use_defaults(scheme, system_prompt)
        self.sampling.defaults = sampling
        self.schemes.forget_auto_choices()

    def handle(self, event: events.Event) -> None:
        """Take an engine event. Database errors are shown, and the engine starts its next job."""
        try:
            self._route(event)
        except UnknownConversation:  # deleted while the engine worked on it
            self.work.end()
        except TqchatError as error:
            self.view.say(str(error), "error")
            self.work.end()
        self.view.figures_changed()

    def written(self) -> None:
        """All writes are in the file: start a reply that waits for that."""
        self.work.start_next()

    def follow_file(self) -> None:
        """Go on with the file that is at the database's path now, if it was removed or replaced."""
        if not self.database.is_replaced():
            return
        removed = not self.database.path.exists()
        self.database.follow(set(self._conversations_in_use()))
        goes_on = "the conversation shown here goes on in" if self.shown.conversation else "tqchat uses"
        where = "a new one" if removed else "the new one"
        how = "removed" if removed else "replaced"
        self.view.say(f"The file of the conversations was {how}; {goes_on} {where}.", "warning")
        self.view.conversations_changed()

    def close(self, write_timeout_s: float = 0.0) -> bool:
        """Write what is unfinished and release the leases. The engine has ended by now.

        Returns:
            Whether all is in the file; ``False`` if that took longer than ``write_timeout_s``.
        """
        self.replies.close()
        written = self.database.finish(write_timeout_s)
        self._leases.release_all()
        return written

    def _route(self, event: events.Event) -> None:
        match event:
            case events.ModelProgress():
                self.models.progressed(event)
                self.work.start_next()
            case events.ModelReady():
                self.models.ready(event)
                self.schemes.model_changed()
                if event.info.device.startswith("cuda"):
                    self._engine.submit(commands.WarmUp(self.schemes.in_force))
                self.caches.forget_live()  # The engine restores the cache of the open conversation by itself.
                self.work.start_next()
            case events.ModelFailed():
                self.models.failed(event)
                self.work.start_next()
            case events.Opened():
                self._restore.opened(event)
            case events.PrefillProgress():
                self.work.prefilled(event)
                if self.work.activity != "summing up":  # which reads another prompt than the conversation's
                    self.caches.counted[event.conversation_id] = event.held + event.total
            case events.Notice():
                if event.conversation_id is None or self.shown.is_shown(event.conversation_id):
                    self.view.say(event.text, event.severity)
            case events.TextDelta():
                self.replies.grew(event)
            case events.MemoryUpdate():
                self.caches.measured(event)
                self.replies.measured(event)
            case events.Done():
                self.replies.done(event)
            case events.Failed():
                self._failed(event)
            case events.Composed():
                if event.purpose == "summary":
                    self.context.summarised(event)
                else:
                    self.titles.answered(event)
            case events.Saved():
                self.caches.saved(event)
                self.view.conversations_changed()
            case events.SaveFailed():
                self.view.say(event.message, "warning")
            case events.ConversionProgress():
                self.schemes.progress = event
            case events.RequestsUpdate():
                self.caches.requests = event
            case events.SchemeChanged():
                self.schemes.changed(event)

    def _failed(self, event: events.Failed) -> None:
        self.context.summary_failed()
        self.schemes.failed(event.conversation_id)
        self.replies.failed(event)
        if event.context_full and self.shown.is_shown(event.conversation_id):
            self.view.context_is_full()

    def _reply_finished(self, conversation_id: str) -> None:
        self.titles.request(conversation_id)
        self.context.warn_if_nearly_full(conversation_id)

    def _conversations_in_use(self) -> list[str | None]:
        waiting = [turn.conversation_id for turn in self.work.waiting]
        return [self.shown.id, *self.schemes.pending_ids, self.work.conversation_id, *waiting]

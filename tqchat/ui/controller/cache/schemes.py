"""Cache schemes of conversations: the choice, how ``auto`` is resolved, and changes."""

from __future__ import annotations

from tqchat.engine import commands, events
from tqchat.engine.memory.auto_scheme import SchemeChoice, choose_for_model
from tqchat.store.database import AUTO, Database
from tqchat.ui.controller.cache.figures import CacheFigures
from tqchat.ui.controller.conversation.open_conversation import OpenConversation
from tqchat.ui.controller.conversation.thinking import ThinkingSettings
from tqchat.ui.controller.engine.connection import EngineConnection
from tqchat.ui.controller.engine.models import ModelState
from tqchat.ui.controller.engine.work import EngineWork
from tqchat.ui.controller.records import PendingScheme
from tqchat.ui.controller.texts import sentences
from tqchat.ui.controller.texts.transcript import for_engine
from tqchat.ui.controller.view import View


class SchemeChanges:
    """Sets schemes; a conversation with a cache is converted as soon as the engine is free.

    Attributes:
        progress: Progress of the conversion under way.
        previous: The scheme before the last change, by conversation, since the model was loaded.
    """

    def __init__(
        self,
        database: Database,
        view: View,
        engine: EngineConnection,
        shown: OpenConversation,
        models: ModelState,
        work: EngineWork,
        caches: CacheFigures,
        thinking: ThinkingSettings,
    ) -> None:
        self._database, self._view, self._engine = database, view, engine
        self._shown, self._models, self._work, self._caches = shown, models, work, caches
        self._thinking = thinking
        self._auto_choices: dict[str, SchemeChoice] = {}
        self._pending: PendingScheme | None = None
        self._converting: PendingScheme | None = None
        self.progress: events.ConversionProgress | None = None
        self.previous: dict[str, str] = {}

    @property
    def chosen(self) -> str:
        """The scheme set for the shown conversation or the new one; may be ``auto``."""
        conversation = self._shown.conversation
        return conversation.scheme if conversation else self._shown.new_conversation.scheme

    @property
    def auto_choice(self) -> SchemeChoice:
        """The scheme that ``auto`` stands for in the shown conversation, with the reason."""
        return self._auto_choice(self._shown.id or "")

    @property
    def in_force(self) -> str:
        """The scheme of the shown conversation's cache, ``auto`` resolved."""
        return self.auto_choice.scheme if self.chosen == AUTO else self.chosen

    @property
    def label(self) -> str:
        """``turbo4``, or ``auto: turbo0v4``."""
        return f"auto: {self.in_force}" if self.chosen == AUTO else self.chosen

    @property
    def pending_id(self) -> str | None:
        """The conversation whose change is pending."""
        return self._pending.conversation_id if self._pending else None

    def resolve(self, conversation_id: str, scheme: str) -> str:
        """The scheme of a conversation's setting, ``auto`` resolved."""
        return self._auto_choice(conversation_id).scheme if scheme == AUTO else scheme

    def _auto_choice(self, conversation_id: str) -> SchemeChoice:
        """A conversation keeps its choice until another model is loaded or the settings change."""
        found = self._auto_choices.get(conversation_id)
        if found is None:
            budget = self._models.memory_budget
            found = choose_for_model(self._models.current, self._models.profile, budget=budget)
            if self._models.current is not None:
                self._auto_choices[conversation_id] = found
        return found

    def set(self, scheme: str, reread: bool = False) -> None:
        """Set the shown conversation's scheme.

        A cache is converted, or built again from the transcript with ``reread``.
        """
        conversation = self._shown.conversation
        if conversation is None:
            self._shown.new_conversation.scheme = scheme
        elif self._shown.read_only:
            self._view.say(self._shown.read_only, "warning")
        elif not self._caches.exists or (
            not reread and self.resolve(conversation.id, scheme) == self.in_force
        ):
            self._database.set_scheme(conversation.id, scheme)
            self._shown.reread()
        else:
            self._pending = PendingScheme(conversation.id, scheme, reread)
            self._work.start_next()
            if self._pending is not None:
                loaded = self._models.current is not None
                when = "when this reply is done" if loaded else "once the model is loaded"
                self._view.say(f"Changes to {scheme} {when}.")
        self._view.figures_changed()

    def undo(self) -> bool:
        """Return to the scheme before the last change, re-reading the transcript; whether there was one."""
        before = self.previous.get(self._shown.id) if self._shown.id else None
        if before is None:
            return False
        self.set(before, reread=True)
        return True

    def start_pending(self) -> bool:
        """Start the pending change; whether there was one."""
        if self._pending is None:
            return False
        change, self._pending = self._pending, None
        self._converting, self.progress = change, None
        self._work.begin("converting", change.conversation_id)
        self._work.open_id = change.conversation_id
        conversation = self._database.conversation(change.conversation_id)
        self._engine.submit(
            commands.SetScheme(
                conversation.id,
                self.resolve(conversation.id, change.scheme),
                change.reread,
                for_engine(self._database.messages(conversation.id), conversation.system_prompt),
                began=conversation.began,
                thinking=self._thinking.of(conversation),
                adapter=conversation.adapter,
            )
        )
        return True

    def cancel_pending(self, conversation_id: str) -> None:
        """Forget a change that has not started."""
        if self.pending_id == conversation_id:
            self._pending = None

    def failed(self, conversation_id: str) -> None:
        """The engine has failed on a conversation: its change does not happen."""
        self.cancel_pending(conversation_id)
        if self._converting is not None and self._converting.conversation_id == conversation_id:
            self._converting = None

    def changed(self, event: events.SchemeChanged) -> None:
        """A cache has another scheme: as the user asked, or because the engine ran out of memory."""
        self._caches.record(event.conversation_id, event.report)
        change, self._converting = self._converting, None
        chosen = self._database.conversation(event.conversation_id).scheme
        self.previous[event.conversation_id] = chosen
        asked = change.scheme if change and change.conversation_id == event.conversation_id else None
        if asked is not None and self.resolve(event.conversation_id, asked) == event.scheme:
            self._database.set_scheme(event.conversation_id, asked)
        elif self.resolve(event.conversation_id, chosen) != event.scheme:
            self._database.set_scheme(event.conversation_id, event.scheme)
        self._shown.reread()
        self._caches.restore_notes.pop(event.conversation_id, None)
        self._view.say(sentences.scheme_changed(event))
        if self._work.activity == "converting":
            self._work.end()

    def forget_auto_choices(self) -> None:
        """Resolve ``auto`` again: the settings have changed."""
        self._auto_choices.clear()

    def model_changed(self) -> None:
        """Resolve ``auto`` again, and offer no undo: the caches of the previous model are gone."""
        self._auto_choices, self.previous = {}, {}

    def close(self) -> None:
        """Store a change that has not started: the next start builds the cache under that scheme."""
        if self._pending is not None:
            self._database.set_scheme(self._pending.conversation_id, self._pending.scheme)

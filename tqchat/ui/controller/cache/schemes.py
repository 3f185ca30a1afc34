"""Cache schemes of conversations: the choice, how ``auto`` is resolved, and changes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from tqchat.engine import commands, events
from tqchat.engine.memory.auto_scheme import SchemeChoice, choose_for_model
from tqchat.store.database import AUTO, Conversation, Database
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

    The database has the scheme asked for from then on: if the process is killed before the conversion, the
    next start builds the cache under that scheme.

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
        self._kept: dict[str, SchemeChoice] = {}
        """What ``auto`` stands for instead, by conversation, after its conversion failed or was stopped."""
        self._pending: dict[str, PendingScheme] = {}
        self._converting: PendingScheme | None = None
        self.progress: events.ConversionProgress | None = None
        self.previous: dict[str, str] = {}

    @property
    def chosen(self) -> str:
        """The scheme set for the shown conversation or the new one; may be ``auto``."""
        conversation = self._shown.conversation
        return self.of(conversation) if conversation else self._shown.new_conversation.scheme

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
    def pending_ids(self) -> Collection[str]:
        """The conversations whose changes are pending."""
        return self._pending.keys()

    def of(self, conversation: Conversation) -> str:
        """The scheme set for a conversation; the one before a change that is pending or under way."""
        change = self._pending.get(conversation.id, self._converting)
        return change.before if change and change.conversation_id == conversation.id else conversation.scheme

    def resolve(self, conversation_id: str, scheme: str) -> str:
        """The scheme of a conversation's setting, ``auto`` resolved."""
        return self._auto_choice(conversation_id).scheme if scheme == AUTO else scheme

    def _auto_choice(self, conversation_id: str) -> SchemeChoice:
        """A conversation keeps its choice until another model is loaded or the settings change."""
        found = self._kept.get(conversation_id) or self._auto_choices.get(conversation_id)
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
        else:
            self._ask(conversation, scheme, reread)
        self._view.figures_changed()

    def _ask(self, conversation: Conversation, scheme: str, reread: bool) -> None:
        """Ask for a change, which replaces one that is pending."""
        before, in_force = self.of(conversation), self.in_force
        if scheme == AUTO:
            self._kept.pop(conversation.id, None)
        differs = self.resolve(conversation.id, scheme) != in_force
        within_auto = differs and before == scheme == AUTO
        converting = self._converting is not None and self._converting.conversation_id == conversation.id
        self._database.set_scheme(conversation.id, scheme)
        self._shown.reread()
        self._pending.pop(conversation.id, None)
        if self._caches.exists and (differs or reread or converting):
            self._pending[conversation.id] = PendingScheme(
                conversation.id, scheme, reread, in_force if within_auto else before, within_auto
            )
            self._work.start_next()
            if conversation.id in self._pending:
                self._view.say(f"Changes to {scheme} {self._when(conversation.id)}.")

    def _when(self, conversation_id: str) -> str:
        """When a change that is pending starts, for the end of a sentence."""
        if self._models.current is None:
            return "once the model is loaded"
        if self._work.reply is None:
            return "in a moment"
        which = "this" if self._work.conversation_id == conversation_id else "another"
        return f"when {which} reply is done"

    def undo(self) -> bool:
        """Return to the scheme before the last change, re-reading the transcript; whether there was one."""
        before = self.previous.get(self._shown.id) if self._shown.id else None
        if before is None:
            return False
        self.set(before, reread=True)
        return True

    def start_pending(self) -> bool:
        """Start the pending change; whether there was one."""
        if not self._pending:
            return False
        change = self._pending.pop(next(iter(self._pending)))
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

    def opened(self, event: events.Opened) -> None:
        """Have a cache converted that was saved under another scheme than the conversation's.

        The process was killed before a change, or ``auto`` chooses another scheme by now.
        """
        conversation = self._database.conversation(event.conversation_id)
        if event.scheme and self.resolve(conversation.id, self.of(conversation)) != event.scheme:
            scheme = conversation.scheme
            change = PendingScheme(conversation.id, scheme, False, event.scheme, scheme == AUTO)
            self._pending.setdefault(conversation.id, change)

    def is_opened(self, conversation_id: str) -> None:
        """A conversation is about to be opened in the engine: ``auto`` may try its choice again."""
        self._kept.pop(conversation_id, None)

    def forget(self, conversation_id: str) -> None:
        """Forget a conversation's changes: it was deleted."""
        self._pending.pop(conversation_id, None)
        if self._converting is not None and self._converting.conversation_id == conversation_id:
            self._converting = None

    def failed(self, conversation_id: str) -> None:
        """The engine has failed on a conversation, or was stopped: a change under way does not happen.

        One that ``auto`` wanted is not tried again until the conversation is opened again, or something
        changes that ``auto`` depends on.
        """
        if (change := self._converting) is None or change.conversation_id != conversation_id:
            return
        self._converting = None
        if conversation_id in self._pending:
            return
        if change.within_auto:
            wanted = self.resolve(conversation_id, AUTO)
            why = f"{change.before}: kept, because the change to {wanted} was not completed."
            self._kept[conversation_id] = SchemeChoice(change.before, why)
        else:
            self._database.set_scheme(conversation_id, change.before)
            self._shown.reread()

    def changed(self, event: events.SchemeChanged) -> None:
        """A cache has another scheme: as the user asked, or because the engine ran out of memory."""
        self._caches.record(event.conversation_id, event.report)
        conversation = self._database.conversation(event.conversation_id)
        chosen = self.of(conversation)
        change, self._converting = self._converting, None
        asked = change.scheme if change and change.conversation_id == event.conversation_id else chosen
        fits = (one for one in (asked, chosen) if self.resolve(event.conversation_id, one) == event.scheme)
        now = next(fits, event.scheme)
        if now != chosen:
            self.previous[event.conversation_id] = chosen
        if (later := self._pending.get(event.conversation_id)) is not None:
            self._pending[event.conversation_id] = replace(later, before=now)
        elif now != conversation.scheme:
            self._database.set_scheme(event.conversation_id, now)
        self._shown.reread()
        self._caches.restore_notes.pop(event.conversation_id, None)
        self._view.say(sentences.scheme_changed(event))
        if self._work.activity == "converting":
            self._work.end()

    def forget_auto_choices(self) -> None:
        """Resolve ``auto`` again: the settings have changed."""
        self._auto_choices.clear()
        self._kept.clear()

    def model_changed(self) -> None:
        """Resolve ``auto`` again, and offer no undo: the caches of the previous model are gone."""
        self._auto_choices, self._kept, self.previous = {}, {}, {}

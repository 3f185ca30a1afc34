"""What is open and what goes on: everything about the chat that a screen reads."""

from __future__ import annotations

from tqchat.engine import events
from tqchat.engine.memory.auto_scheme import SchemeChoice, choose_for_model
from tqchat.engine.memory.quality_profile import Profile
from tqchat.kv.memory import MemoryReport
from tqchat.store.database import AUTO, Conversation, Message, RemovedMessage, SamplingChoice, VersionPosition
from tqchat.ui.state import Activity, Caches, Fork, History, Reply, SchemeWish, Waiting


class ChatState:
    """The shown conversation, the model, the work under way. ``Chat`` alone changes it."""

    def __init__(self, scheme: str) -> None:
        self.conversation: Conversation | None = None
        self.messages: list[Message] = []
        self.model: events.ModelInfo | None = None
        self.loading: events.ModelProgress | None = None
        self.activity: Activity | None = None
        self.active_id: str | None = None
        self.prefill: events.PrefillProgress | None = None
        self.converted: events.ConversionProgress | None = None
        self.reply: Reply | None = None
        self.waiting: list[Waiting] = []
        self.speed: float | None = None
        self.read_speed: float | None = None
        self.reading_seconds: float | None = None
        """How long the prompt that is being read will still take."""
        self.scheme_before: dict[str, str] = {}
        self.caches = Caches()
        self.endings: dict[str, str] = {}
        self.fork: Fork | None = None
        self._engine_conversation: str | None = None
        self._wish: SchemeWish | None = None
        self.places: dict[str, VersionPosition] = {}
        self.read_only: str | None = None
        self._draft_scheme = scheme
        self._draft_prompt: str | None = None
        self._draft_sampling = SamplingChoice()
        self._draft = ""
        self._removed: list[RemovedMessage | None] = []
        """What was deleted in this sitting, the last at the end; ``None`` for a conversation."""
        self.profile: Profile | None = None
        self._chosen: dict[str, SchemeChoice] = {}
        self.memory_budget: int | None = None

    @property
    def scheme(self) -> str:
        """The scheme of the shown conversation, or the one that a new conversation will get."""
        return self.conversation.scheme if self.conversation else self._draft_scheme

    @property
    def auto_choice(self) -> SchemeChoice:
        """What ``auto`` means for the shown conversation, and why."""
        return self._choice(self.conversation.id if self.conversation else "")

    @property
    def scheme_in_force(self) -> str:
        """The scheme that is really used here, whatever chose it."""
        return self.auto_choice.scheme if self.scheme == AUTO else self.scheme

    @property
    def scheme_label(self) -> str:
        """``turbo4``, or ``auto: turbo0v4``."""
        return f"auto: {self.scheme_in_force}" if self.scheme == AUTO else self.scheme

    def _choice(self, conversation_id: str) -> SchemeChoice:
        """The chooser's answer, which a conversation keeps until another model comes."""
        found = self._chosen.get(conversation_id)
        if found is None:
            found = choose_for_model(self.model, self.profile, budget=self.memory_budget)
            if self.model is not None:
                self._chosen[conversation_id] = found
        return found

    def _resolved(self, conversation_id: str, scheme: str) -> str:
        """The scheme that a conversation's setting stands for."""
        return self._choice(conversation_id).scheme if scheme == AUTO else scheme

    @property
    def budget(self) -> int | None:
        """Bytes that a conversation's cache may take: what the person allows, else what the model leaves."""
        return self.memory_budget or (self.model.memory_budget if self.model else None)

    @property
    def system_prompt(self) -> str | None:
        """What stands before the shown conversation's first message, or will before a new one's."""
        return self.conversation.system_prompt if self.conversation else self._draft_prompt

    @property
    def sampling_choice(self) -> SamplingChoice:
        """What the shown conversation decides about how its replies are drawn."""
        return self.conversation.sampling if self.conversation else self._draft_sampling

    @property
    def draft(self) -> str:
        """What was typed here and not sent."""
        return self.conversation.draft if self.conversation else self._draft

    @property
    def report(self) -> MemoryReport | None:
        """What the shown conversation's cache takes, once the engine has counted it."""
        return self.caches.reports.get(self.conversation.id) if self.conversation else None

    @property
    def history(self) -> History:
        """The shown conversation's curve."""
        found = self.caches.histories.get(self.conversation.id) if self.conversation else None
        return found or History()

    @property
    def shown_reply(self) -> Reply | None:
        """The reply under way, if it belongs to the shown conversation."""
        return self.reply if self.reply and self._shown(self.reply.conversation_id) else None

    @property
    def summing_up(self) -> bool:
        """Whether the shown conversation's past is being summed up."""
        return self.activity == "summing up" and self.active_id is not None and self._shown(self.active_id)

    @property
    def shown_waiting(self) -> bool:
        """Whether the shown conversation's last message waits for the engine."""
        return any(self._shown(waiting.conversation_id) for waiting in self.waiting)

    @property
    def cache_is_live(self) -> bool:
        """Whether the engine holds the shown conversation's cache, so that a scheme change converts it."""
        return self.conversation is not None and self._engine_conversation == self.conversation.id

    @property
    def has_cache(self) -> bool:
        """Whether the shown conversation has a cache, live or on disk, that a scheme change converts."""
        on_disk = self.conversation is not None and self.conversation.id in self.caches.disk_bytes
        return self.cache_is_live or on_disk

    def _shown(self, conversation_id: str) -> bool:
        return self.conversation is not None and self.conversation.id == conversation_id

"""What is open and what goes on: everything about the chat that a screen reads."""

from __future__ import annotations

from tqchat.engine import events
from tqchat.kv.memory import MemoryReport
from tqchat.store.database import Conversation, Message
from tqchat.ui.state import Activity, Caches, History, Reply, SchemeWish, Waiting


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
        self.reply: Reply | None = None
        self.waiting: list[Waiting] = []
        self.speed: float | None = None
        self.caches = Caches()
        self.endings: dict[str, str] = {}
        self._engine_conversation: str | None = None
        self._wish: SchemeWish | None = None
        self._draft_scheme = scheme

    @property
    def scheme(self) -> str:
        """The scheme of the shown conversation, or the one that a new conversation will get."""
        return self.conversation.scheme if self.conversation else self._draft_scheme

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

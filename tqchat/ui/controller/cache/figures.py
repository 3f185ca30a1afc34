"""Cache sizes of all conversations, in memory and on disk."""

from __future__ import annotations

from tqchat.engine import events
from tqchat.kv.memory import MemoryReport
from tqchat.store.database import Database
from tqchat.ui.controller.conversation.open_conversation import OpenConversation
from tqchat.ui.controller.engine.models import ModelState
from tqchat.ui.controller.engine.work import EngineWork
from tqchat.ui.controller.records import History


class CacheFigures:
    """The engine's reports on caches, by conversation id.

    Attributes:
        reports: The last report on a cache in memory.
        histories: Cache size over the tokens of the shown branch.
        disk_bytes: Bytes of a saved cache.
        counted: Tokens of a conversation whose cache holds fewer or more of them: one that was opened or
            withdrawn, one whose prompt is being read. 0 if they are not counted.
        requests: Caches of other programs' requests; ``None`` before the first one.
        restore_notes: A sentence on how a cache was restored when its conversation was opened.
    """

    def __init__(
        self, database: Database, shown: OpenConversation, models: ModelState, work: EngineWork
    ) -> None:
        self._database, self._shown, self._models, self._work = database, shown, models, work
        self.reports: dict[str, MemoryReport] = {}
        self.histories: dict[str, History] = {}
        self.disk_bytes: dict[str, int] = {}
        self.requests: events.RequestsUpdate | None = None
        self.restore_notes: dict[str, str] = {}
        self.counted: dict[str, int] = {}

    @property
    def report(self) -> MemoryReport | None:
        """The shown conversation's cache in memory."""
        return self.reports.get(self._shown.id) if self._shown.id else None

    @property
    def history(self) -> History:
        """The shown conversation's cache size over its tokens."""
        found = self.histories.get(self._shown.id) if self._shown.id else None
        return found or History()

    @property
    def is_live(self) -> bool:
        """Whether the engine holds the shown conversation's cache in memory."""
        return self._shown.id is not None and self._work.open_id == self._shown.id

    @property
    def exists(self) -> bool:
        """Whether the shown conversation has a cache, in memory or on disk."""
        return self.is_live or self._shown.id in self.disk_bytes

    def record(self, conversation_id: str, report: MemoryReport) -> None:
        """Take a report on a live cache."""
        if conversation_id not in self.histories:
            self.reload_history(conversation_id)
        self.reports[conversation_id] = report
        self.histories.setdefault(conversation_id, History()).add(report)

    def branch_changed(self, conversation_id: str) -> None:
        """Another branch is shown: the cache still holds the one before; count that of its last reply."""
        self.reload_history(conversation_id)
        samples = self.histories.get(conversation_id, History()).samples
        is_counted = samples and self._shown.messages and self._shown.messages[-1].prompt_tokens
        self.counted[conversation_id] = samples[-1].tokens if is_counted else 0

    def reload_history(self, conversation_id: str) -> None:
        """Rebuild a history from the replies of the branch, which also survives a restart."""
        if self._models.current is None:
            return
        shown = self._shown.is_shown(conversation_id)
        messages = self._shown.messages if shown else self._database.messages(conversation_id)
        adapter = self._database.conversation(conversation_id).adapter
        self.histories[conversation_id] = History.of(messages, self._models.label(adapter))

    @property
    def tokens(self) -> int:
        """Tokens of the shown conversation, also those that its cache does not hold; 0 if not counted."""
        return self.tokens_of(self._shown.id) if self._shown.id else 0

    def tokens_of(self, conversation_id: str) -> int:
        """Tokens of a conversation, 0 if they are not counted."""
        report = self.reports.get(conversation_id)
        return self.counted.get(conversation_id, report.tokens if report else 0)

    def opened(self, event: events.Opened) -> None:
        """A conversation is open in the engine: note its tokens."""
        self.counted[event.conversation_id] = max(event.tokens, event.restored)

    def measured(self, event: events.MemoryUpdate) -> None:
        """Take a report; from the first token of a reply on, the cache holds the whole prompt."""
        self.record(event.conversation_id, event.report)
        if event.tokens_per_second is not None:
            self.counted.pop(event.conversation_id, None)

    def finished(self, event: events.Done) -> None:
        """Take the figures of a reply; if it was stopped early, the cache does not hold the whole prompt."""
        self.record(event.conversation_id, event.report)
        if event.report.tokens < event.counts.prompt:
            self.counted[event.conversation_id] = event.counts.prompt
        else:
            self.counted.pop(event.conversation_id, None)

    def saved(self, event: events.Saved) -> None:
        """A cache is on disk."""
        self.disk_bytes[event.conversation_id] = event.bytes

    def forget(self, conversation_id: str) -> None:
        """Drop all figures of a deleted conversation."""
        for known in (
            self.reports,
            self.histories,
            self.restore_notes,
            self.disk_bytes,
            self.counted,
        ):
            known.pop(conversation_id, None)

    def forget_live(self) -> None:
        """Drop the figures of all caches in memory: another model cannot use them."""
        for known in (self.reports, self.histories, self.restore_notes, self.counted):
            known.clear()

"""Opening conversations in the engine, which restores their caches."""

from __future__ import annotations

from tqchat.engine import commands, events
from tqchat.store.database import Conversation, Message
from tqchat.ui.controller.cache.figures import CacheFigures
from tqchat.ui.controller.cache.schemes import SchemeChanges
from tqchat.ui.controller.conversation.open_conversation import OpenConversation
from tqchat.ui.controller.conversation.thinking import ThinkingSettings
from tqchat.ui.controller.engine.connection import EngineConnection
from tqchat.ui.controller.engine.work import EngineWork
from tqchat.ui.controller.texts import sentences
from tqchat.ui.controller.texts.transcript import for_engine


class CacheRestore:
    """Opens the shown conversation in the engine, or one that is about to be answered."""

    def __init__(
        self,
        engine: EngineConnection,
        shown: OpenConversation,
        work: EngineWork,
        schemes: SchemeChanges,
        caches: CacheFigures,
        thinking: ThinkingSettings,
    ) -> None:
        self._engine, self._shown, self._work = engine, shown, work
        self._schemes, self._caches, self._thinking = schemes, caches, thinking

    def start(self) -> bool:
        """Open the shown conversation in the engine; whether that was necessary."""
        conversation = self._shown.conversation
        if conversation is None or self._shown.read_only or self._work.open_id == conversation.id:
            return False
        self._work.begin("opening", conversation.id)
        self.ensure_open(conversation, self._shown.messages)
        return True

    def ensure_open(self, conversation: Conversation, messages: list[Message]) -> None:
        """Open a conversation in the engine, unless it is open there."""
        if self._work.open_id == conversation.id:
            return
        self._work.open_id = conversation.id
        self._schemes.is_opened(conversation.id)
        turns = for_engine(messages, conversation.system_prompt)
        scheme = self._schemes.resolve(conversation.id, self._schemes.of(conversation))
        self._engine.submit(
            commands.OpenConversation(
                conversation.id,
                turns,
                scheme,
                began=conversation.began,
                thinking=self._thinking.of(conversation),
                adapter=conversation.adapter,
            )
        )

    def opened(self, event: events.Opened) -> None:
        """A conversation is open in the engine."""
        self._caches.opened(event)
        if (note := sentences.opened(event)) is not None:
            self._caches.restore_notes[event.conversation_id] = note
        if self._work.activity == "opening":
            self._schemes.opened(event)
            self._work.end()

"""The context limit: tokens used and left, and ways to shorten a conversation."""

from __future__ import annotations

from tqchat.engine import commands, events
from tqchat.store.database import Database, Message
from tqchat.store.records import Role
from tqchat.ui import figures
from tqchat.ui.controller.cache.figures import CacheFigures
from tqchat.ui.controller.conversation.open_conversation import OpenConversation
from tqchat.ui.controller.conversation.tree import TranscriptTree
from tqchat.ui.controller.engine.connection import EngineConnection
from tqchat.ui.controller.engine.models import ModelState
from tqchat.ui.controller.engine.work import EngineWork
from tqchat.ui.controller.records import PendingSummary, QueuedTurn
from tqchat.ui.controller.texts import summaries
from tqchat.ui.controller.view import View

DEFAULT_CHARACTERS_PER_TOKEN = 3.5
"""Until a conversation's own ratio is known; a little below that of English."""
RATIO_MIN_TOKENS = 64
"""Tokens from which on a conversation's own ratio of characters to tokens is used."""
NEARLY_FULL_SHARE = 0.85
SUMMARY_KEPT_SHARE, DROP_KEPT_SHARE = 0.25, 0.5
"""Shares of the context kept for the newest messages after a summary, and when older ones are dropped."""
ASSUMED_LIMIT_TOKENS = 8_192
"""For models that state no context limit."""


class ContextLimit:
    """Measures the shown conversation against the limit, and shortens it.

    A shortened conversation is a new branch: nothing is lost.
    """

    def __init__(
        self,
        database: Database,
        view: View,
        engine: EngineConnection,
        shown: OpenConversation,
        tree: TranscriptTree,
        models: ModelState,
        work: EngineWork,
        caches: CacheFigures,
    ) -> None:
        self._database, self._view, self._engine = database, view, engine
        self._shown, self._tree = shown, tree
        self._models, self._work, self._caches = models, work, caches
        self._summary: PendingSummary | None = None
        self._warned_id: str | None = None
        self._ratio = DEFAULT_CHARACTERS_PER_TOKEN

    @property
    def used(self) -> int:
        """Tokens of the shown conversation: counted in the cache, else estimated from its characters."""
        return self._estimate(self._characters) if self.is_estimate else self._caches.tokens

    @property
    def is_estimate(self) -> bool:
        """Whether ``used`` is estimated."""
        return not self._caches.tokens

    @property
    def is_nearly_full(self) -> bool:
        """Whether the shown conversation is near its model's context limit."""
        limit = self._models.context_limit
        return limit is not None and self.used > NEARLY_FULL_SHARE * limit

    @property
    def summing_up(self) -> bool:
        """Whether a summary of the shown conversation is being written."""
        return self._shown.id is not None and self._work.is_summing_up(self._shown.id)

    def tokens_left(self, text: str = "") -> int | None:
        """Tokens left after the conversation and a text; ``None`` without a limit."""
        limit = self._models.context_limit
        return None if limit is None else limit - self.used - self._estimate(len(text))

    @property
    def _characters(self) -> int:
        return sum(len(message.content) for message in self._shown.messages)

    def _estimate(self, characters: int) -> int:
        return int(characters / self._characters_per_token)

    @property
    def _characters_per_token(self) -> float:
        tokens, characters = self._caches.tokens, self._characters
        if tokens >= RATIO_MIN_TOKENS and not self.is_estimate and characters:
            self._ratio = min(max(characters / tokens, 1.0), 8.0)
        return self._ratio

    def kept_when_dropping(self) -> list[Message]:
        """The messages that ``drop_oldest`` keeps."""
        return self._newest(DROP_KEPT_SHARE)

    def _newest(self, share: float) -> list[Message]:
        limit = self._models.context_limit or ASSUMED_LIMIT_TOKENS
        messages = [message for message in self._shown.messages if message.role != "system"]
        return summaries.newest_messages(messages, int(limit * share * self._characters_per_token))

    def drop_oldest(self) -> bool:
        """Begin a branch with the newest messages alone; whether any could be dropped."""
        conversation, kept = self._shown.conversation, self.kept_when_dropping()
        dropped = len(self._shown.messages) - len(kept)
        if conversation is None or not self._tree.can_change or not dropped or not kept:
            return False
        self._begin_branch(conversation.id, [], tuple(kept), conversation.head_id)
        rest = "the full conversation is the previous version"
        self._view.say(f"The oldest {figures.number(dropped)} messages are left out; {rest}.")
        return True

    def summarise(self) -> bool:
        """Request a summary of the older messages, which will begin a branch; whether it was requested."""
        conversation, kept = self._shown.conversation, self._newest(SUMMARY_KEPT_SHARE)
        old = self._shown.messages[: len(self._shown.messages) - len(kept)]
        if conversation is None or not self._tree.can_change or not old:
            return False
        if self._models.current is None or self._work.activity is not None:
            return False
        self._summary = PendingSummary(conversation.id, tuple(kept), conversation.head_id)
        self._work.begin("summing up", conversation.id)
        request = summaries.summary_request(old)
        self._engine.submit(
            commands.Compose(
                conversation.id,
                "summary",
                request,
                summaries.ANSWER_MAX_TOKENS,
                adapter=conversation.adapter,
            )
        )
        self._view.figures_changed()
        return True

    def summarised(self, event: events.Composed) -> None:
        """Begin the branch with the summary; without one nothing changes."""
        pending, self._summary = self._summary, None
        self._work.clear()
        if pending is not None:
            if summary := event.text.strip():
                opening: list[tuple[Role, str]] = [
                    ("user", summaries.SUMMARY_HEADING + summary),
                    ("assistant", summaries.ACKNOWLEDGEMENT),
                ]
                self._begin_branch(pending.conversation_id, opening, pending.kept, pending.head)
                self._view.say("Continuing from a summary; the full conversation is the previous version.")
            else:
                self._view.say("No summary was written; nothing has changed.")
        self._work.end()

    def summary_failed(self) -> None:
        """The requested summary has failed."""
        self._summary = None

    def _begin_branch(
        self,
        conversation_id: str,
        opening: list[tuple[Role, str]],
        kept: tuple[Message, ...],
        head: str | None,
    ) -> None:
        """Show a branch of these messages, and have the last one answered if it is the user's."""
        self._database.begin_branch(conversation_id, opening, kept)
        self._warned_id = None
        if self._shown.is_shown(conversation_id):
            self._shown.reread()
            self._view.transcript_changed()
        self._caches.counted[conversation_id] = 0
        if kept and kept[-1].role == "user":
            self._work.add(QueuedTurn(conversation_id, head, None))
            self._view.figures_changed()

    def warn_if_nearly_full(self, conversation_id: str) -> None:
        """Warn once for each conversation and branch."""
        if not self._shown.is_shown(conversation_id) or self._warned_id == conversation_id:
            return
        if self.is_nearly_full:
            self._warned_id = conversation_id
            self._view.context_is_nearly_full()

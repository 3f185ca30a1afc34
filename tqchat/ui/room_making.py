"""When a conversation outgrows what its model reads: what is left, and what can be done about it."""

from __future__ import annotations

from dataclasses import dataclass

from tqchat.engine import commands, events
from tqchat.kv.memory import MemoryReport
from tqchat.store.database import Message
from tqchat.store.records import Role
from tqchat.ui import composing, figures
from tqchat.ui.branches import Branches
from tqchat.ui.state import Reply, Waiting

CHARACTERS_PER_TOKEN = 3.5
"""Where a conversation does not tell its own: a little less than English has."""
TELLING = 64
"""Tokens from which on it does."""
NEARLY_FULL = 0.85
KEPT_BEHIND_SUMMARY, KEPT_WHEN_DROPPING = 0.25, 0.5
"""Parts of the context that the newest messages may take when the older ones go."""
UNLIMITED = 8_192
"""Tokens that stand for a context whose limit is not known."""


@dataclass(frozen=True)
class Shortening:
    """A summary on its way: the conversation, the messages that will stand behind it, where its head was."""

    conversation_id: str
    kept: tuple[Message, ...]
    head: str | None


class RoomMaking(Branches):
    """Goes on from a summary or without the oldest turns: as another branch, so nothing is lost."""

    _shortening: Shortening | None = None
    _warned = ""
    _outdated: MemoryReport | None = None
    _ratio = CHARACTERS_PER_TOKEN

    @property
    def context_used(self) -> int:
        """Tokens of the shown conversation: counted where there is a cache, else reckoned."""
        counted = self.report.tokens if self.report is not None and not self.context_is_reckoned else 0
        return counted or self._reckoned(sum(len(message.content) for message in self.messages))

    @property
    def context_is_reckoned(self) -> bool:
        """Whether that is no count: what was counted before a branch began is not about that branch."""
        return self.report is None or self.report is self._outdated

    def tokens_left(self, text: str = "") -> int | None:
        """Tokens that the model still reads behind the conversation and a text; ``None`` without a limit."""
        limit = self.model.context_limit if self.model else None
        return None if limit is None else limit - self.context_used - self._reckoned(len(text))

    def _reckoned(self, characters: int) -> int:
        return int(characters / self._characters_per_token)

    @property
    def _characters_per_token(self) -> float:
        report, said = self.report, sum(len(message.content) for message in self.messages)
        if report is not None and not self.context_is_reckoned and report.tokens >= TELLING and said:
            self._ratio = min(max(said / report.tokens, 1.0), 8.0)
        return self._ratio

    def newest(self, part: float) -> list[Message]:
        """The last messages of the shown conversation, in no more than a part of the context."""
        limit = (self.model.context_limit if self.model else None) or UNLIMITED
        said = [message for message in self.messages if message.role != "system"]
        return composing.newest(said, int(limit * part * self._characters_per_token))

    def drop_oldest(self) -> bool:
        """Go on with the newest messages alone; whether there was anything to drop."""
        kept = self.newest(KEPT_WHEN_DROPPING)
        if self.conversation is None or not self.can_change or len(kept) == len(self.messages) or not kept:
            return False
        dropped = len(self.messages) - len(kept)
        self._go_on_with(self.conversation.id, [], tuple(kept), self.conversation.head_id)
        before = "the whole conversation is the version before"
        self.view.say(f"{figures.number(dropped)} messages are left out from here on; {before}.")
        return True

    def go_on_from_summary(self) -> bool:
        """Have the older messages summed up, and go on from that; whether it has begun."""
        kept = self.newest(KEPT_BEHIND_SUMMARY)
        old = self.messages[: len(self.messages) - len(kept)]
        if self.conversation is None or not self.can_change or not old:
            return False
        if self._engine is None or self.model is None or self.activity is not None:
            return False
        self._shortening = Shortening(self.conversation.id, tuple(kept), self.conversation.head_id)
        self.activity, self.active_id = "summing up", self.conversation.id
        self._engine.submit(
            commands.Compose(
                self.conversation.id, "summary", composing.summary_request(old), composing.SUMMARY_TOKENS
            )
        )
        self.view.figures_changed()
        return True

    def _composed(self, event: events.Composed) -> None:
        if event.purpose != "summary":
            super()._composed(event)
            return
        shortening, self._shortening = self._shortening, None
        self.activity = self.active_id = self.prefill = None
        if shortening is not None:
            summary = composing.summary_from_answer(event.text)
            if summary:
                said: list[tuple[Role, str]] = [
                    ("user", composing.SUMMED_UP + summary),
                    ("assistant", composing.ACKNOWLEDGED),
                ]
                self._go_on_with(shortening.conversation_id, said, shortening.kept, shortening.head)
                self.view.say("Goes on from a summary; the whole conversation is the version before.")
            else:
                self.view.say("There is no summary, and nothing has changed.")
        self._free()

    def _go_on_with(
        self,
        conversation_id: str,
        before: list[tuple[Role, str]],
        kept: tuple[Message, ...],
        head: str | None,
    ) -> None:
        """Begin a branch of these messages, and have its last one answered if it waits for that."""
        said = [*before, *((message.role, message.content) for message in kept)]
        self.database.begin_branch(conversation_id, said)
        self._warned, self._outdated = "", self.caches.reports.get(conversation_id)
        if self._shown(conversation_id):
            self._reread_rows()
            self.view.transcript_changed()
        if kept and kept[-1].role == "user":
            self._wait(Waiting(conversation_id, head, None))

    def _failed(self, event: events.Failed) -> None:
        self._shortening = None
        super()._failed(event)
        if event.context_full and self._shown(event.conversation_id):
            self.view.context_is_full()

    def _finish(self, reply: Reply) -> None:
        super()._finish(reply)
        limit = self.model.context_limit if self.model else None
        shown = self._shown(reply.conversation_id)
        if (
            shown
            and limit
            and self.context_used > NEARLY_FULL * limit
            and self._warned != reply.conversation_id
        ):
            self._warned = reply.conversation_id
            self.view.context_is_nearly_full()

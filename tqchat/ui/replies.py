"""A reply's way into the database while it grows."""

from __future__ import annotations

from collections.abc import Callable

from tqchat.engine import events
from tqchat.errors import TqchatError
from tqchat.store.database import Database
from tqchat.store.records import Message, MessageChanges
from tqchat.ui.state import Reply
from tqchat.ui.view import View

WRITE_EVERY = 0.5
"""Seconds between writes of a growing reply: a kill loses no more of it than this."""


class ReplyWriter:
    """Writes a reply now and then, unfinished, and at its end as what it became.

    A database that cannot take it (a full disk) is told once for each reply; the reply goes on, on the
    screen.
    """

    def __init__(self, database: Database, view: View, clock: Callable[[], float]) -> None:
        self._database, self._view, self._clock = database, view, clock
        self._told: Reply | None = None

    def grow(self, reply: Reply) -> None:
        """The reply has grown: written if the last time is long enough ago."""
        now = self._clock()
        if not reply.written or now - reply.written >= WRITE_EVERY:
            reply.written = now
            self.keep(reply)

    def keep(self, reply: Reply) -> None:
        """Write what there is, as unfinished."""
        self._write(reply, {"content": reply.text, "status": "unfinished"})

    def finish(self, reply: Reply, done: events.Done) -> None:
        """Write the whole reply and how it went."""
        counts = done.counts
        before, drafted, accepted = _so_far(reply.continued)
        drafted += counts.drafted
        changes: MessageChanges = {
            "content": reply.text,
            "status": "stopped" if done.stop_reason == "stopped" else "complete",
            "tokens": before + counts.generated,
            "prompt_tokens": max(0, counts.prompt - before),
            "tokens_per_second": done.decode_tokens_per_second,
            "first_token_seconds": done.first_token_seconds,
            "scheme": done.scheme,
            "model": done.model,
            "drafted": drafted or None,
            "accepted": accepted + counts.accepted if drafted else None,
            "cache_bytes": done.report.bytes,
            "fp16_bytes": done.report.fp16_bytes,
        }
        self._write(reply, changes)

    def _write(self, reply: Reply, changes: MessageChanges) -> None:
        try:
            if reply.message_id is None:
                first = self._database.add_message(
                    reply.conversation_id, "assistant", reply.text, "unfinished", model=reply.model
                )
                reply.message_id = first.id
            self._database.update_message(reply.message_id, **changes)
        except TqchatError as error:
            if self._told is not reply:
                self._told = reply
                self._view.say(str(error), "error")


def _so_far(reply: Message | None) -> tuple[int, int, int]:
    """Tokens, drafted and accepted ones, of a reply that is gone on with."""
    return (reply.tokens or 0, reply.drafted or 0, reply.accepted or 0) if reply else (0, 0, 0)

"""Writes a growing reply into the database."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tqchat.engine import events
from tqchat.errors import TqchatError
from tqchat.store.database import Database
from tqchat.store.records import Message, MessageChanges
from tqchat.ui.controller.records import Reply
from tqchat.ui.controller.view import Severity

WRITE_INTERVAL_S = 0.5
"""A kill loses at most this much of a reply."""


class Reporter(Protocol):
    """Receiver of write errors."""

    def say(self, text: str, severity: Severity = "information") -> None:
        """Say a sentence."""


class ReplyWriter:
    """Writes a reply while it grows, as unfinished, and with its figures at the end.

    A write that fails (a full disk) is reported once for each reply; the reply continues on the screen.
    """

    def __init__(self, database: Database, view: Reporter, clock: Callable[[], float]) -> None:
        self._database, self._view, self._clock = database, view, clock
        self._reported: Reply | None = None

    def grew(self, reply: Reply) -> None:
        """Write the reply if the last write is long enough ago."""
        if not self._database.is_written(reply.conversation_id):
            return  # the last write is still in the queue
        now = self._clock()
        if not reply.written_at or now - reply.written_at >= WRITE_INTERVAL_S:
            reply.written_at = now
            self.write_unfinished(reply)

    def write_unfinished(self, reply: Reply) -> None:
        """Write the text so far."""
        changes: MessageChanges = {"content": reply.text, "status": "unfinished"}
        if reply.reasoning:
            changes["reasoning"] = reply.reasoning
        self._write(reply, changes)

    def write_finished(self, reply: Reply, done: events.Done) -> None:
        """Write the finished reply and its figures; those of a continued reply include its first part."""
        counts, continued = done.counts, reply.continued
        before = (continued.tokens or 0) if continued else 0
        drafted = _drafted(continued) + counts.drafted
        changes: MessageChanges = {
            "content": reply.text,
            "status": "complete" if done.stop_reason == "stop" else "stopped",
            "tokens": before + counts.generated,
            "prompt_tokens": max(0, counts.prompt - before),
            "tokens_per_second": done.decode_tokens_per_second,
            "first_token_seconds": done.first_token_seconds,
            "scheme": done.scheme,
            "model": done.model,
            "drafted": drafted or None,
            "accepted": _accepted(continued) + counts.accepted if drafted else None,
            "cache_bytes": done.report.bytes,
            "fp16_bytes": done.report.fp16_bytes,
            "reasoning": reply.reasoning or None,
            "reasoning_seconds": _reasoning_seconds(reply.continued, done),
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
            if self._reported is not reply:
                self._reported = reply
                self._view.say(str(error), "error")


def _drafted(message: Message | None) -> int:
    return (message.drafted or 0) if message else 0


def _accepted(message: Message | None) -> int:
    return (message.accepted or 0) if message else 0


def _reasoning_seconds(before: Message | None, done: events.Done) -> float | None:
    """Duration of the reasoning; a continued reply includes that of its first part."""
    seconds = done.reasoning_seconds if done.reasoning_tokens else None
    earlier = before.reasoning_seconds if before else None
    return seconds if earlier is None else earlier + (seconds or 0.0)

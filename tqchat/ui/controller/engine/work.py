"""The engine's current job, and the queue of turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from tqchat.engine import events
from tqchat.ui.controller.engine.connection import EngineConnection
from tqchat.ui.controller.engine.models import ModelState
from tqchat.ui.controller.records import Activity, QueuedTurn, Reply

Job = Callable[[], bool]
"""Starts some work on the engine; ``False`` if there is none of its kind."""


class EngineWork:
    """Starts one job at a time on the engine.

    Attributes:
        activity: The engine's current job, ``None`` while it is free.
        conversation_id: The conversation that the job is for.
        open_id: The conversation whose cache the engine holds.
        reply: The reply being generated.
        waiting: Turns that are not started yet, oldest first.
        prefill: Progress of the prompt being read.
        seconds_left: Estimated time until that prompt is read.
    """

    def __init__(
        self, engine: EngineConnection, models: ModelState, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine, self._models, self._clock = engine, models, clock
        self._jobs: Sequence[Job] = ()
        self._when_free: Callable[[], None] = lambda: None
        self._prefill_start = (0.0, 0)
        self.activity: Activity | None = None
        self.conversation_id: str | None = None
        self.open_id: str | None = None
        self.reply: Reply | None = None
        self.waiting: list[QueuedTurn] = []
        self.prefill: events.PrefillProgress | None = None
        self.seconds_left: float | None = None

    def serve(self, jobs: Sequence[Job], when_free: Callable[[], None]) -> None:
        """Set the kinds of jobs, most urgent first, and what is called after each job."""
        self._jobs, self._when_free = jobs, when_free

    def add(self, turn: QueuedTurn) -> None:
        """Queue a turn, and start it if the engine is free."""
        self.waiting.append(turn)
        self.start_next()

    def start_next(self) -> None:
        """Start the most urgent job, if the engine is free and has a model.

        During a download the previous model is still used; while weights are loaded nothing starts.
        """
        if not self._engine.connected or self._models.current is None or self._models.is_loading:
            return
        if self.activity is None:
            any(job() for job in self._jobs)

    def begin(self, activity: Activity, conversation_id: str) -> None:
        """The engine is busy with this now."""
        self.activity, self.conversation_id = activity, conversation_id

    def clear(self) -> None:
        """The engine is free; the next job is not started yet."""
        self.activity = self.conversation_id = self.prefill = None

    def end(self) -> None:
        """The engine is free: start the next job."""
        self.clear()
        self.start_next()
        self._when_free()

    def is_busy_with(self, conversation_id: str) -> bool:
        """Whether a conversation is being answered or summed up, or has a turn in the queue."""
        replying = self.reply is not None and self.reply.conversation_id == conversation_id
        return replying or self.has_waiting(conversation_id) or self.is_summing_up(conversation_id)

    def has_waiting(self, conversation_id: str) -> bool:
        """Whether a turn of a conversation is queued."""
        return any(turn.conversation_id == conversation_id for turn in self.waiting)

    def is_summing_up(self, conversation_id: str) -> bool:
        """Whether a summary of a conversation is being written."""
        return self.activity == "summing up" and self.conversation_id == conversation_id

    def drop(self, conversation_id: str) -> None:
        """Forget a deleted conversation's turns, and stop its reply."""
        if self.reply is not None and self.reply.conversation_id == conversation_id:
            self._engine.stop()
            self.reply = None
        self.waiting = [turn for turn in self.waiting if turn.conversation_id != conversation_id]

    def closed(self, conversation_id: str) -> None:
        """The engine no longer holds this conversation's cache."""
        if self.open_id == conversation_id:
            self.open_id = None

    def prefilled(self, event: events.PrefillProgress) -> None:
        """Update the progress of the prompt, and the estimate from its second event on."""
        now, before = self._clock(), self.prefill
        if before is None or event.done <= before.done or event.total != before.total:
            self._prefill_start = (now, event.done)
        self.prefill = event
        since, done = self._prefill_start
        measured = now > since and event.done > done
        speed = (event.done - done) / (now - since) if measured else self._models.prefill_speed
        self.seconds_left = (event.total - event.done) / speed if speed else None
        if self.activity == "answering":
            self.activity = "reading"

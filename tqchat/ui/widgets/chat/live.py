"""A reply while it streams: only its end is redrawn."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import groupby

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.timer import Timer
from textual.widgets import Static

from tqchat.engine.commands import Part
from tqchat.engine.events import TextDelta
from tqchat.settings.schema import ThinkingDisplay
from tqchat.store.database import Message
from tqchat.text import PrintableStream, one_line, stable_width
from tqchat.ui.widgets.chat.blocks import Block
from tqchat.ui.widgets.chat.body import Body
from tqchat.ui.widgets.chat.message import Facts, footer, heading, is_hidden
from tqchat.ui.widgets.chat.stream import Stream
from tqchat.ui.widgets.chat.thinking import Thinking, reasoning_of

DRAWS_PER_SECOND = 8
"""Draws of streamed text per second: smooth, and cheap enough for slow machines."""
MAX_CHARACTERS_PER_DRAW = 4_000
"""Maximum characters per draw."""
MIN_IDLE_RATIO = 12
"""After a draw, wait at least this multiple of its duration."""
MAX_BODY_LINES = 80
"""A longer reply continues in another widget, which bounds the text laid out again per draw."""


class LiveReply(Vertical):
    """A reply while it streams, and after it has ended."""

    def __init__(self, name: str, waiting: str = "", thinking: ThinkingDisplay = "folded") -> None:
        super().__init__(classes="message assistant live")
        self.message: Message | None = None
        self.facts: Facts | None = None
        self._assistant = name
        self._waiting = waiting
        self._pieces: list[TextDelta] = []
        self._printable: dict[Part, PrintableStream] = {}
        self._stream = Stream()
        self._thinking = Thinking(thinking)
        self._body = Body(classes="answer")
        self._done: list[Block] = []
        self._unread = ""
        self._finished = False
        self._timer: Timer | None = None
        self._not_before = 0.0

    def compose(self) -> ComposeResult:
        """Heading, reasoning, text, footer."""
        yield Static(Content.styled(one_line(self._assistant), "bold"), classes="heading", markup=False)
        yield self._thinking
        yield self._body
        yield Static(Content.styled(self._waiting, "$quiet"), classes="footer", markup=False)

    def on_mount(self) -> None:
        """Start drawing."""
        self._timer = self.set_interval(1 / DRAWS_PER_SECOND, self._tick)

    @property
    def can_unfold(self) -> bool:
        """Whether the reply has ended and has reasoning."""
        return self.message is not None and bool(self.message.reasoning)

    @property
    def source(self) -> str:
        """The Markdown drawn so far."""
        return self._stream.source

    def feed(self, piece: TextDelta) -> None:
        """Add text; it is drawn at the next tick."""
        self._pieces.append(piece)

    def wait_for(self, what: Content) -> None:
        """Show a status in the footer until text arrives."""
        if what.plain != self._waiting:
            self._waiting = what.plain
            if self.is_mounted and not self._finished:
                self.query_one(".footer", Static).update(what)

    def finish(self, message: Message, facts: Facts | None = None) -> None:
        """The reply has ended: draw the rest and the footer."""
        self.message, self.facts, self._finished = message, facts, True

    def unfold(self) -> None:
        """Toggle the reasoning after the reply has ended."""
        if self.can_unfold and self.message is not None:
            self._thinking.toggle(self.message)

    def unfold_to(self, words: Sequence[str]) -> None:
        """Unfold the reasoning if it alone holds one of the words searched for."""
        if self.message is None or not self.can_unfold or self._thinking.unfolded:
            return
        if is_hidden(words, reasoning_of(self.message), self.message.content):
            self._thinking.toggle(self.message)

    def _tick(self) -> None:
        began = time.monotonic()
        if began >= self._not_before:
            self._draw()
            self._not_before = began + MIN_IDLE_RATIO * (time.monotonic() - began)
        if self._finished and not self._unread and not self._pieces:
            self._finish_drawing()

    def _draw(self) -> None:
        thought = self._take_pieces()
        if thought:
            self.wait_for(Content(""))
            self._thinking.grow(thought)
        if self._unread:
            self.wait_for(Content(""))
            if self._thinking.text:
                self._thinking.close()
            now, self._unread = self._unread[:MAX_CHARACTERS_PER_DRAW], self._unread[MAX_CHARACTERS_PER_DRAW:]
            self._write(now)

    def _take_pieces(self) -> str:
        """New reasoning; new text of the answer is added to the unread text."""
        pieces, self._pieces = self._pieces, []
        thought = ""
        for (part, takes_answer), group in groupby(pieces, lambda one: (one.part, one.takes_answer)):
            if takes_answer:
                # Only the end of the reasoning was marked: what was shown as the answer is reasoning.
                thought += self._stream.source + self._unread
                self._begin_answer()
            stream = self._printable.setdefault(part, PrintableStream())
            text = stable_width(stream.feed("".join(piece.text for piece in group)))
            if part == "reasoning":
                thought += text
            else:
                self._unread += text
        return thought

    def _begin_answer(self) -> None:
        """Drop the answer shown so far."""
        self.query(".answer").remove()
        self._stream, self._unread = Stream(), ""
        self._begin_body(Body(classes="answer"))

    def _write(self, text: str) -> None:
        done, rest = self._stream.feed(text)
        self._done += done
        self._body.put(self._done)
        if (width := self._body.size.width) and len(self._body.lines(width)) > MAX_BODY_LINES:
            self._begin_body(Body(before=self._done[-1], classes="answer"))
        self._body.put([*self._done, *rest])

    def _begin_body(self, body: Body) -> None:
        self._body, self._done = body, []
        self.mount(body, before=self.query_one(".footer"))

    def _finish_drawing(self) -> None:
        if self._timer is None or self.message is None:
            return
        final = stable_width(self.message.content)
        if final.rstrip() != self._stream.source.rstrip():
            # The stored reply differs from the streamed text: draw it again.
            self._begin_answer()
            self._unread = final
            return
        self._timer.stop()
        self._timer = None
        self._thinking.finish(self.message)
        self.query_one(".heading", Static).update(heading(self.message, self._assistant))
        self.query_one(".footer", Static).update(footer(self.message, self.facts) or "")

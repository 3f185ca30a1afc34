"""A reply while it streams: only its end is redrawn."""

from __future__ import annotations

import time

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.timer import Timer
from textual.widgets import Static

from tqchat.store.database import Message
from tqchat.text import PrintableStream, one_line, stable_width
from tqchat.ui.controller.texts.reasoning import Splitter, parts
from tqchat.ui.widgets.chat.blocks import Block, blocks
from tqchat.ui.widgets.chat.body import Body
from tqchat.ui.widgets.chat.message import Facts, footer, heading, thoughts
from tqchat.ui.widgets.chat.stream import Stream

DRAWS_PER_SECOND = 8
"""Draws of streamed text per second: smooth, and cheap enough for slow machines."""
MAX_CHARACTERS_PER_DRAW = 4_000
"""Maximum characters per draw."""
MIN_IDLE_RATIO = 12
"""After a draw, wait at least this multiple of its duration."""
THINKING_LINES = 12
"""Lines of reasoning shown while it streams."""
MAX_BODY_LINES = 80
"""A longer reply continues in another widget, which bounds the text laid out again per draw."""


class LiveReply(Vertical):
    """A reply while it streams, and after it has ended."""

    def __init__(self, name: str, waiting: str = "") -> None:
        super().__init__(classes="message assistant live")
        self.message: Message | None = None
        self.facts: Facts | None = None
        self._assistant = name
        self._waiting = waiting
        self._pieces: list[str] = []
        self._printable = PrintableStream()
        self._splitter = Splitter()
        self._stream = Stream()
        self._body = Body()
        self._done: list[Block] = []
        self._unread = ""
        self._thought = ""
        self._unfolded = self._finished = False
        self._timer: Timer | None = None
        self._not_before = 0.0

    def compose(self) -> ComposeResult:
        """Heading, reasoning, text, footer."""
        yield Static(Content.styled(one_line(self._assistant), "bold"), classes="heading", markup=False)
        yield Static("", classes="thinking", markup=False)
        yield self._body
        yield Static(Content.styled(self._waiting, "$quiet"), classes="footer", markup=False)

    def on_mount(self) -> None:
        """Start drawing."""
        self._timer = self.set_interval(1 / DRAWS_PER_SECOND, self._tick)

    @property
    def can_unfold(self) -> bool:
        """Whether the reply has ended and has reasoning."""
        return bool(self._thought) and self._timer is None

    @property
    def source(self) -> str:
        """The Markdown drawn so far."""
        return self._stream.source

    def feed(self, text: str) -> None:
        """Add text; it is drawn at the next tick."""
        self._pieces.append(text)

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
        if self.can_unfold:
            self._unfolded = not self._unfolded
            self._show_thinking(thoughts(self._thought.strip(), self._unfolded))

    def _tick(self) -> None:
        began = time.monotonic()
        if began >= self._not_before:
            self._draw()
            self._not_before = began + MIN_IDLE_RATIO * (time.monotonic() - began)
        if self._finished and not self._unread and not self._pieces:
            self._finish_drawing()

    def _draw(self) -> None:
        pieces, self._pieces = self._pieces, []
        thought, text = self._splitter.feed(stable_width(self._printable.feed("".join(pieces))))
        self._unread += text
        if thought:
            self.wait_for(Content(""))
            self._thought += thought
            # Only the end; all of it can be unfolded afterwards.
            lines = self._thought[-THINKING_LINES * 200 :].strip().split("\n")[-THINKING_LINES:]
            self._show_thinking(Content.styled("▾ Thinking…\n" + "\n".join(lines), "$quiet italic"))
        if self._unread:
            self.wait_for(Content(""))
            if self._thought:
                self._show_thinking(thoughts(self._thought.strip(), self._unfolded))
            now, self._unread = self._unread[:MAX_CHARACTERS_PER_DRAW], self._unread[MAX_CHARACTERS_PER_DRAW:]
            self._write(now)

    def _write(self, text: str) -> None:
        done, rest = self._stream.feed(text)
        self._done += done
        self._body.put(self._done)
        if (width := self._body.size.width) and len(self._body.lines(width)) > MAX_BODY_LINES:
            self._begin_body(Body(before=self._done[-1]))
        self._body.put([*self._done, *rest])

    def _begin_body(self, body: Body) -> None:
        self._body, self._done = body, []
        self.mount(body, before=self.query_one(".footer"))

    def _show_thinking(self, content: Content) -> None:
        thinking = self.query_one(".thinking", Static)
        thinking.display = True
        thinking.update(content)

    def _finish_drawing(self) -> None:
        if self._timer is None or self.message is None:
            return
        thought, final = parts(self.message)
        if final.rstrip() != self._stream.source.rstrip():
            # The stored reply differs from the streamed text: draw it again.
            self.query(Body).remove()
            self._stream, self._unread = Stream(), final
            self._begin_body(Body())
            return
        self._timer.stop()
        self._timer = None
        if self._stream.has_link_references:
            self.query(Body).remove()
            self._begin_body(Body(blocks(final)))
        self._thought = thought
        if thought:
            self._show_thinking(thoughts(thought, self._unfolded))
        self.query_one(".heading", Static).update(heading(self.message, self._assistant))
        self.query_one(".footer", Static).update(footer(self.message, self.facts) or "")

"""A reply while it is written: drawn piece by piece, never more than its end at a time."""

from __future__ import annotations

import time

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.timer import Timer
from textual.widgets import Static

from tqchat.store.database import Message
from tqchat.text import PrintableStream, one_line, steady
from tqchat.ui.controller.texts.reasoning import Splitter, split
from tqchat.ui.widgets.chat.blocks import Block, blocks
from tqchat.ui.widgets.chat.body import Body
from tqchat.ui.widgets.chat.message import Facts, footer, heading, thoughts
from tqchat.ui.widgets.chat.stream import Stream

PIECES_PER_SECOND = 8
"""How often streamed text is drawn: smooth to the eye, and a slow machine keeps its time for the model."""
MOST_AT_ONCE = 4_000
"""Characters drawn at a time, however many have come."""
SHARE = 12
"""Drawing a piece takes at most one part in so many of the time."""
THINKING_LINES = 12
"""Lines of a model's thinking that are shown while it goes on."""
BODY_LINES = 80
"""Lines from which on a reply goes on in another widget: what is drawn anew is never more than this."""


class LiveReply(Vertical):
    """A reply that grows; afterwards it stays as it is."""

    def __init__(self, name: str, waiting: str = "") -> None:
        super().__init__(classes="message assistant live")
        self.message: Message | None = None
        self.facts: Facts | None = None
        self._who = name
        self._waiting = waiting
        self._pieces: list[str] = []
        self._safe = PrintableStream()
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
        """A line for who, the text, a line for how it went."""
        yield Static(Content.styled(one_line(self._who), "bold"), classes="heading", markup=False)
        yield Static("", classes="thinking", markup=False)
        yield self._body
        yield Static(Content.styled(self._waiting, "$quiet"), classes="footer", markup=False)

    def on_mount(self) -> None:
        """From here on there is something to write into."""
        self._timer = self.set_interval(1 / PIECES_PER_SECOND, self._beat)

    @property
    def can_unfold(self) -> bool:
        """Whether there is thinking to be shown."""
        return bool(self._thought) and self._timer is None

    @property
    def source(self) -> str:
        """The Markdown that is drawn."""
        return self._stream.source

    def feed(self, text: str) -> None:
        """The next piece. Drawn with the next beat."""
        self._pieces.append(text)

    def wait_for(self, what: Content) -> None:
        """Say what goes on before the first words."""
        if what.plain != self._waiting:
            self._waiting = what.plain
            if self.is_mounted and not self._finished:
                self.query_one(".footer", Static).update(what)

    def finish(self, message: Message, facts: Facts | None = None) -> None:
        """The reply is complete: draw the rest, and how it went."""
        self.message, self.facts, self._finished = message, facts, True

    def unfold(self) -> None:
        """Show the thinking, or fold it away, once it is over."""
        if self.can_unfold:
            self._unfolded = not self._unfolded
            self._show_thinking(thoughts(self._thought.strip(), self._unfolded))

    def _beat(self) -> None:
        began = time.monotonic()
        if began >= self._not_before:
            self._draw()
            self._not_before = began + SHARE * (time.monotonic() - began)
        if self._finished and not self._unread and not self._pieces:
            self._end()

    def _draw(self) -> None:
        pieces, self._pieces = self._pieces, []
        thought, text = self._splitter.feed(steady(self._safe.feed("".join(pieces))))
        self._unread += text
        if thought:
            self.wait_for(Content(""))
            self._thought += thought
            # Its end is what is being thought; all of it can be unfolded afterwards.
            lines = self._thought[-THINKING_LINES * 200 :].strip().split("\n")[-THINKING_LINES:]
            self._show_thinking(Content.styled("▾ Thinking…\n" + "\n".join(lines), "$quiet italic"))
        if self._unread:
            self.wait_for(Content(""))
            if self._thought:
                self._show_thinking(thoughts(self._thought.strip(), self._unfolded))
            now, self._unread = self._unread[:MOST_AT_ONCE], self._unread[MOST_AT_ONCE:]
            self._write(now)

    def _write(self, text: str) -> None:
        done, rest = self._stream.feed(text)
        self._done += done
        self._body.put(self._done)
        if (width := self._body.size.width) and len(self._body.lines(width)) > BODY_LINES:
            self._begin_body(Body(before=self._done[-1]))
        self._body.put([*self._done, *rest])

    def _begin_body(self, body: Body) -> None:
        self._body, self._done = body, []
        self.mount(body, before=self.query_one(".footer"))

    def _show_thinking(self, content: Content) -> None:
        thinking = self.query_one(".thinking", Static)
        thinking.display = True
        thinking.update(content)

    def _end(self) -> None:
        if self._timer is None or self.message is None:
            return
        thought, final = split(steady(self.message.content))
        if final.rstrip() != self._stream.source.rstrip():
            # What was streamed is not what the reply became: it is drawn anew.
            self.query(Body).remove()
            self._stream, self._unread = Stream(), final
            self._begin_body(Body())
            return
        self._timer.stop()
        self._timer = None
        if self._stream.has_names:
            self.query(Body).remove()
            self._begin_body(Body(blocks(final)))
        self._thought = thought
        if thought:
            self._show_thinking(thoughts(thought, self._unfolded))
        self.query_one(".heading", Static).update(heading(self.message, self._who))
        self.query_one(".footer", Static).update(footer(self.message, self.facts) or "")

"""One message on the screen: live while it is written, one frozen widget when it is old."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.timer import Timer
from textual.widgets import Markdown, Static

from tqchat.store.database import Message
from tqchat.text import PrintableStream, printable
from tqchat.ui import figures
from tqchat.ui.widgets.chat.frozen import frozen, parser

PIECES_PER_SECOND = 12
"""How often streamed text is drawn: smooth to the eye, and a slow machine keeps its time for the model."""


def shown(text: str) -> str:
    """Text made safe to draw. Unicode's own line ends become plain ones: Markdown widgets count by them."""
    return printable(text).replace("\u2028", "\n").replace("\u2029", "\n")


def heading(message: Message, assistant: str) -> Content:
    """Who speaks, and when."""
    name = "you" if message.role == "user" else printable(message.model or assistant)
    style = "bold $accent" if message.role == "user" else "bold"
    return Content.assemble((name, style), (f"  {figures.clock(message.created_at)}", "$quiet"))


def footer(message: Message, ending: str | None = None) -> Content | None:
    """``96 tok · 71 tok/s · first 0.2 s · turbo0v4``, and how the reply ended if not by itself."""
    parts: list[str] = []
    if message.tokens is not None:
        parts.append(f"{figures.number(message.tokens)} tok")
    if message.tokens_per_second:
        parts.append(figures.speed(message.tokens_per_second))
    if message.first_token_seconds is not None:
        parts.append(f"first {figures.seconds(message.first_token_seconds)}")
    if message.scheme:
        parts.append(printable(message.scheme))
    ended = {"stopped": "stopped", "unfinished": "unfinished: ^R answers again"}.get(message.status, ending)
    content = Content.styled(" · ".join(parts), "$quiet")
    if ended:
        content = Content.assemble(content, (" · " if parts else "", "$quiet"), (ended, "$warning"))
    return content if content.plain else None


class FrozenMessage(Static):
    """A whole message as one widget."""

    def __init__(self, message: Message, assistant: str, ending: str | None = None) -> None:
        body = Content(shown(message.content)) if message.role == "user" else frozen(shown(message.content))
        if not body.plain.strip():
            body = Content.styled("(nothing was said)", "$quiet")
        parts = [heading(message, assistant), body]
        if message.role == "assistant" and (foot := footer(message, ending)) is not None:
            parts.append(foot)
        super().__init__(Content("\n").join(parts), classes=f"message {message.role}", markup=False)
        self.message = message


class ReplyBody(Markdown):
    """Markdown of a model: links lead nowhere by themselves, HTML is text."""

    def __init__(self) -> None:
        super().__init__(parser_factory=parser, open_links=False)


class LiveReply(Vertical):
    """A reply as Markdown widgets: streamed piece by piece, then kept while it is among the newest.

    Always fed from an empty document: Textual drops text when a document that was set is appended to.
    """

    def __init__(self, name: str, waiting: str = "") -> None:
        super().__init__(classes="message assistant live")
        self.message: Message | None = None
        self.ending: str | None = None
        self._who = name
        self._waiting = waiting
        self._pieces: list[str] = []
        self._safe = PrintableStream()
        self._finished = False
        self._timer: Timer | None = None

    def compose(self) -> ComposeResult:
        """A line for who, the text, a line for how it went."""
        yield Static(Content.styled(printable(self._who), "bold"), classes="heading", markup=False)
        yield ReplyBody()
        yield Static(Content.styled(self._waiting, "$quiet"), classes="footer", markup=False)

    def on_mount(self) -> None:
        """From here on there is a document to write into."""
        self._timer = self.set_interval(1 / PIECES_PER_SECOND, self._draw)
        self._end_if_finished()

    def feed(self, text: str) -> None:
        """The next piece. Drawn with the next beat."""
        self._pieces.append(text)

    def wait_for(self, what: str) -> None:
        """Say what goes on before the first words."""
        if what == self._waiting:
            return
        self._waiting = what
        if self.is_mounted and not self._finished:
            self.query_one(".footer", Static).update(Content.styled(what, "$quiet"))

    def finish(self, message: Message, ending: str | None = None) -> None:
        """The reply is complete: draw the rest, and how it went."""
        self.message, self.ending, self._finished = message, ending, True
        if self.is_mounted:
            self._end_if_finished()

    def _end_if_finished(self) -> None:
        if self._finished:
            self.call_later(self._end)

    async def _draw(self) -> None:
        pieces, self._pieces = self._pieces, []
        text = shown(self._safe.feed("".join(pieces)))
        if text:
            self.wait_for("")
            await self.query_one(ReplyBody).append(text)

    async def _end(self) -> None:
        if self._timer is None or self.message is None:
            return
        self._timer.stop()
        self._timer = None
        await self._draw()
        body = self.query_one(ReplyBody)
        final = shown(self.message.content)
        if body.source != final:
            await body.update(final)
        self.query_one(".heading", Static).update(heading(self.message, self._who))
        self.query_one(".footer", Static).update(footer(self.message, self.ending) or "")

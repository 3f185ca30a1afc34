"""One message on the screen: live while it is written, one frozen widget when it is old."""

from __future__ import annotations

from dataclasses import dataclass

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.timer import Timer
from textual.widgets import Markdown, Static

from tqchat.store.database import Message
from tqchat.text import PrintableStream, printable
from tqchat.ui import figures
from tqchat.ui.widgets.chat.frozen import frozen, parser
from tqchat.ui.widgets.chat.thinking import Splitter, split

PIECES_PER_SECOND = 8
"""How often streamed text is drawn: smooth to the eye, and a slow machine keeps its time for the model."""
THINKING_LINES = 12
"""Lines of a model's thinking that are shown while it goes on."""


@dataclass(frozen=True)
class Facts:
    """What is said of a message beside its own figures: how it ended, which of how many versions it is."""

    ending: str | None = None
    version: int = 1
    versions: int = 1


def shown(text: str) -> str:
    """Text made safe to draw. Unicode's own line ends become plain ones: Markdown widgets count by them."""
    return printable(text).replace("\u2028", "\n").replace("\u2029", "\n")


def heading(message: Message, assistant: str, facts: Facts | None = None) -> Content:
    """Who speaks, and when; for the person's own messages which version this is."""
    own = message.role == "user"
    name = "you" if own else printable(message.model or assistant)
    said = [(name, "bold $accent" if own else "bold"), (f"  {figures.clock(message.created_at)}", "$quiet")]
    if own and facts is not None and facts.versions > 1:
        said.append((f"  {facts.version}/{facts.versions}", "$accent"))
    return Content.assemble(*said)


def footer(message: Message, facts: Facts | None = None) -> Content | None:
    """``96 tok · 71 tok/s · first 0.2 s · turbo0v4``, how the reply ended if not by itself, and ``2/3``."""
    facts = facts or Facts()
    parts: list[str] = []
    if message.tokens is not None:
        parts.append(f"{figures.number(message.tokens)} tok")
    if message.tokens_per_second:
        parts.append(figures.speed(message.tokens_per_second))
    if message.first_token_seconds is not None:
        parts.append(f"first {figures.seconds(message.first_token_seconds)}")
    if message.scheme:
        parts.append(printable(message.scheme))
    content = Content.styled(" · ".join(parts), "$quiet")
    ended = facts.ending or (message.status if message.status != "complete" else None)
    if ended:
        content = Content.assemble(content, (" · " if content.plain else "", "$quiet"), (ended, "$warning"))
    if facts.versions > 1:
        place = f"{facts.version}/{facts.versions}"
        content = Content.assemble(content, (" · " if content.plain else "", "$quiet"), (place, "$accent"))
    return content if content.plain else None


def thoughts(text: str, unfolded: bool) -> Content:
    """A reply's thinking: one line that says how long it was, or all of it."""
    count = f"{figures.number(len(text.split()))} words"
    if not unfolded:
        return Content.styled(f"▸ Thought, {count}", "$quiet")
    return Content.styled(f"▾ Thought, {count}\n{text}", "$quiet italic")


class FrozenMessage(Static):
    """A whole message as one widget."""

    def __init__(self, message: Message, assistant: str, facts: Facts | None = None) -> None:
        super().__init__("", classes=f"message {message.role}", markup=False)
        self.message, self._assistant, self._facts = message, assistant, facts
        self._unfolded = False
        self.update(self._content())

    def unfold(self) -> None:
        """Show the thinking, or fold it away."""
        self._unfolded = not self._unfolded
        self.update(self._content())

    def _content(self) -> Content:
        message, text = self.message, shown(self.message.content)
        thought, answer = split(text) if message.role == "assistant" else ("", text)
        body = Content(text) if message.role == "user" else frozen(answer)
        parts = [heading(message, self._assistant, self._facts)]
        if thought:
            parts += [thoughts(thought, self._unfolded), Content("")]
        if body.plain.strip():
            parts.append(body)
        elif not thought:
            parts.append(Content.styled("(nothing was said)", "$quiet"))
        if message.role == "assistant" and (foot := footer(message, self._facts)) is not None:
            parts.append(foot)
        return Content("\n").join(parts)


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
        self.facts: Facts | None = None
        self._who = name
        self._waiting = waiting
        self._pieces: list[str] = []
        self._safe = PrintableStream()
        self._splitter = Splitter()
        self._thought = ""
        self._unfolded = False
        self._finished = False
        self._timer: Timer | None = None

    def compose(self) -> ComposeResult:
        """A line for who, the text, a line for how it went."""
        yield Static(Content.styled(printable(self._who), "bold"), classes="heading", markup=False)
        yield Static("", classes="thinking", markup=False)
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

    def finish(self, message: Message, facts: Facts | None = None) -> None:
        """The reply is complete: draw the rest, and how it went."""
        self.message, self.facts, self._finished = message, facts, True
        if self.is_mounted:
            self._end_if_finished()

    def _end_if_finished(self) -> None:
        if self._finished:
            self.call_later(self._end)

    async def _draw(self) -> None:
        pieces, self._pieces = self._pieces, []
        thought, text = self._splitter.feed(shown(self._safe.feed("".join(pieces))))
        if thought:
            self.wait_for("")
            self._thought += thought
            # Its end is what is being thought; all of it can be unfolded afterwards.
            lines = self._thought.strip().splitlines()[-THINKING_LINES:]
            body = "\n".join(lines)[-THINKING_LINES * 200 :]
            self._show_thinking(Content.styled(f"▾ Thinking…\n{body}", "$quiet italic"))
        if text:
            self.wait_for("")
            if self._thought:
                self._show_thinking(thoughts(self._thought.strip(), self._unfolded))
            await self.query_one(ReplyBody).append(text)

    def _show_thinking(self, content: Content) -> None:
        thinking = self.query_one(".thinking", Static)
        thinking.display = True
        thinking.update(content)

    def unfold(self) -> None:
        """Show the thinking, or fold it away, once it is over."""
        if self._thought and self._finished:
            self._unfolded = not self._unfolded
            self._show_thinking(thoughts(self._thought.strip(), self._unfolded))

    async def _end(self) -> None:
        if self._timer is None or self.message is None:
            return
        self._timer.stop()
        self._timer = None
        await self._draw()
        body = self.query_one(ReplyBody)
        self._thought, final = split(shown(self.message.content))
        if self._thought:
            self._show_thinking(thoughts(self._thought, self._unfolded))
        if body.source != final:
            await body.update(final)
        self.query_one(".heading", Static).update(heading(self.message, self._who))
        self.query_one(".footer", Static).update(footer(self.message, self.facts) or "")

"""A reply's reasoning: while it streams, and folded to one line."""

from __future__ import annotations

from textual.content import Content

from tqchat.settings.schema import ThinkingDisplay
from tqchat.store.database import Message
from tqchat.text import stable_width
from tqchat.ui import figures
from tqchat.ui.widgets.chat.blocks import Block, Line, Paragraph
from tqchat.ui.widgets.chat.body import Body

TAIL_LINES = 12
"""Lines of reasoning shown while it streams, unless all of it is wanted."""
_TAIL_CHARACTERS = TAIL_LINES * 200
_STYLE = "$quiet italic"


def reasoning_of(message: Message) -> str:
    """A message's reasoning as it is shown."""
    return stable_width(message.reasoning or "").strip()


def summary(text: str, seconds: float | None = None, cut: bool = False) -> str:
    """``Thought for 12 s, 340 words``; ``cut``: the reply ended before its answer began."""
    words = len(text.split())
    count = f"{figures.number(words)} word" + ("" if words == 1 else "s")
    if seconds:
        return f"{'Thinking cut off after' if cut else 'Thought for'} {figures.seconds(seconds)}, {count}"
    return f"{'Thinking cut off' if cut else 'Thought'}, {count}"


def thoughts(text: str, unfolded: bool, seconds: float | None = None, cut: bool = False) -> list[Block]:
    """The reasoning of a reply that has ended: a summary, or all of it below the summary."""
    title = summary(text, seconds, cut)
    if not unfolded:
        return [Paragraph(Content.styled(f"▸ {title}", "$quiet"), aside=True)]
    return [Line(Content.styled(f"▾ {title}", _STYLE), aside=True), Paragraph(Content.styled(text, _STYLE))]


def thoughts_of(message: Message, unfolded: bool) -> list[Block]:
    """The reasoning of a stored reply."""
    text, cut = reasoning_of(message), not message.content.strip()
    return thoughts(text, unfolded, message.reasoning_seconds, cut)


class Thinking(Body):
    """The reasoning of a reply that streams: its end, unless all of it is to be shown."""

    def __init__(self, display: ThinkingDisplay = "folded") -> None:
        super().__init__(classes="thinking")
        self.text = ""
        self._unfolded = display != "folded"
        self._folds_itself = display == "streaming"
        self._complete_lines: list[Block] = []
        self._last_line = ""

    @property
    def unfolded(self) -> bool:
        """Whether all of it is shown."""
        return self._unfolded

    def grow(self, text: str) -> None:
        """Add text and show it as reasoning that goes on."""
        self.text += text
        *complete, self._last_line = (self._last_line + text).split("\n")
        self._complete_lines += [Line(Content.styled(line, _STYLE)) for line in complete]
        if self._unfolded:
            lines = [*self._complete_lines, Line(Content.styled(self._last_line, _STYLE))]
        else:
            tail = self.text[-_TAIL_CHARACTERS:].strip().split("\n")[-TAIL_LINES:]
            lines = [Line(Content.styled("\n".join(tail), _STYLE))]
        self._show([Line(Content.styled("▾ Thinking…", _STYLE), aside=True), *lines])

    def close(self) -> None:
        """The answer begins."""
        self._fold()
        self._show(thoughts(self.text.strip(), self._unfolded))

    def finish(self, message: Message) -> None:
        """The reply has ended: show the reasoning that was stored."""
        self.text = reasoning_of(message)
        self._fold()
        if self.text:
            self._show(thoughts_of(message, self._unfolded))
        else:
            self.display = False

    def toggle(self, message: Message) -> None:
        """Unfold or fold it."""
        self._unfolded = not self._unfolded
        self.finish(message)

    def _fold(self) -> None:
        """Fold it, if it is to be open only while it streams."""
        if self._folds_itself:
            self._unfolded = self._folds_itself = False

    def _show(self, blocks: list[Block]) -> None:
        self.display = True
        self.put(blocks)

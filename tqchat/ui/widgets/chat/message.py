"""One message on the screen, with its heading and footer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual.content import Content

from tqchat.store.database import Message
from tqchat.text import one_line, stable_width
from tqchat.ui import figures
from tqchat.ui.input import attachments
from tqchat.ui.widgets.chat.blocks import Block, Line, blocks
from tqchat.ui.widgets.chat.body import Body
from tqchat.ui.widgets.chat.thinking import reasoning_of, thoughts_of

USER_LINES, USER_CHARACTERS = 24, 2_400
"""Size of a user message shown before it is unfolded."""
REPLY_PAGE_CHARACTERS = 40_000
"""Size of a reply shown; each unfolding shows as much more."""


@dataclass(frozen=True)
class Facts:
    """End state and version of a message, for its heading and footer."""

    ending: str | None = None
    version: int = 1
    versions: int = 1


def heading(message: Message, assistant: str, facts: Facts | None = None) -> Content:
    """Author and time; for user messages the version, if there are several."""
    own = message.role == "user"
    name = "you" if own else one_line(message.model or assistant)
    said = [(name, "bold $accent" if own else "bold"), (f"  {figures.clock(message.created_at)}", "$quiet")]
    if own and facts is not None and facts.versions > 1:
        said.append((f"  {facts.version}/{facts.versions}", "$accent"))
    return Content.assemble(*said)


def footer(message: Message, facts: Facts | None = None) -> Content | None:
    """``96 tok · 71 tok/s · first 0.2 s · turbo0v4``, accepted draft tokens, how the reply ended if not by
    itself, and its version ``2/3``.
    """
    facts = facts or Facts()
    parts: list[str] = []
    if message.tokens is not None:
        parts.append(f"{figures.number(message.tokens)} tok")
    if message.tokens_per_second:
        parts.append(figures.speed(message.tokens_per_second))
    if message.first_token_seconds is not None:
        parts.append(f"first {figures.seconds(message.first_token_seconds)}")
    if message.drafted:
        parts.append(f"{figures.number(message.accepted or 0)} of {figures.number(message.drafted)} drafted")
    if message.scheme:
        parts.append(one_line(message.scheme))
    content = Content.styled(" · ".join(parts), "$quiet")
    ended = facts.ending or (message.status if message.status != "complete" else None)
    if ended:
        content = Content.assemble(content, (" · " if content.plain else "", "$quiet"), (ended, "$warning"))
    if facts.versions > 1:
        place = f"{facts.version}/{facts.versions}"
        content = Content.assemble(content, (" · " if content.plain else "", "$quiet"), (place, "$accent"))
    return content if content.plain else None


class FrozenMessage(Body):
    """A finished message as one widget. ``shows_thinking`` unfolds its reasoning at first."""

    def __init__(
        self, message: Message, assistant: str, facts: Facts | None = None, shows_thinking: bool = False
    ) -> None:
        super().__init__(classes=f"message {message.role}")
        self._shows_thinking = shows_thinking
        self.message, self._assistant, self._facts = message, assistant, facts
        self._unfolded = 0
        self.put(self._content())

    @property
    def can_unfold(self) -> bool:
        """Whether part of the message is folded at first."""
        return self._folds

    def unfold(self) -> None:
        """Show more: reasoning, attachments, the next part of a long text; at the end fold all again."""
        self._unfolded = self._unfolded + 1 if self._more or not self._unfolded else 0
        self.put(self._content())

    def unfold_to(self, words: Sequence[str]) -> None:
        """Unfold until no word searched for is in a folded part alone."""
        pages = len(self.message.content) // REPLY_PAGE_CHARACTERS + 1
        while is_hidden(words, self._folded_text, self._shown_text) and self._unfolded < pages:
            self._unfolded += 1
            self.put(self._content())

    def _content(self) -> list[Block]:
        message = self.message
        own = message.role == "user"
        said = self._user_blocks() if own else self._reply_blocks()
        if not said:
            said = [Line(Content.styled("(empty)", "$quiet"), aside=True)]
        foot = footer(message, self._facts) if not own else None
        return [
            Line(heading(message, self._assistant, self._facts), aside=True),
            *said,
            *([Line(foot, aside=True)] if foot is not None else []),
        ]

    def _user_blocks(self) -> list[Block]:
        """A user message as typed; files and long texts folded."""
        said, files = attachments.split(self.message.content)
        text = stable_width(said)
        shown, left = (text, 0) if self._unfolded else beginning(text, USER_LINES, USER_CHARACTERS)
        self._more, self._folds = 0, bool(left or files)
        self._shown_text = self.message.content if self._unfolded else shown
        self._folded_text = "" if self._unfolded else self.message.content
        found: list[Block] = [Line(Content(shown))] if shown.strip() else []
        if left:
            found.append(_folded(f"{figures.number(left)} more characters"))
        for file in files:
            found.append(_folded(file.label, self._unfolded > 0))
            if self._unfolded:
                found.append(Line(Content.styled(stable_width(file.text), "$quiet")))
        return found

    def _reply_blocks(self) -> list[Block]:
        thought, answer = reasoning_of(self.message), stable_width(self.message.content)
        shown, left = beginning(answer, None, REPLY_PAGE_CHARACTERS * (1 + self._unfolded))
        self._more, self._folds = left, bool(left or thought)
        unfolded = (self._unfolded > 0) != self._shows_thinking
        self._shown_text = (thought if unfolded else "") + shown
        self._folded_text = ("" if unfolded else thought) + answer[len(shown) :]
        found: list[Block] = []
        if thought:
            found += thoughts_of(self.message, unfolded)
        found += blocks(shown)
        if left:
            found.append(_folded(f"{figures.number(left)} more characters"))
        return found


def is_hidden(words: Sequence[str], folded: str, shown: str) -> bool:
    """Whether one of the words, in any case, is in the folded text and not in the shown one."""
    folded, shown = folded.lower(), shown.lower()
    return any(word.lower() in folded and word.lower() not in shown for word in words)


def beginning(text: str, lines: int | None, characters: int) -> tuple[str, int]:
    """The beginning of a long text, cut between lines or words, and the number of characters left out."""
    if len(text) <= characters and (lines is None or text.count("\n") < lines):
        return text, 0
    cut = text[:characters]
    if lines is not None:
        cut = "\n".join(cut.split("\n")[:lines])
    if len(cut) == characters:
        at = max(cut.rfind("\n", characters // 2), cut.rfind(" ", characters - 100))
        cut = cut[:at] if at > 0 else cut
    return cut, len(text) - len(cut)


def _folded(what: str, unfolded: bool = False) -> Line:
    return Line(Content.styled(f"▾ {what}" if unfolded else f"▸ {what}", "$quiet"), aside=True)

"""The conversations, by day."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from tqchat.store.database import Conversation
from tqchat.text import one_line
from tqchat.ui import figures

WIDTH = 26


class ConversationList(Vertical):
    """A search box, and the conversations whose titles have its words, with what their caches take."""

    BORDER_TITLE = "Conversations"

    class Chosen(Message):
        """The person opens a conversation."""

        def __init__(self, conversation_id: str) -> None:
            super().__init__()
            self.conversation_id = conversation_id

    def __init__(self) -> None:
        super().__init__(id="conversations")
        self._conversations: Sequence[Conversation] = ()
        self._sizes: Mapping[str, int] = {}
        self._current: str | None = None

    def compose(self) -> ComposeResult:
        """The box above, the list below."""
        yield Input(placeholder="search titles", id="search", compact=True)
        yield OptionList(id="titles", compact=True, markup=False)

    def show(
        self, conversations: Sequence[Conversation], current: str | None, sizes: Mapping[str, int]
    ) -> None:
        """Draw the list. ``sizes`` are bytes, where they are known."""
        self._conversations, self._current, self._sizes = conversations, current, sizes
        self._draw()

    @property
    def found(self) -> list[Conversation]:
        """The conversations that the search leaves, newest first."""
        words = self.query_one("#search", Input).value.casefold().split()
        return [one for one in self._conversations if all(word in one.title.casefold() for word in words)]

    @property
    def marked(self) -> Conversation | None:
        """The conversation under the cursor, while the list has the keys."""
        titles = self.query_one("#titles", OptionList)
        option = titles.highlighted_option if titles.has_focus else None
        return next((one for one in self._conversations if option and one.id == option.id), None)

    def _draw(self) -> None:
        titles = self.query_one("#titles", OptionList)
        scroll = titles.scroll_y
        options: list[Option] = []
        heading, today = "", date.today()
        for conversation in self.found:
            day = figures.day(conversation.updated_at, today)
            if day != heading:
                heading = day
                options.append(Option(Content.styled(day, "$quiet"), disabled=True))
            options.append(Option(self._line(conversation), id=conversation.id))
        if not options:
            nothing = "No title has these words." if self._conversations else "None yet."
            options.append(Option(Content.styled(nothing, "$quiet"), disabled=True))
        titles.set_options(options)
        if self._current and any(option.id == self._current for option in options):
            titles.highlighted = titles.get_option_index(self._current)
        titles.scroll_to(y=scroll, animate=False)

    def _line(self, conversation: Conversation) -> Content:
        current = conversation.id == self._current
        held = self._sizes.get(conversation.id)
        size = f" {figures.size(held)}" if held else ""
        title = figures.fit(one_line(conversation.title), WIDTH - 2 - len(size))
        mark = ("▌ ", "$accent") if current else "  "
        return Content.assemble(mark, (title, "bold" if current else ""), (size, "$quiet"))

    @on(Input.Changed, "#search")
    def _search(self, event: Input.Changed) -> None:
        event.stop()
        self._draw()

    @on(Input.Submitted, "#search")
    def _first_found(self, event: Input.Submitted) -> None:
        event.stop()
        if self.found:
            self.post_message(self.Chosen(self.found[0].id))

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        if event.option.id is not None:
            self.post_message(self.Chosen(event.option.id))

"""The list of conversations by day, or search results in titles and messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.cells import cell_len
from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.events import Click, MouseDown, MouseMove, MouseUp
from textual.message import Message
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from tqchat.store.database import Conversation, SearchHit
from tqchat.text import one_line
from tqchat.ui import figures
from tqchat.ui.widgets.conversations.order import DEFAULT_SORT, grouped
from tqchat.ui.widgets.fields import LineField
from tqchat.ui.widgets.fitted import Fitted

MIN_WIDTH, MAX_WIDTH = 20, 60
PAGE = 200
"""Conversations listed at first and added per request; thousands at once would block the screen."""
_MORE = "more"


class ConversationList(Vertical):
    """A search box above the conversations with their cache sizes, or above the search results."""

    BORDER_TITLE = "Conversations"
    ALLOW_SELECT = False

    class Chosen(Message):
        """A conversation was selected, with the message found by ``query``, if it was a search result."""

        def __init__(self, conversation_id: str, message_id: str | None = None, query: str = "") -> None:
            super().__init__()
            self.conversation_id, self.message_id, self.query = conversation_id, message_id, query

    class More(Message):
        """More conversations were requested: ``limit`` has grown."""

    class Resized(Message):
        """The user has set another width."""

        def __init__(self, width: int) -> None:
            super().__init__()
            self.width = width

    def __init__(self) -> None:
        super().__init__(id="conversations")
        self.find: Callable[[str], list[SearchHit]] = lambda text: []
        self._hits: list[SearchHit] = []
        self._conversations: Sequence[Conversation] = ()
        self._sizes: Mapping[str, int] = {}
        self._current: str | None = None
        self._dragged = False
        self._place: tuple[str | None, int | None] = (None, None)
        self.sort = DEFAULT_SORT
        self.limit = PAGE
        """Maximum conversations listed; pass one more to ``show`` to indicate that there are others."""

    def compose(self) -> ComposeResult:
        """Search box and list."""
        yield LineField(placeholder="search everything", id="search", compact=True)
        yield OptionList(id="titles", compact=True, markup=False)

    # The width

    def resize(self, width: int) -> int:
        """Set the width in cells, within bounds; the width that was set."""
        width = max(MIN_WIDTH, min(width, MAX_WIDTH))
        self.styles.width = width
        return width

    def on_mouse_down(self, event: MouseDown) -> None:
        """Begin to drag the right border."""
        if event.x == self.outer_size.width - 1:
            self._dragged = True
            self.capture_mouse()
            event.stop()

    def on_mouse_move(self, event: MouseMove) -> None:
        """Drag the right border."""
        if self._dragged:
            self.resize(event.x + 1)

    def on_mouse_up(self, event: MouseUp) -> None:
        """End dragging."""
        if self._dragged:
            self._dragged = False
            self.release_mouse()
            self.post_message(self.Resized(self.resize(event.x + 1)))

    async def on_click(self, event: Click) -> None:
        """Fold the panel at a click on its title."""
        if event.screen_y == self.region.y:  # not at the top of a child
            await self.run_action("app.act('toggle_list')")

    # Rows

    def show(
        self, conversations: Sequence[Conversation], current: str | None, sizes: Mapping[str, int]
    ) -> None:
        """Draw the list. ``sizes`` are cache bytes by conversation, where known."""
        # Keep the cursor when the list is redrawn for the same conversation.
        marked = self.marked if current == self._current else None
        if current != self._current and current not in [hit.conversation_id for hit in self._hits]:
            self.query_one("#search", LineField).value = ""  # it would hide what was opened
        self._conversations, self._current, self._sizes = conversations, current, sizes
        self._draw(marked.id if marked else current)

    @property
    def marked(self) -> Conversation | None:
        """The conversation under the cursor, if the list has focus."""
        titles = self.query_one("#titles", OptionList)
        option = titles.highlighted_option if titles.has_focus else None
        if option is None or option.id is None:
            return None
        return next((one for one in self._conversations if one.id == option.id.partition("/")[0]), None)

    def search_for(self, text: str) -> None:
        """Search for ``text`` and focus the search box."""
        box = self.query_one("#search", LineField)
        box.value = text
        box.focus()

    def _draw(self, cursor: str | None) -> None:
        titles = self.query_one("#titles", OptionList)
        if (query := self.query_one("#search", LineField).value).strip():
            self._hits = self.find(query)
            self.border_subtitle = f"{len(self._hits)} found"
            before = [None, *(hit.conversation_id for hit in self._hits)]
            titles.set_options([self._hit(hit, index, before[index]) for index, hit in enumerate(self._hits)])
            if not self._hits:
                titles.add_option(Option(Content.styled("No matches.", "$quiet"), disabled=True))
            return
        self._hits, self.border_subtitle = [], ""
        scroll = titles.scroll_y
        options: list[Option] = []
        left = self.limit
        for heading, members in grouped(self._conversations, self.sort, self._sizes):
            if left <= 0:
                break
            options.append(Option(Content.styled(heading, "$quiet"), disabled=True))
            options += [Option(self._line(one), id=one.id) for one in members[:left]]
            left -= len(members)
        if len(self._conversations) > self.limit:
            options.append(Option(Content.styled("▾ show earlier", "$quiet"), id=_MORE))
        if not options:
            options.append(Option(Content.styled("None yet.", "$quiet"), disabled=True))
        titles.set_options(options)
        if cursor and any(option.id == cursor for option in options):
            titles.highlighted = titles.get_option_index(cursor)
        place = self._current, titles.highlighted
        if place == self._place:
            titles.scroll_to(y=scroll, animate=False)  # else setting the cursor has scrolled to it
        elif titles.highlighted is not None and titles.highlighted <= 1:
            titles.scroll_to(y=0, animate=False)  # with the heading above it
        self._place = place

    def _hit(self, hit: SearchHit, index: int, before: str | None) -> Option:
        """A search result: title, unless the result above has the same, and the matching message text."""
        title, text = one_line(hit.title), _matching_text(hit)
        is_titled = text is None or before != hit.conversation_id

        def fit(width: int) -> Content:
            lines = [Content.styled(figures.fit(title, width), "bold")] if is_titled else []
            lines += [text.truncate(width, ellipsis=True)] if text is not None else []
            return Content("\n").join(lines)

        row = Fitted(int(is_titled) + int(text is not None), fit)
        return Option(row, id=f"{hit.conversation_id}/{index}")

    def _line(self, conversation: Conversation) -> Fitted:
        """Mark, title and cache size; the size is left out where it would shorten the title."""
        current = conversation.id == self._current
        mark = ("▌ ", "$accent") if current else "  "
        title = one_line(conversation.title)
        held = self._sizes.get(conversation.id)
        size = f" {figures.size(held)}" if held else ""

        def fit(width: int) -> Content:
            left = width - 2
            shown = size if cell_len(title) + len(size) <= left else ""
            fitted = figures.fit(title, left - len(shown))
            return Content.assemble(mark, (fitted, "bold" if current else ""), (shown, "$quiet"))

        return Fitted(1, fit)

    @on(LineField.Changed, "#search")
    def _search(self, event: LineField.Changed) -> None:
        event.stop()
        self._draw(self._current)

    @on(LineField.Submitted, "#search")
    def _first_found(self, event: LineField.Submitted) -> None:
        event.stop()
        if self._hits:
            first = self._hits[0]
            self.post_message(self.Chosen(first.conversation_id, first.message_id, event.value))

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        if event.option.id is None:
            return
        if event.option.id == _MORE:
            self.limit += PAGE
            self.post_message(self.More())
            return
        conversation_id, _, index = event.option.id.partition("/")
        message_id = self._hits[int(index)].message_id if index and int(index) < len(self._hits) else None
        query = self.query_one("#search", LineField).value
        self.post_message(self.Chosen(conversation_id, message_id, query))


def _matching_text(hit: SearchHit) -> Content | None:
    """The text of a message around what was found in it; None where the title alone matches."""
    if hit.message_id is None:
        return None
    mark = hit.marks[0][0] if hit.marks else 0
    start = mark and hit.snippet.rfind(" ", 0, max(0, mark - 4)) + 1
    start = start if mark - start <= 12 else mark
    text = Content(hit.snippet[start:])
    for first, last in hit.marks:
        if first >= start:
            text = text.stylize("bold underline $accent", first - start, last - start)
    return Content.assemble(("you: " if hit.role == "user" else "", "$quiet"), text)

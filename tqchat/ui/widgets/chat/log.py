"""The conversation: the newest messages as widgets, what is earlier fetched by scrolling up to it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message as Posted
from textual.widget import Widget
from textual.widgets import Static

from tqchat.store.database import Message
from tqchat.ui import figures
from tqchat.ui.actions.keys import bind
from tqchat.ui.widgets.chat.body import Body
from tqchat.ui.widgets.chat.live import LiveReply
from tqchat.ui.widgets.chat.message import Facts, FrozenMessage

PAGE = 30
"""Messages mounted at a time. What lags is the number of widgets, not the text."""
MOST = 4 * PAGE
"""Messages mounted from which on the earliest page is taken away again, while the end is looked at."""


class Earlier(Static):
    """Stands for the messages that are not mounted yet."""

    def __init__(self, load: Callable[[], None]) -> None:
        super().__init__("", classes="earlier", markup=False)
        self._load = load

    def count(self, messages: int) -> None:
        """Say how many there are."""
        self.update(Content(f"▲ {figures.number(messages)} earlier messages"))

    def on_click(self) -> None:
        """Fetch the next of them."""
        self._load()


class ChatLog(VerticalScroll):
    """A scrolling log that follows the reply until the person scrolls away from its end.

    A cursor moves over its messages; ``bindings`` are the keys of actions on the message under it.
    """

    can_focus = True

    class Marked(Posted):
        """The cursor stands on another message, or on none."""

        def __init__(self, message: Message | None) -> None:
            super().__init__()
            self.message = message

    def __init__(self, bindings: Iterable[Binding] = ()) -> None:
        super().__init__(id="log")
        bind(self, bindings)
        self._older: list[Message] = []
        self._views: list[FrozenMessage | LiveReply] = []
        self._assistant = "assistant"
        self._facts: Callable[[Message], Facts] = lambda message: Facts()
        self._marked: FrozenMessage | LiveReply | None = None
        self._earlier: Earlier | None = None
        self._loading = self._emphasised = False
        self._reply: LiveReply | None = None

    @property
    def reply(self) -> LiveReply | None:
        """The reply that is being written, if it is shown."""
        return self._reply

    def show(
        self, messages: Sequence[Message], assistant: str, facts: Callable[[Message], Facts] | None = None
    ) -> None:
        """Draw a conversation anew, from its end. ``facts`` tells what goes with each message."""
        self.mark(None)
        self.remove_children()
        self._assistant, self._facts = assistant, facts or self._facts
        visible = [message for message in messages if message.role != "system"]
        self._older, newest = visible[:-PAGE], visible[-PAGE:]
        self._reply, self._earlier = None, None
        self._views = [self._frozen(message) for message in newest]
        widgets: list[Widget] = list(self._views)
        if self._older:
            self._earlier = Earlier(self.load_earlier)
            self._earlier.count(len(self._older))
            widgets.insert(0, self._earlier)
        if widgets:
            self.mount_all(widgets)
        self.anchor()

    def add(self, message: Message) -> None:
        """A message that was just written. The person wrote it, so the log goes to its end."""
        self._forget_earliest()
        view = self._frozen(message)
        self._views.append(view)
        self.mount(view)
        self.anchor()

    def start_reply(self, assistant: str, waiting: str) -> None:
        """A reply is on its way."""
        self._assistant = assistant
        self._reply = LiveReply(assistant, waiting)
        self._views.append(self._reply)
        self.mount(self._reply)

    def grow(self, text: str) -> None:
        """The next piece of the reply."""
        if self._reply is not None:
            self._reply.feed(text)

    def finish_reply(self, message: Message | None) -> None:
        """The reply ended; without a message there was nothing in it."""
        reply, self._reply = self._reply, None
        if reply is None:
            return
        if message is None:
            self._views.remove(reply)
            reply.remove()
        else:
            reply.finish(message, self._facts(message))

    def reveal(self, message_id: str, words: Sequence[str] = ()) -> None:
        """Put the cursor on a message, however far back it is, and make visible what was looked for."""
        index = next((index for index, one in enumerate(self._older) if one.id == message_id), None)
        if index is not None:
            self.load_earlier(len(self._older) - index + PAGE // 2)
        self.emphasise(words)
        self.call_after_refresh(self.mark, message_id)

    def emphasise(self, words: Sequence[str]) -> None:
        """Make words visible wherever they are in the messages that are mounted; with none, no more."""
        self._emphasised = bool(words)
        longest_first = sorted(words, key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, longest_first)), re.I) if words else None
        for body in self.query(Body):
            body.emphasise(pattern)

    def load_earlier(self, count: int = PAGE) -> None:
        """Mount the page before, and keep what the person looks at where it is."""
        if not self._older or self._loading or self._earlier is None:
            return
        self._loading = True
        page, self._older = self._older[-count:], self._older[:-count]
        views = [self._frozen(message) for message in page]
        self._views[:0] = views
        before = self.virtual_size.height
        self.mount_all(views, after=self._earlier)
        self._earlier.count(len(self._older))
        self._earlier.display = bool(self._older)

        def settle() -> None:
            self.scroll_to(y=self.scroll_y + self.virtual_size.height - before, animate=False, force=True)
            self._loading = False

        self.call_after_refresh(settle)

    # The cursor over messages

    @property
    def marked(self) -> Message | None:
        """The message under the cursor."""
        return self._marked.message if self._marked is not None else None

    def mark(self, message_id: str | None) -> bool:
        """Put the cursor on a message, or take it away; whether the message is there."""
        found = next((view for view in self._views if view.message and view.message.id == message_id), None)
        if self._marked is not None:
            self._marked.remove_class("marked")
        changed, self._marked = found is not self._marked, found
        if found is not None:
            found.add_class("marked")
            self.focus(scroll_visible=False)
            self.call_after_refresh(self.scroll_to_widget, found, animate=False)
        if found is None and self._emphasised:
            self.emphasise(())
        if changed:
            self.post_message(self.Marked(self.marked))
        return found is not None

    def move_mark(self, step: int) -> bool:
        """Go over the messages, from the last upwards; whether the cursor stands on one then."""
        views = [view for view in self._views if view.message is not None]
        if not views:
            return False
        if self._marked in views:
            there = views.index(self._marked) + step
            if there < 0 and self._older:
                self.load_earlier()
                return True
            there = max(there, 0)
        else:
            there = len(views) - 1 if step < 0 else len(views)
        message = views[there].message if there < len(views) else None
        return self.mark(message.id if message else None)

    def fade(self, since: tuple[str | None, bool] | None) -> None:
        """Draw messages faintly from one on, that one included or not; all as usual for ``None``."""
        faded, (first, included) = False, since or (None, False)
        for view in self._views:
            here = since is not None and view.message is not None and view.message.id == first
            faded = faded or (here and included)
            view.set_class(faded, "faded")
            faded = faded or here

    def unfold(self) -> None:
        """Show or fold the thinking of the marked message."""
        if self._marked is not None:
            self._marked.unfold()

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Reaching the top fetches what is earlier."""
        super().watch_scroll_y(old_value, new_value)
        if new_value <= 0 < old_value and self._older:
            self.load_earlier()

    def _frozen(self, message: Message) -> FrozenMessage:
        return FrozenMessage(message, self._assistant, self._facts(message))

    def _forget_earliest(self) -> None:
        """Let go of the widgets furthest back, unless the person looks at what is there."""
        if len(self._views) <= MOST or self.scroll_y < self.max_scroll_y:
            return
        gone, self._views = self._views[:PAGE], self._views[PAGE:]
        self._older += [view.message for view in gone if view.message is not None]
        if self._marked in gone:
            self.mark(None)
        self.remove_children(gone)
        if self._earlier is None:
            self._earlier = Earlier(self.load_earlier)
            self.mount(self._earlier, before=0)
        self._earlier.count(len(self._older))
        self._earlier.display = True

"""The conversation: newest messages live, older ones frozen, the oldest fetched by scrolling up to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from textual.containers import VerticalScroll
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from tqchat.store.database import Message
from tqchat.ui import figures
from tqchat.ui.widgets.chat.message import FrozenMessage, LiveReply

PAGE = 30
"""Messages mounted at a time. What lags is the number of widgets, not the text."""
LIVE = 6
"""Replies kept as Markdown widgets after they were streamed."""


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
    """A scrolling log that follows the reply until the person scrolls away from its end."""

    can_focus = True

    def __init__(self) -> None:
        super().__init__(id="log")
        self._older: list[Message] = []
        self._views: list[FrozenMessage | LiveReply] = []
        self._assistant = "assistant"
        self._endings: Mapping[str, str] = {}
        self._earlier: Earlier | None = None
        self._loading = False
        self._reply: LiveReply | None = None

    @property
    def reply(self) -> LiveReply | None:
        """The reply that is being written, if it is shown."""
        return self._reply

    def show(self, messages: Sequence[Message], assistant: str, endings: Mapping[str, str]) -> None:
        """Draw a conversation anew, from its end."""
        self.remove_children()
        self._assistant, self._endings = assistant, endings
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

    def finish_reply(self, message: Message | None, ending: str | None = None) -> None:
        """The reply ended; without a message there was nothing in it."""
        reply, self._reply = self._reply, None
        if reply is None:
            return
        if message is None:
            self._views.remove(reply)
            reply.remove()
        else:
            reply.finish(message, ending)
            self._freeze()

    def load_earlier(self) -> None:
        """Mount the page before, and keep what the person looks at where it is."""
        if not self._older or self._loading or self._earlier is None:
            return
        self._loading = True
        page, self._older = self._older[-PAGE:], self._older[:-PAGE]
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

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Reaching the top fetches what is earlier."""
        super().watch_scroll_y(old_value, new_value)
        if new_value <= 0 < old_value and self._older:
            self.load_earlier()

    def _frozen(self, message: Message) -> FrozenMessage:
        return FrozenMessage(message, self._assistant, self._endings.get(message.id))

    def _freeze(self) -> None:
        """Swap replies that are no longer among the newest for one widget each."""
        live = [view for view in self._views if isinstance(view, LiveReply)]
        for view in live[:-LIVE]:
            if view.message is None:
                continue
            frozen = self._frozen(view.message)
            self._views[self._views.index(view)] = frozen
            self.mount(frozen, after=view)
            view.remove()

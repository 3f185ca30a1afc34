"""The conversation: the newest messages as widgets; scrolling up mounts earlier ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.content import Content
from textual.events import Blur, Click
from textual.message import Message as Posted
from textual.widget import Widget
from textual.widgets import Static

from tqchat.engine.events import TextDelta
from tqchat.settings.schema import ThinkingDisplay
from tqchat.store.database import Message
from tqchat.ui import figures
from tqchat.ui.actions.keys import bind
from tqchat.ui.widgets.chat.body import Body
from tqchat.ui.widgets.chat.live import LiveReply
from tqchat.ui.widgets.chat.message import Facts, FrozenMessage

PAGE = 30
"""Messages mounted at a time; the number of widgets costs time, not the text."""
MAX_MOUNTED = 4 * PAGE
"""With more messages mounted, the earliest page is unmounted while the log is at its end."""


class Earlier(Static):
    """Placeholder for the messages that are not mounted."""

    def __init__(self, load: Callable[[], None]) -> None:
        super().__init__("", classes="earlier", markup=False)
        self._load = load

    def count(self, messages: int) -> None:
        """Show how many there are."""
        self.update(Content(f"▲ {figures.number(messages)} earlier messages"))

    def on_click(self) -> None:
        """Mount the next page."""
        self._load()


class ChatLog(VerticalScroll):
    """A scrolling log that follows the reply until the user scrolls away from its end.

    A cursor moves over its messages; ``bindings`` are the keys of message actions. ``thinking`` is how the
    reasoning of replies is shown that are mounted from then on.
    """

    can_focus = True

    class Marked(Posted):
        """The cursor marks another message, or none."""

        def __init__(self, message: Message | None) -> None:
            super().__init__()
            self.message = message

    def __init__(self, bindings: Iterable[Binding] = ()) -> None:
        super().__init__(id="log")
        bind(self, bindings)
        self.thinking: ThinkingDisplay = "folded"
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
        """The streaming reply, if it is shown."""
        return self._reply

    def show(
        self, messages: Sequence[Message], assistant: str, facts: Callable[[Message], Facts] | None = None
    ) -> None:
        """Show a conversation, scrolled to its end. ``facts`` supplies ending and version of a message."""
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
        """Append the user's new message and scroll to the end."""
        self._unmount_earliest()
        view = self._frozen(message)
        self._views.append(view)
        self.mount(view)
        self.anchor()

    def start_reply(self, assistant: str, waiting: str) -> None:
        """Append an empty reply with a status."""
        self._assistant = assistant
        self._reply = LiveReply(assistant, waiting, self.thinking)
        self._views.append(self._reply)
        self.mount(self._reply)

    def grow(self, piece: TextDelta) -> None:
        """Add a piece to the reply."""
        if self._reply is not None:
            self._reply.feed(piece)

    def finish_reply(self, message: Message | None) -> None:
        """End the reply; ``None`` removes it."""
        reply, self._reply = self._reply, None
        if reply is None:
            return
        if message is None:
            self._views.remove(reply)
            reply.remove()
        else:
            reply.finish(message, self._facts(message))

    def reveal(self, message_id: str, words: Sequence[str] = ()) -> None:
        """Mark a message, mounting it if needed, and highlight the words searched for."""
        index = next((index for index, one in enumerate(self._older) if one.id == message_id), None)
        if index is not None:
            self.load_earlier(len(self._older) - index + PAGE // 2)
        view = next((view for view in self._views if view.message and view.message.id == message_id), None)
        if view is not None:
            view.unfold_to(words)
        self.emphasise(words)
        self.call_after_refresh(self.mark, message_id)

    def emphasise(self, words: Sequence[str]) -> None:
        """Highlight words in the mounted messages; no words clear the highlight."""
        self._emphasised = bool(words)
        longest_first = sorted(words, key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, longest_first)), re.I) if words else None
        for body in self.query(Body):
            body.emphasise(pattern)

    def load_earlier(self, count: int = PAGE) -> None:
        """Mount the page before without moving the visible text."""
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

    @property
    def can_unfold(self) -> bool:
        """Whether part of the message under the cursor is folded at first."""
        return self._marked is not None and self._marked.can_unfold

    def on_click(self, event: Click) -> None:
        """Mark the message clicked on; a click on the title of something folded unfolds it."""
        if event.chain != 1 or self.screen.selections:
            return  # text was selected
        body = event.widget
        view = next(
            (view for view in self._views if body is not None and view in body.ancestors_with_self), None
        )
        self.mark(view.message.id if view is not None and view.message else None, scroll=False)
        if view and isinstance(body, Body) and body.is_fold(event.get_content_offset_capture(body).y):
            view.unfold()

    def on_blur(self, event: Blur) -> None:
        """Mark none while something else beside the log is used."""
        self.call_after_refresh(self._unmark_unused)

    def _unmark_unused(self) -> None:
        if self.screen.is_current and self.screen.focused not in (None, self):
            self.mark(None)

    def mark(self, message_id: str | None, scroll: bool = True) -> bool:
        """Mark a message, or none; whether the message was found."""
        found = next((view for view in self._views if view.message and view.message.id == message_id), None)
        if self._marked is not None:
            self._marked.remove_class("marked")
        changed, self._marked = found is not self._marked, found
        if found is not None:
            found.add_class("marked")
            self.focus(scroll_visible=False)
            if scroll:
                self.call_after_refresh(self.scroll_to_widget, found, animate=False)
        if found is None and self._emphasised:
            self.emphasise(())
        if changed:
            self.post_message(self.Marked(self.marked))
        return found is not None

    def move_mark(self, step: int) -> bool:
        """Move the cursor, from the last message upwards; whether it marks a message afterwards."""
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

    def action_scroll_up(self) -> None:
        """Arrow key: one line up, or to the message above if the marked one's beginning is visible."""
        if self._marked is None or self._marked.region.y < self.region.y:
            super().action_scroll_up()
        else:
            self.move_mark(-1)

    def action_scroll_down(self) -> None:
        """Arrow key: one line down, or to the message below if the marked one's end is visible."""
        last = [view for view in self._views if view.message is not None][-1:]
        marked = None if self._marked in last else self._marked
        if marked is None or marked.region.bottom > self.region.bottom:
            super().action_scroll_down()
        else:
            self.move_mark(1)

    def fade(self, since: tuple[str | None, bool] | None) -> None:
        """Fade messages from one on (included or not); ``None`` fades none."""
        faded, (first, included) = False, since or (None, False)
        for view in self._views:
            here = since is not None and view.message is not None and view.message.id == first
            faded = faded or (here and included)
            view.set_class(faded, "faded")
            faded = faded or here

    def unfold(self) -> None:
        """Unfold or fold the marked message."""
        if self._marked is not None:
            self._marked.unfold()

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Mount earlier messages at the top."""
        super().watch_scroll_y(old_value, new_value)
        if new_value <= 0 < old_value and self._older:
            self.load_earlier()

    def _frozen(self, message: Message) -> FrozenMessage:
        return FrozenMessage(message, self._assistant, self._facts(message), self.thinking == "open")

    def _unmount_earliest(self) -> None:
        """Unmount the earliest page, unless the user has scrolled up."""
        if len(self._views) <= MAX_MOUNTED or self.scroll_y < self.max_scroll_y:
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

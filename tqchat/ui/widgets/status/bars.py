"""The lines above and below: what is open, what goes on, which keys there are."""

from __future__ import annotations

from collections.abc import Callable

from rich.cells import cell_len
from textual.content import Content
from textual.events import Click
from textual.widgets import Static

from tqchat.store.database import AUTO
from tqchat.text import one_line
from tqchat.ui import figures
from tqchat.ui.actions.keys import Keys, key_label
from tqchat.ui.conversation import Chat
from tqchat.ui.room_making import NEARLY_FULL
from tqchat.ui.transcript import UNTITLED
from tqchat.ui.view import Severity
from tqchat.ui.widgets.gauge.drawing import bar


def _ends(left: Content, right: Content, width: int, urgent: bool = False) -> Content:
    """Two pieces at the two ends of a line; the left one gives way, unless it is what matters now."""
    room = width - right.cell_length - 2
    if room < 8 or (urgent and room < left.cell_length):
        return left.truncate(width, ellipsis=True)
    left = left.truncate(room, ellipsis=True)
    return Content.assemble(left, " " * (width - left.cell_length - right.cell_length), right)


class _Line(Static):
    """One line that is composed anew for every width."""

    def __init__(self, id: str) -> None:
        super().__init__("", id=id, markup=False)
        self._left = self._right = Content("")
        self._urgent = False

    def put(self, left: Content, right: Content, urgent: bool = False) -> None:
        """Show these at the two ends; where they do not fit, an ``urgent`` left one has the line."""
        if not (left.is_same(self._left) and right.is_same(self._right)):
            self._left, self._right, self._urgent = left, right, urgent
            self._draw()

    def on_resize(self) -> None:
        """Another width."""
        self._draw()

    def _draw(self) -> None:
        if self.size.width > 0:
            self.update(_ends(self._left, self._right, self.size.width, self._urgent))


SEPARATOR = " · "


class TopBar(_Line):
    """The conversation's title; the model and the scheme."""

    def __init__(self) -> None:
        super().__init__("top")

    def show(self, chat: Chat) -> None:
        """Draw what is open."""
        title = one_line(chat.conversation.title) if chat.conversation else UNTITLED
        model = one_line(chat.model.name) if chat.model else "no model"
        self.put(
            Content.assemble(("tqchat", "bold $accent"), ("  ", ""), (title, "bold")),
            Content.assemble((model, ""), (SEPARATOR, "$quiet"), (chat.scheme_label, "$accent")),
        )

    async def on_click(self, event: Click) -> None:
        """The model and the scheme open their pickers."""
        model, _, scheme = self._right.plain.partition(SEPARATOR)
        from_right = self.size.width - event.get_content_offset_capture(self).x
        if from_right <= len(scheme):
            await self.run_action("app.act('scheme')")
        elif len(scheme) < from_right <= cell_len(model) + len(SEPARATOR) + len(scheme):
            await self.run_action("app.act('model')")


class StatusLine(_Line):
    """What goes on, or what was restored; how full the context is, and how fast the reply comes."""

    def __init__(self, key: Callable[[str], str]) -> None:
        super().__init__("status")
        self._key = key

    def show(self, chat: Chat) -> None:
        """Draw the chat's state."""
        parts: list[str] = []
        full = False
        if chat.report is not None:
            limit = chat.model.context_limit if chat.model else None
            used = ("≈ " if chat.context_is_reckoned else "") + figures.number(chat.context_used)
            parts.append(f"context {used} / {figures.number(limit)}" if limit else f"context {used}")
            full = limit is not None and chat.context_used > NEARLY_FULL * limit
        if chat.speed and chat.cache_is_live:
            parts.append(figures.speed(chat.speed))
        right = Content.styled(" · ".join(parts), "$quiet")
        if full:
            right = Content.assemble(("! ", "$warning"), right.stylize("$warning", 0, len(parts[0])))
        urgent = chat.loading is not None or chat.shown_reply is not None or chat.model is None
        self.put(doing(chat, self._key), right, urgent)


def doing(chat: Chat, key: Callable[[str], str]) -> Content:
    """The one thing that a person wants to know now. ``key`` names an action's key."""
    loading = chat.loading
    if chat.shown_reply is not None:
        return _answering(chat)
    if loading is not None and loading.stage == "downloading" and not chat.shown_waiting:
        return _download(chat)
    if chat.shown_waiting:
        why = "Waits for the model" if chat.model is None or loading else "Waits for another reply"
        return Content.assemble((f"{why}; your message is saved.", ""), (" Esc takes it back.", "$quiet"))
    if loading is not None:
        name = one_line(loading.ref)
        return Content.assemble((f"Loading {name}…", ""), (" You can write already.", "$quiet"))
    if chat.activity in ("opening", "converting") and chat.cache_is_live:
        if chat.prefill is not None and chat.prefill.total:
            return _reading("Re-reading", chat)
        if chat.activity == "opening":
            return Content("Bringing the cache back…")
        layers = f" {chat.converted.done} of {chat.converted.total} layers" if chat.converted else ""
        return Content.assemble(("Converting the cache…", ""), (layers, "$quiet"))
    if chat.summing_up:
        if chat.prefill is not None and chat.prefill.done < chat.prefill.total:
            return _reading("Summing up, reading", chat)
        return Content.assemble(("Writing a summary…", ""), ("  Esc stops", "$quiet"))
    if chat.activity is not None:
        return Content.styled("Another conversation is being answered.", "$quiet")
    if chat.read_only:
        return Content.assemble(("Read only. ", "$warning"), (one_line(chat.read_only), "$quiet"))
    if chat.model is None:
        return Content.assemble(("No model.", "$warning"), (f" {key('model')} loads one.", "$quiet"))
    if chat.conversation and (said := chat.caches.returned.get(chat.conversation.id)):
        return Content.styled(one_line(said), "$quiet")
    if chat.messages and chat.messages[-1].role == "user":
        return Content.assemble(
            ("Not answered.", "$warning"), (f" {key('regenerate')} answers it.", "$quiet")
        )
    if chat.scheme == AUTO:
        return Content.styled(f"auto: {chat.auto_choice.reason}", "$quiet")
    return Content.styled("Ready.", "$quiet")


def _answering(chat: Chat) -> Content:
    assert chat.reply is not None
    if chat.reply.stopping:
        return Content("Stopping…")
    if chat.prefill is not None and chat.prefill.total:
        return _reading("Reading", chat)
    return Content.assemble(("Answering" if chat.reply.text else "Thinking", ""), ("  Esc stops", "$quiet"))


def _reading(word: str, chat: Chat) -> Content:
    """``Reading ████░░ 1,024 of 3,076 tokens, 4 s left``."""
    progress = chat.prefill
    assert progress is not None
    left = f", {figures.seconds(chat.reading_seconds)} left" if chat.reading_seconds else ""
    return Content.assemble(
        (f"{word} ", ""), bar(progress.done / progress.total, 12),
        (f" {figures.number(progress.done)} of {figures.tokens(progress.total)}{left}", ""),
        ("  Esc stops", "$quiet"),
    )  # fmt: skip


def _download(chat: Chat) -> Content:
    loading = chat.loading
    assert loading is not None
    name = one_line(loading.ref)
    if loading.done_bytes is None or not loading.total_bytes:
        return Content.assemble((f"Downloading {name}…", ""), ("  Esc pauses", "$quiet"))
    return Content.assemble(
        ("Downloading ", ""), bar(loading.done_bytes / loading.total_bytes, 10),
        (f" {figures.size(loading.done_bytes)} of {figures.size(loading.total_bytes)}", ""),
        (f"  Esc pauses  {name}", "$quiet"),
    )  # fmt: skip


class Hints(Static):
    """The footer: the most important keys, as many as fit."""

    def __init__(self, keys: Keys) -> None:
        super().__init__("", id="hints", markup=False)
        self._keys = keys
        self._of_message = False
        self._actions: list[tuple[int, str]] = []
        """Where each hint ends, in cells, and the action that a click on it runs."""

    def for_message(self, marked: bool) -> None:
        """Show the hints of the message under the cursor, or those of the app."""
        if marked != self._of_message:
            self._of_message = marked
            self.on_resize()

    def on_resize(self) -> None:
        """Show as many as fit, the most important first."""
        width = self.size.width
        shown: list[tuple[str, str, str]] = []
        for action in self._keys.actions.footer("message" if self._of_message else "app"):
            keys = self._keys.of(action.name)
            if not keys:
                continue
            hint = (key_label(keys[0]), action.hint, action.name)
            if sum(cell_len(key) + cell_len(word) + 4 for key, word, _ in [*shown, hint]) - 3 > width:
                break
            shown.append(hint)
        self._actions, end = [], 0
        for key, word, name in shown:
            end += cell_len(key) + cell_len(word) + 4
            self._actions.append((end, name))
        pieces: list[Content] = [
            Content.assemble((key, "$accent"), (f" {word}", "$quiet")) for key, word, _ in shown
        ]
        self.update(Content("   ").join(pieces))

    async def on_click(self, event: Click) -> None:
        """Run the action of the hint."""
        x = event.get_content_offset_capture(self).x
        name = next((name for end, name in self._actions if x < end), None)
        if name is not None:
            await self.run_action(f"app.act('{name}')")


class NoticeLine(Static):
    """The last thing that had to be said, above the prompt: it stays until the person goes on."""

    def __init__(self) -> None:
        super().__init__("", id="notice", markup=False)
        self.display = False

    def say(self, text: str, severity: Severity) -> None:
        """Show a sentence. A sign goes with the colour."""
        sign = {"information": "·", "warning": "!", "error": "✗"}[severity]
        self.set_classes(severity)
        self.update(Content(f"{sign} {one_line(text)}"))
        self.display = True

    def clear(self) -> None:
        """The person went on."""
        self.display = False

"""Title bar, status line, key hints and notices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

from rich.cells import cell_len
from textual.content import Content
from textual.events import Click
from textual.widgets import Static

from tqchat.store.database import AUTO
from tqchat.text import one_line
from tqchat.ui import figures
from tqchat.ui.actions.keys import Keys, key_label
from tqchat.ui.actions.registry import Action
from tqchat.ui.controller.controller import Controller
from tqchat.ui.controller.texts.titles import UNTITLED
from tqchat.ui.controller.view import Severity
from tqchat.ui.widgets.fitted import Fitted
from tqchat.ui.widgets.gauge.drawing import bar


def _justified(left: Content, right: Content, width: int) -> Content:
    """Left- and right-aligned text on one line; the left one is truncated."""
    available = width - right.cell_length - 2
    if available < 8:
        return left.truncate(width, ellipsis=True)
    return _beside(left.truncate(available, ellipsis=True), right, width)


def _wrapped(lefts: Sequence[Content], rights: Sequence[Content], width: int, urgent: bool) -> Content:
    """Left- and right-aligned text on one line if they fit, else on several.

    Args:
        lefts, rights: The same text, shorter each time: the longest that fit on one line are used.
        urgent: Whether the right text is left out rather than given a line of its own.
    """
    for left, right in product(lefts, rights):
        if _fits(left, right, width):
            return _beside(left, right, width)
    *lines, last = lefts[-1].wrap(max(width, 1))
    right = next((one for one in rights if _fits(last, one, width)), Content())
    lines.append(_beside(last, right, width))
    if rights[-1] and not (right or urgent):
        lines.append(_beside(Content(), rights[-1].truncate(width, ellipsis=True), width))
    return Content("\n").join(lines)


def _fits(left: Content, right: Content, width: int) -> bool:
    return left.cell_length + (right.cell_length + 2 if right else 0) <= width


def _beside(left: Content, right: Content, width: int) -> Content:
    return Content.assemble(left, " " * (width - left.cell_length - right.cell_length), right)


class _Bar(Static):
    """Text that is laid out for the width at which it is drawn."""

    def __init__(self, id: str) -> None:
        super().__init__("", id=id, markup=False)
        self._texts: list[Content] = []

    def put(self, texts: list[Content], lines: int | None, fit: Callable[[int], Content]) -> None:
        """Show texts by ``fit``, if they have changed."""
        if len(texts) == len(self._texts) and all(map(Content.is_same, texts, self._texts)):
            return
        self._texts = texts
        self.update(Fitted(lines, fit))


SEPARATOR = " · "


class TopBar(_Bar):
    """Title, model and scheme."""

    def __init__(self) -> None:
        super().__init__("top")

    def show(self, chat: Controller) -> None:
        """Show the open conversation."""
        title = one_line(chat.shown.conversation.title) if chat.shown.conversation else UNTITLED
        model = one_line(chat.models.label(chat.shown.adapter)) or "no model"
        left = Content.assemble(("tqchat", "bold $accent"), ("  ", ""), (title, "bold"))
        right = Content.assemble((model, ""), (SEPARATOR, "$quiet"), (chat.schemes.label, "$accent"))
        self.put([left, right], 1, lambda width: _justified(left, right, width))

    async def on_click(self, event: Click) -> None:
        """Open the picker of the model or scheme clicked on; at the left end, show or fold the list."""
        if event.get_content_offset_capture(self).x < len("tqchat"):
            await self.run_action("app.act('toggle_list')")
            return
        model, _, scheme = "".join(text.plain for text in self._texts[1:]).partition(SEPARATOR)
        from_right = self.size.width - event.get_content_offset_capture(self).x
        if from_right <= len(scheme):
            await self.run_action("app.act('scheme')")
        elif len(scheme) < from_right <= cell_len(model) + len(SEPARATOR) + len(scheme):
            await self.run_action("app.act('model')")


class StatusLine(_Bar):
    """Current activity on the left; context use, speed and the reasoning switch on the right.

    One line high, or as many as a sentence needs.
    """

    def __init__(self, key: Callable[[str], str]) -> None:
        super().__init__("status")
        self._key = key

    def show(self, chat: Controller) -> None:
        """Show the chat's state."""
        parts: list[str] = []
        full = False
        if chat.caches.report is not None:
            limit = chat.models.context_limit
            used = ("≈ " if chat.context.is_estimate else "") + figures.number(chat.context.used)
            parts.append(f"context {used} / {figures.number(limit)}" if limit else f"context {used}")
            full = chat.context.is_nearly_full
        if chat.replies.decode_speed and chat.caches.is_live:
            parts.append(figures.speed(chat.replies.decode_speed))
        if chat.thinking.choices:
            parts.append(f"thinking: {chat.thinking.label}")
        rights = [Content.styled(" · ".join(shown), "$quiet") for shown in (parts, parts[:1])]
        if full:
            rights = [
                Content.assemble(("! ", "$warning"), right.stylize("$warning", 0, len(parts[0])))
                for right in rights
            ]
        models = chat.models
        urgent = models.loading is not None or models.current is None or chat.turns.shown_reply is not None
        lefts = [now] if (now := doing(chat, self._key)) is not None else _ready(chat, self._key)
        self.put([*lefts, *rights], None, lambda width: _wrapped(lefts, rights, width, urgent))


def doing(chat: Controller, key: Callable[[str], str]) -> Content | None:
    """The most important current status, ``None`` without one. ``key`` maps an action to its key's name."""
    loading = chat.models.loading
    if chat.turns.shown_reply is not None:
        return _answering(chat)
    if loading is not None and loading.stage == "downloading" and not chat.turns.shown_waiting:
        return _download(chat)
    if chat.turns.shown_waiting:
        if not chat.shown.is_written:
            return Content.assemble(("Waiting for the database.", ""), (" Esc takes it back.", "$quiet"))
        why = (
            "Waiting for the model" if chat.models.current is None or loading else "Waiting for another reply"
        )
        return Content.assemble((f"{why}; your message is saved.", ""), (" Esc takes it back.", "$quiet"))
    if loading is not None:
        name = one_line(loading.ref)
        return Content.assemble((f"Loading {name}…", ""), (" You can already type.", "$quiet"))
    if chat.work.activity in ("opening", "converting") and chat.caches.is_live:
        if chat.work.prefill is not None and chat.work.prefill.total:
            return _reading("Re-reading", chat)
        if chat.work.activity == "opening":
            return Content("Restoring the cache…")
        layers = (
            f" {chat.schemes.progress.done} of {chat.schemes.progress.total} layers"
            if chat.schemes.progress
            else ""
        )
        return Content.assemble(("Converting the cache…", ""), (layers, "$quiet"))
    if chat.context.summing_up:
        if chat.work.prefill is not None and chat.work.prefill.done < chat.work.prefill.total:
            return _reading("Summarising, reading", chat)
        return Content.assemble(("Writing a summary…", ""), ("  Esc stops", "$quiet"))
    if chat.work.activity is not None:
        return Content.styled("Another conversation is being answered.", "$quiet")
    if chat.shown.read_only:
        return Content.assemble(("Read only. ", "$warning"), (one_line(chat.shown.read_only), "$quiet"))
    if chat.models.current is None:
        return Content.assemble(("No model.", "$warning"), (f" {key('model')} loads one.", "$quiet"))
    shown = chat.shown.conversation
    restored = one_line(chat.caches.restore_notes.get(shown.id, "")) if shown else ""
    if chat.shown.messages and chat.shown.messages[-1].role == "user":
        answers = f" {key('regenerate')} answers it. {restored}".rstrip()
        return Content.assemble(("Not answered.", "$warning"), (answers, "$quiet"))
    if restored:
        return Content.styled(restored, "$quiet")
    return None


def _ready(chat: Controller, key: Callable[[str], str]) -> list[Content]:
    """That nothing is going on, shorter each time."""
    texts = ["Ready."]
    if chat.schemes.chosen == AUTO:
        choice = chat.schemes.auto_choice
        short = f"{key('scheme')} says why auto chose {choice.scheme}."
        texts = [f"Ready. auto chose {choice.reason}", f"Ready. {short}", short]
    return [Content.styled(text, "$quiet") for text in texts]


def _answering(chat: Controller) -> Content:
    assert chat.work.reply is not None
    if chat.work.reply.stopping:
        return Content("Stopping…")
    if chat.work.prefill is not None and chat.work.prefill.total:
        return _reading("Reading", chat)
    return Content.assemble(
        ("Answering" if chat.work.reply.text else "Thinking", ""), ("  Esc stops", "$quiet")
    )


def _reading(word: str, chat: Controller) -> Content:
    """``Reading ████░░ 1,024 of 3,076 tokens, 4 s left``."""
    progress = chat.work.prefill
    assert progress is not None
    left = f", {figures.seconds(chat.work.seconds_left)} left" if chat.work.seconds_left else ""
    return Content.assemble(
        (f"{word} ", ""), bar(progress.done / progress.total, 12),
        (f" {figures.number(progress.done)} of {figures.tokens(progress.total)}{left}", ""),
        ("  Esc stops", "$quiet"),
    )  # fmt: skip


def _download(chat: Controller) -> Content:
    loading = chat.models.loading
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
    """The most important key hints that fit."""

    def __init__(self, keys: Keys) -> None:
        super().__init__("", id="hints", markup=False)
        self._keys = keys
        self._of_message: Callable[[Action], bool] | None = None
        self._of_selection = False
        self._has_mouse = True
        self._click_targets: list[tuple[int, str]] = []
        """End column of each hint, and the action of a click before it."""

    def for_message(self, suits: Callable[[Action], bool] | None) -> None:
        """Show the actions of the marked message that apply; ``None``: those of the chat."""
        self._of_message = suits
        self.on_resize()

    def for_selection(self, selected: bool) -> None:
        """Show what can be done with selected text, or no longer."""
        if selected != self._of_selection:
            self._of_selection = selected
            self.on_resize()

    def mouse_is_captured(self, captured: bool) -> None:
        """Show first how to take the mouse back, if the terminal has it."""
        self._has_mouse = captured
        self.on_resize()

    def _hints(self) -> Iterator[tuple[str, str, str]]:
        """Key, word and action of each hint, most important first."""
        if self._of_selection:
            yield "^C", "copy", ""
            yield key_label(self._keys.of("stop")[0]), "unselect", ""
            yield self._keys.label("mouse"), "select with the terminal instead", ""
            return
        if not self._has_mouse:
            yield self._keys.label("mouse"), "takes the mouse from the terminal", "mouse"
        suits = self._of_message
        for action in self._keys.actions.footer("app" if suits is None else "message"):
            if (keys := self._keys.of(action.name)) and (suits is None or suits(action)):
                yield key_label(keys[0]), action.hint, action.name

    def on_resize(self) -> None:
        """Show the hints of the highest ranks that fit."""
        width = self.size.width
        shown: list[tuple[str, str, str]] = []
        for hint in self._hints():
            if sum(cell_len(key) + cell_len(word) + 4 for key, word, _ in [*shown, hint]) - 3 > width:
                break
            shown.append(hint)
        self._click_targets, end = [], 0
        for key, word, name in shown:
            end += cell_len(key) + cell_len(word) + 4
            self._click_targets.append((end, name))
        pieces: list[Content] = [
            Content.assemble((key, "$accent"), (f" {word}", "$quiet")) for key, word, _ in shown
        ]
        self.update(Content("   ").join(pieces))

    async def on_click(self, event: Click) -> None:
        """Run the action of the hint clicked on."""
        x = event.get_content_offset_capture(self).x
        name = next((name for end, name in self._click_targets if x < end), None)
        if name:
            await self.run_action(f"app.act('{name}')")


class NoticeLine(Static):
    """The latest notice, above the prompt, until the user continues."""

    def __init__(self) -> None:
        super().__init__("", id="notice", markup=False)
        self.display = False

    def say(self, text: str, severity: Severity) -> None:
        """Show a sentence with a sign for its severity, for terminals without colour."""
        sign = {"information": "·", "warning": "!", "error": "✗"}[severity]
        self.set_classes(severity)
        self.update(Content(f"{sign} {one_line(text)}"))
        self.display = True

    def clear(self) -> None:
        """Hide the notice."""
        self.display = False

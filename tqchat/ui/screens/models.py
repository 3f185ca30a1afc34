"""Model picker: recommended models, local models with their memory needs, and search on the hub."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.screen import ModalScreen
from textual.timer import Timer
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from tqchat.engine.events import ModelEstimate, ModelProgress
from tqchat.engine.hub.catalog import LocalModel
from tqchat.engine.hub.remote import search
from tqchat.engine.hub.remote.search import Hit, RemoteModel
from tqchat.engine.memory.recommend import Suggestion
from tqchat.errors import TqchatError
from tqchat.kv.scheme import Scheme
from tqchat.text import one_line
from tqchat.ui.screens import model_rows
from tqchat.ui.screens.model_details import details
from tqchat.ui.screens.model_rows import ModelRow
from tqchat.ui.widgets.fields import LineField

ESTIMATE_DELAY_S = 0.15
"""Delay before the memory needs of the model under the cursor are requested."""

BRIEF_BELOW_HEIGHT = 30
"""Terminal height below which less is said of a model."""

SEARCH_DELAY_S = 0.4
"""Time without a key after which the hub is searched."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Models:
    """The models to choose from before anything is searched for.

    Attributes:
        suggestions: All recommended models on this machine.
        free_bytes: Memory that is free now.
    """

    local: list[LocalModel]
    suggestions: list[Suggestion]
    free_bytes: int


@dataclass(frozen=True)
class ModelChoice:
    """The action chosen: load a model (downloading it if needed), pause a download or discard its files, or
    delete a model of the Hugging Face cache.
    """

    ref: str
    action: Literal["load", "pause", "discard", "delete"] = "load"


class ModelPicker(ModalScreen[ModelChoice | None]):
    """Recommended models, the models on this machine, and an input that filters them and searches the hub.

    The input accepts any folder or repo id too. ``look`` finds the models (called on a thread); ``ask``
    requests an estimate of a model's memory from the engine, which arrives through ``estimated``.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "cancel", "Back"),
        Binding("up", "move(-1)", "Up", priority=True),
        Binding("down", "move(1)", "Down", priority=True),
        Binding("ctrl+d", "discard", "Discard", priority=True),
        Binding("ctrl+x", "pause", "Pause", priority=True),
    ]

    class Looked(Message):
        """The search for local models is done."""

        def __init__(self, found: Models) -> None:
            super().__init__()
            self.found = found

    class Answered(Message):
        """The hub has answered a search, or said something of a model, or cannot be searched."""

        def __init__(
            self,
            search_number: int,
            *,
            hits: list[Hit] | None = None,
            model: RemoteModel | None = None,
            problem: str | None = None,
        ) -> None:
            super().__init__()
            self.search_number = search_number
            self.hits, self.model, self.problem = hits, model, problem

    def __init__(
        self,
        current: str | None,
        scheme: Scheme,
        *,
        look: Callable[[], Models],
        ask: Callable[[str, Path], None],
        loading: ModelProgress | None = None,
    ) -> None:
        super().__init__(classes="dialog models")
        self._current, self._scheme = current, scheme
        self._look, self._ask = look, ask
        self._estimates: dict[str, ModelEstimate] = {}
        self._loading = loading
        self._found: Models | None = None
        self._shown: dict[str, ModelRow] = {}
        self._timer: Timer | None = None
        self._search_timer: Timer | None = None
        self._search_number = 0
        self._searched_words = ""
        self._hits: list[Hit] | None = None
        self._remotes: dict[str, RemoteModel] = {}
        self._hub_problem: str | None = None

    def compose(self) -> ComposeResult:
        """Input, list, what the hub does, details of the marked model, keys."""
        with Vertical(classes="box") as box:
            box.border_title = "Models"
            yield LineField(
                placeholder="words to search for, a folder, or owner/name",
                compact=True,
            )
            yield Static("", classes="heading", markup=False)
            yield OptionList(compact=True, markup=False)
            yield Static("", classes="hub", markup=False)
            yield Static("", classes="explanation", markup=False)
            yield Static("", classes="answers", markup=False)

    def on_mount(self) -> None:
        """Look for models on a thread."""
        self._look_for_models()
        self._draw()

    def on_unmount(self) -> None:
        """Give up a search."""
        self._search_number += 1

    def on_resize(self) -> None:
        """Fit the columns to the width."""
        self._draw()

    @work(thread=True)
    def _look_for_models(self) -> None:
        self.post_message(self.Looked(self._look()))

    @on(Looked)
    def _looked(self, message: Looked) -> None:
        self._found = message.found
        self._draw()

    # Engine events while the picker is open

    def estimated(self, estimate: ModelEstimate) -> None:
        """Show an estimate."""
        self._estimates[estimate.ref] = estimate
        if (marked := self._marked) is not None and marked.ref == estimate.ref:
            self._explain()

    def progressed(self, loading: ModelProgress | None) -> None:
        """Show a download's progress or end."""
        began = (loading and loading.ref) != (self._loading and self._loading.ref)
        self._loading = loading
        if began:
            self._look_for_models()
        self._draw()

    # Search on the hub

    def _search_hub(self) -> None:
        """Search for the words entered, on a thread that nothing waits for."""
        self._search_number += 1
        number, words = self._search_number, self._words
        self._searched_words = words
        self._draw_hub()
        known = set(self._remotes)

        def cancelled() -> bool:
            return self._search_number != number

        def work() -> None:
            try:
                hits = search.search(words, cancelled)
                self.post_message(self.Answered(number, hits=hits))
                unknown = [hit.repo for hit in hits if hit.repo not in known]
                for model in search.inspect_all(unknown, cancelled):
                    self.post_message(self.Answered(number, model=model))
            except TqchatError as error:
                self.post_message(self.Answered(number, problem=str(error)))
            except Exception as error:
                _log.error("A search on the hub failed", exc_info=error)
                problem = f"The hub could not be searched ({type(error).__name__})."
                self.post_message(self.Answered(number, problem=problem))

        threading.Thread(target=work, name="tqchat-search", daemon=True).start()

    @on(Answered)
    def _answered(self, message: Answered) -> None:
        if message.search_number != self._search_number:
            return
        self._hub_problem = message.problem
        if message.hits is not None:
            self._hits = message.hits
        if message.model is not None:
            self._remotes[message.model.repo] = message.model
        self._draw()

    @property
    def _is_searchable(self) -> bool:
        return len(self._words) >= search.MIN_CHARS and not model_rows.is_path(self._words)

    def _draw_hub(self) -> None:
        """Say what the search does. A hub that cannot be reached is named once, until it answers."""
        if self._hub_problem is not None:
            said = Content.styled(f"! {one_line(self._hub_problem)}", "$warning")
        elif not self._is_searchable:
            said = Content.styled("Type to search Hugging Face.", "$quiet")
        elif self._hits is None or self._searched_words != self._words:
            said = Content.styled("Searching Hugging Face…", "$quiet")
        else:
            said = Content.styled(f"{len(self._hits) or 'None'} found on Hugging Face.", "$quiet")
        self.query_one(".hub", Static).update(said)

    # Drawing

    @property
    def _words(self) -> str:
        return self.query_one(LineField).value.strip()

    @property
    def _marked(self) -> ModelRow | None:
        option = self.query_one(OptionList).highlighted_option
        return self._shown.get(option.id) if option is not None and option.id else None

    def _rows(self) -> list[ModelRow]:
        found = self._found or Models([], [], 0)
        local = found.local
        if self._loading is not None and all(one.ref != self._loading.ref for one in local):
            local = [*local, model_rows.absent(self._loading.ref)]  # its download has just begun
        words, hits = self._words, self._hits or []
        if words != self._searched_words:
            hits = [hit for hit in hits if model_rows.matches(words, hit.repo)]
        return model_rows.rows(words, local, found.suggestions, hits, self._remotes)

    def _draw(self) -> None:
        options, width = self.query_one(OptionList), self.app.size.width
        marked = self._marked
        before = marked.ref if marked else self._current or (self._loading and self._loading.ref)
        rows = self._rows()
        self._shown = {row.ref: row for row in rows}
        options.set_options(self._options(rows, width))
        if self._found is None:
            options.add_option(Option(Content.styled("Searching…", "$quiet"), disabled=True))
        elif not rows:
            text = "No local model matches; owner/name downloads one."
            options.add_option(Option(Content.styled(text, "$quiet"), disabled=True))
        if rows:
            first = rows[0].ref if before not in self._shown else before
            options.highlighted = options.get_option_index(first or rows[0].ref)
        self.query_one(".heading", Static).update(model_rows.column_heads(width))
        self._draw_hub()
        self._explain()

    def _options(self, rows: list[ModelRow], width: int) -> list[Option]:
        """A line for each model, under headings if they are of several sections."""
        sections = dict.fromkeys(row.section for row in rows)
        free = self._found.free_bytes if self._found is not None else 0
        made: list[Option] = []
        for section in sections:
            if len(sections) > 1:
                made.append(Option(model_rows.heading(section, width, free), disabled=True))
            made += [
                Option(model_rows.line(row, width, self._current, self._loading), id=row.ref)
                for row in rows
                if row.section == section
            ]
        return made

    def _explain(self) -> None:
        row = self._marked
        said = [Content("")]
        if row is not None:
            brief = self.app.size.height < BRIEF_BELOW_HEIGHT
            said = details(row, self._scheme, self._estimates.get(row.ref), self._loading, brief)
        self.query_one(".explanation", Static).update(Content("\n").join(said))
        self.query_one(".answers", Static).update(
            Content("   ").join(
                [Content.assemble((key, "$accent"), f" {does}") for key, does in self._keys(row)]
            )
        )

    def _keys(self, row: ModelRow | None) -> list[tuple[str, str]]:
        keys = [("Esc", "closes")]
        if row is None:
            return keys
        one, loading = row.model, self._loading
        if loading is not None and loading.ref == one.ref:
            if loading.stage == "downloading":
                return [("^X", "pauses"), ("^D", "cancels and discards"), *keys]
            return keys
        if one.folder is None:
            does = "resumes the download" if one.disk_bytes else "downloads, then loads"
            discard = [("^D", "discards it")] if one.disk_bytes else []
            return [("Enter", does), *discard, *keys]
        delete = [("^D", "deletes it")] if self._is_deletable(one) else []
        return [("Enter", "loads"), *delete, *keys]

    def _is_deletable(self, one: LocalModel) -> bool:
        return one.source == "hub" and one.folder is not None and one.ref != self._current

    # Actions

    @on(LineField.Changed)
    def _filter(self) -> None:
        if self._search_timer is not None:
            self._search_timer.stop()
        if self._is_searchable and self._words != self._searched_words:
            self._search_timer = self.set_timer(SEARCH_DELAY_S, self._search_hub)
        self._draw()

    @on(OptionList.OptionHighlighted)
    def _moved(self) -> None:
        self._explain()
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_timer(ESTIMATE_DELAY_S, self._request_estimate)

    def _request_estimate(self) -> None:
        if self not in self.app.screen_stack:
            return  # closed while the timer ran
        row = self._marked
        if row is None or row.model.folder is None:
            return
        if row.problem or row.ref in self._estimates:
            return
        self._ask(row.ref, row.model.folder)

    def action_move(self, step: int) -> None:
        """Move the list's cursor while the input has focus."""
        options = self.query_one(OptionList)
        if step > 0:
            options.action_cursor_down()
        else:
            options.action_cursor_up()

    @on(LineField.Submitted)
    @on(OptionList.OptionSelected)
    def _take(self) -> None:
        row = self._marked
        if row is not None and not (self._loading and self._loading.ref == row.ref):
            self.dismiss(ModelChoice(row.ref))

    def action_pause(self) -> None:
        """Pause the current download and keep its files."""
        if self._loading is not None and self._loading.stage == "downloading":
            self.dismiss(ModelChoice(self._loading.ref, "pause"))

    def action_discard(self) -> None:
        """Discard the files of the marked download, or delete the marked model of the Hugging Face cache."""
        one = self._marked.model if self._marked is not None else None
        if one is not None and one.folder is None and (one.disk_bytes or self._loading):
            self.dismiss(ModelChoice(one.ref, "discard"))
        elif one is not None and self._is_deletable(one):
            self.dismiss(ModelChoice(one.ref, "delete"))

    def action_cancel(self) -> None:
        """Close without a choice."""
        self.dismiss(None)

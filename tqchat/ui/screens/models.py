"""Model picker: local models with their memory needs, and downloads by repo id."""

from __future__ import annotations

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
from tqchat.engine.hub import catalog
from tqchat.engine.hub.catalog import LocalModel
from tqchat.engine.memory.cache_sizes import Verdict, cache_sizes, sizes_by_layer_kind
from tqchat.kv.scheme import Scheme
from tqchat.text import one_line
from tqchat.ui import figures
from tqchat.ui.widgets.fields import LineField
from tqchat.ui.widgets.gauge.drawing import bar

ESTIMATE_DELAY_S = 0.15
"""Delay before the memory needs of the model under the cursor are requested."""
WIDE = 84
"""Terminal width in cells from which the context column is shown."""


@dataclass(frozen=True)
class ModelChoice:
    """The action chosen: load a model (downloading it if needed), pause a download or discard its files, or
    delete a model of the Hugging Face cache.
    """

    ref: str
    action: Literal["load", "pause", "discard", "delete"] = "load"


class ModelPicker(ModalScreen[ModelChoice | None]):
    """The models on this machine, and an input that filters them and accepts any folder or repo id.

    ``look`` finds the models (called on a thread); ``ask`` requests an estimate of a model's memory from the
    engine, which arrives through ``estimated``.
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

        def __init__(self, found: list[LocalModel]) -> None:
            super().__init__()
            self.found = found

    def __init__(
        self,
        current: str | None,
        scheme: Scheme,
        *,
        look: Callable[[], list[LocalModel]],
        ask: Callable[[str, Path], None],
        loading: ModelProgress | None = None,
    ) -> None:
        super().__init__(classes="dialog models")
        self._current, self._scheme = current, scheme
        self._look, self._ask = look, ask
        self._estimates: dict[str, ModelEstimate] = {}
        self._loading = loading
        self._found: list[LocalModel] | None = None
        self._shown: dict[str, LocalModel] = {}
        self._timer: Timer | None = None

    def compose(self) -> ComposeResult:
        """Input, list, details of the marked model, keys."""
        with Vertical(classes="box") as box:
            box.border_title = "Models"
            yield LineField(
                placeholder="filter, or a folder, or a Hugging Face repo: owner/name", compact=True
            )
            yield Static("", classes="heading", markup=False)
            yield OptionList(compact=True, markup=False)
            yield Static("", classes="explanation", markup=False)
            yield Static("", classes="answers", markup=False)

    def on_mount(self) -> None:
        """Start the search on a thread."""
        self._search()
        self._draw()

    def on_resize(self) -> None:
        """Fit the columns to the width."""
        self._draw()

    @work(thread=True)
    def _search(self) -> None:
        self.post_message(self.Looked(self._look()))

    @on(Looked)
    def _searched(self, message: Looked) -> None:
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
            self._search()
        self._draw()

    # Drawing

    @property
    def _marked(self) -> LocalModel | None:
        option = self.query_one(OptionList).highlighted_option
        return self._shown.get(option.id) if option is not None and option.id else None

    def _candidates(self, written: str) -> list[LocalModel]:
        """Models that match the words entered, and the folder or repo that they name."""
        found = self._found or []
        words = written.lower().split()
        known = [
            one for one in found if all(word in f"{one.ref} {one.quantisation}".lower() for word in words)
        ]
        named = written.strip()
        if named and ("/" in named or named.startswith("~")) and all(one.ref != named for one in known):
            folder = catalog.named_folder(named)
            if folder is not None:
                known.append(catalog.describe(folder, named, folder.name, "folder"))
            elif not named.startswith((".", "/", "~")):
                known.append(LocalModel(named, named, "hub", None, 0))
        return known

    def _draw(self) -> None:
        written = self.query_one(LineField).value
        options = self.query_one(OptionList)
        marked = self._marked
        before = marked.ref if marked else self._current
        candidates = self._candidates(written)
        self._shown = {one.ref: one for one in candidates}
        options.set_options([Option(self._line(one), id=one.ref) for one in candidates])
        if self._found is None:
            options.add_option(Option(Content.styled("Searching…", "$quiet"), disabled=True))
        elif not candidates:
            text = "No local model matches; owner/name downloads one."
            options.add_option(Option(Content.styled(text, "$quiet"), disabled=True))
        if candidates:
            refs = [one.ref for one in candidates]
            options.highlighted = refs.index(before) if before in refs else 0
        context = f"{'context':>8}" if self._wide else ""
        head = f"  {'model':<{self._name_width}} {'weights':>8}  {'':<7}{context}"
        self.query_one(".heading", Static).update(Content.styled(head, "$quiet"))
        self._explain()

    @property
    def _wide(self) -> bool:
        return self.app.size.width >= WIDE

    @property
    def _name_width(self) -> int:
        return 40 if self._wide else 21

    def _line(self, one: LocalModel) -> Content:
        current = one.ref == self._current
        name = figures.fit(one_line(one.ref if one.source == "hub" else one.name), self._name_width)
        limit = figures.short(one.context_limit) if one.context_limit else ""
        context = f"{limit:>8}" if self._wide else ""
        size = figures.size(one.disk_bytes) if one.disk_bytes else ""
        state, style = self._state(one)
        return Content.assemble(
            ("▌ " if current else "  ", "$accent"),
            (name, "bold" if current else ""),
            (f" {size:>8}  {one_line(one.quantisation)[:6]:<7}{context}", "" if one.folder else "$quiet"),
            (f"  {state}", style),
        )

    def _state(self, one: LocalModel) -> tuple[str, str]:
        loading = self._loading
        if loading is not None and loading.ref == one.ref:
            if loading.stage == "loading":
                return "loading…", "$accent"
            share = (loading.done_bytes or 0) / loading.total_bytes if loading.total_bytes else 0
            return f"{share:.0%}", "$accent"
        if one.ref == self._current:
            return "in use", "$accent"
        if one.problem is not None:
            return ("! cannot be loaded" if self._wide else "! unusable"), "$warning"
        if one.folder is None:
            return ("paused", "$warning") if one.disk_bytes else ("download", "$quiet")
        return {"bundled": "bundled", "folder": "folder", "hub": ""}[one.source], "$quiet"

    def _explain(self) -> None:
        one = self._marked
        said = self._details(one) if one is not None else [Content("")]
        self.query_one(".explanation", Static).update(Content("\n").join(said))
        self.query_one(".answers", Static).update(
            Content("   ").join(
                [Content.assemble((key, "$accent"), f" {does}") for key, does in self._keys(one)]
            )
        )

    def _keys(self, one: LocalModel | None) -> list[tuple[str, str]]:
        keys = [("Esc", "closes")]
        if one is None:
            return keys
        loading = self._loading
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

    def _details(self, one: LocalModel) -> list[Content]:
        loading = self._loading
        if loading is not None and loading.ref == one.ref and loading.stage == "downloading":
            return _download(loading)
        if one.problem is not None:
            return [Content.styled(one_line(one.problem), "$warning")]
        if one.folder is None:
            if one.disk_bytes:
                return [Content(f"{figures.size(one.disk_bytes)} downloaded; the download can be resumed.")]
            return [
                Content("Downloads from Hugging Face into its cache, shared with other programs."),
                Content.styled(
                    "You can keep chatting. Only weights and data files are fetched, never code.", "$quiet"
                ),
            ]
        estimate = self._estimates.get(one.ref)
        place = "bundled with tqchat" if one.source == "bundled" else one_line(str(one.folder))
        where = Content.styled(f"{one.architecture} · {place}", "$quiet")
        if estimate is None:
            return [where, Content.styled("Estimating its memory…", "$quiet")]
        if estimate.problem is not None or estimate.shapes is None:
            return [where, Content.styled(f"! {one_line(estimate.problem or '')}", "$warning")]
        return [where, *self._memory(estimate)]

    def _memory(self, estimate: ModelEstimate) -> list[Content]:
        """Bytes of weights, of caches of several lengths under the scheme and FP16, and of layers by kind."""
        left = estimate.memory_bytes - estimate.weight_bytes
        lines = [
            Content.assemble(
                f"Weights {figures.size(estimate.weight_bytes)} in memory",
                (f" of {figures.size(estimate.memory_bytes)}", "$quiet"),
                (" · too large" if left <= 0 else "", "$error"),
            ),
            Content.styled(f"{'cache at':>8}{self._scheme.name:>10}{'':13}{'fp16':>10}", "$quiet"),
        ]
        rows = cache_sizes(estimate, self._scheme)
        for row in rows:
            lines.append(
                Content.assemble(
                    f"{figures.number(row.tokens):>8}{figures.size(row.bytes):>10} ",
                    _verdict(row.verdict),
                    f"{figures.size(row.fp16_bytes):>10} ",
                    _verdict(row.fp16_verdict),
                )
            )
        parts = [
            f"{kind.layers} {kind.kind}{f' ({figures.short(kind.window)})' if kind.window else ''} "
            f"{figures.size(kind.bytes)}"
            for kind in sizes_by_layer_kind(estimate, rows[-1].tokens, self._scheme)
        ]
        lines.append(Content.styled(f"layers: {' · '.join(parts)}", "$quiet"))
        return lines

    # Actions

    @on(LineField.Changed)
    def _filter(self) -> None:
        self._draw()

    @on(OptionList.OptionHighlighted)
    def _moved(self) -> None:
        self._explain()
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_timer(ESTIMATE_DELAY_S, self._request_estimate)

    def _request_estimate(self) -> None:
        one = self._marked
        if one is not None and one.folder is not None and not one.problem and one.ref not in self._estimates:
            self._ask(one.ref, one.folder)

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
        one = self._marked
        if one is not None and not (self._loading and self._loading.ref == one.ref):
            self.dismiss(ModelChoice(one.ref))

    def action_pause(self) -> None:
        """Pause the current download and keep its files."""
        if self._loading is not None and self._loading.stage == "downloading":
            self.dismiss(ModelChoice(self._loading.ref, "pause"))

    def action_discard(self) -> None:
        """Discard the files of the marked download, or delete the marked model of the Hugging Face cache."""
        one = self._marked
        if one is not None and one.folder is None and (one.disk_bytes or self._loading):
            self.dismiss(ModelChoice(one.ref, "discard"))
        elif one is not None and self._is_deletable(one):
            self.dismiss(ModelChoice(one.ref, "delete"))

    def action_cancel(self) -> None:
        """Close without a choice."""
        self.dismiss(None)


def _verdict(verdict: Verdict) -> tuple[str, str]:
    style = {"fits": "$success", "tight": "$warning", "does not fit": "$error"}[verdict]
    return f"{verdict:<12}", style


def _download(loading: ModelProgress) -> list[Content]:
    done, total = loading.done_bytes or 0, loading.total_bytes or 0
    if not total:
        return [Content("Listing its files on Hugging Face…")]
    return [
        Content.assemble(bar(done / total, 30), f"  {figures.size(done)} of {figures.size(total)}"),
        Content.styled("It is loaded when complete; you can keep chatting until then.", "$quiet"),
    ]

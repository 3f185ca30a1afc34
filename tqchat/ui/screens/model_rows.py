"""Rows of the model picker: recommended models, models on disk, and what a search on the hub has found."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from textual.content import Content

from tqchat.engine.events import ModelProgress
from tqchat.engine.hub import catalog
from tqchat.engine.hub.catalog import LocalModel
from tqchat.engine.hub.remote.search import Hit, RemoteModel
from tqchat.engine.memory.recommend import Suggestion, short_list
from tqchat.text import one_line
from tqchat.ui import figures

Section = Literal["recommended", "local", "hub"]

TITLES: dict[Section, str] = {
    "recommended": "Recommended for this machine",
    "local": "On this machine",
    "hub": "On Hugging Face",
}
"""Headings, in the order of the list."""

WIDE, WIDEST = 84, 110
"""Terminal width in cells from which the context column, and sizes of caches, are shown."""


@dataclass(frozen=True)
class ModelRow:
    """A model in the list.

    Attributes:
        model: Its files on this machine; without a folder if it is not, or not wholly, here.
        suggestion: Its memory, if it is a recommended one.
        hit, remote: What the hub says of it, as far as it has answered.
    """

    section: Section
    model: LocalModel
    suggestion: Suggestion | None = None
    hit: Hit | None = None
    remote: RemoteModel | None = None

    @property
    def ref(self) -> str:
        """The name to load it by."""
        return self.model.ref

    @property
    def problem(self) -> str | None:
        """Why it cannot be loaded."""
        return self.model.problem or (self.remote.problem if self.remote is not None else None)

    @property
    def bytes(self) -> int:
        """Bytes on disk, or to download; 0 if unknown."""
        if self.model.disk_bytes:
            return self.model.disk_bytes
        if self.suggestion is not None:
            return self.suggestion.model.bytes
        return (self.remote.bytes if self.remote is not None else None) or 0

    @property
    def context_limit(self) -> int | None:
        """In tokens, as far as known."""
        if self.suggestion is not None:
            return self.suggestion.model.context
        return self.remote.context_limit if self.remote is not None else self.model.context_limit

    @property
    def quantisation(self) -> str:
        """Short name of the weights' format, as far as known."""
        return self.model.quantisation or (self.remote.quantisation if self.remote is not None else "")


def rows(
    words: str,
    local: Sequence[LocalModel],
    suggestions: Sequence[Suggestion],
    hits: Sequence[Hit],
    remotes: Mapping[str, RemoteModel],
) -> list[ModelRow]:
    """All rows that match the words entered, each model once, by section.

    Without words only a short list is recommended. A folder or repo that the words name comes last.
    """
    on_disk = {one.ref: one for one in local}
    searched = bool(words.strip())
    known = {one.model.repo: one for one in suggestions}
    recommended = short_list(suggestions)
    if searched:
        recommended = [one for one in suggestions if not one.obstacle and matches(words, one.model.repo)]
    found = [
        ModelRow("recommended", on_disk.get(one.model.repo) or absent(one.model.repo), one)
        for one in recommended
    ]
    seen = {row.ref for row in found}
    found += [
        ModelRow("local", one)
        for one in local
        if one.ref not in seen and matches(words, f"{one.ref} {one.quantisation}")
    ]
    seen |= {row.ref for row in found}
    if searched:
        found += [
            ModelRow(
                "hub",
                on_disk.get(hit.repo) or absent(hit.repo),
                known.get(hit.repo),
                hit,
                remotes.get(hit.repo),
            )
            for hit in hits
            if hit.repo not in seen
        ]
    named = _named(words.strip(), {row.ref for row in found})
    return found if named is None else [*found, named]


def matches(words: str, text: str) -> bool:
    """Whether a text contains every word."""
    return all(word in text.lower() for word in words.lower().split())


def absent(repo: str) -> LocalModel:
    """A repo of which nothing is on this machine."""
    return LocalModel(repo, repo, "hub", None, 0)


def _named(name: str, seen: Collection[str]) -> ModelRow | None:
    """The folder or repo that the user has entered."""
    if not name or name in seen or not ("/" in name or name.startswith("~")):
        return None
    folder = catalog.named_folder(name)
    if folder is not None:
        return ModelRow("local", catalog.describe(folder, name, folder.name, "folder"))
    return None if is_path(name) else ModelRow("hub", absent(name))


def is_path(words: str) -> bool:
    """Whether a folder is being entered, for which nothing is searched."""
    return words.startswith((".", "/", "~"))


def heading(section: Section, width: int, free_bytes: int) -> Content:
    """Heading of a section."""
    if section != "recommended":
        return Content.styled(TITLES[section], "$quiet bold")
    title = f"{TITLES[section]}, {figures.size(free_bytes)} free"
    note = "cache at 8k, 32k" if width >= WIDEST else ""
    return Content.assemble((f"{title:<{_left_width(width)}}", "$quiet bold"), (note, "$quiet"))


def column_heads(width: int) -> Content:
    """Heads of the columns."""
    context = f"{'context':>8}" if width >= WIDE else ""
    return Content.styled(f"  {'model':<{_name_width(width)}} {'weights':>8}  {'':<7}{context}", "$quiet")


def line(row: ModelRow, width: int, current: str | None, loading: ModelProgress | None) -> Content:
    """A row as one line of a terminal ``width`` cells wide."""
    one = row.model
    name = one.ref if one.source == "hub" else one.name
    if row.section == "recommended":
        name = name.partition("/")[2]
    limit = figures.short(row.context_limit) if row.context_limit else ""
    context = f"{limit:>8}" if width >= WIDE else ""
    size = figures.size(row.bytes) if row.bytes else ""
    state, style = _state(row, width, current, loading)
    is_current = one.ref == current
    quiet = "" if one.folder is not None or row.suggestion is not None else "$quiet"
    return Content.assemble(
        ("▌ " if is_current else "  ", "$accent"),
        (figures.fit(one_line(name), _name_width(width)), "bold" if is_current else ""),
        (f" {size:>8}  {one_line(row.quantisation)[:6]:<7}{context}", quiet),
        (f"  {state}", style),
    )


def _name_width(width: int) -> int:
    return min(40, max(21, width - 39))


def _left_width(width: int) -> int:
    """Cells to the left of the state."""
    return _name_width(width) + (30 if width >= WIDE else 22)


def _state(row: ModelRow, width: int, current: str | None, loading: ModelProgress | None) -> tuple[str, str]:
    one = row.model
    if loading is not None and loading.ref == one.ref:
        if loading.stage == "loading":
            return "loading…", "$accent"
        share = (loading.done_bytes or 0) / loading.total_bytes if loading.total_bytes else 0
        return f"{share:.0%}", "$accent"
    if one.ref == current:
        return "in use", "$accent"
    if row.problem is not None:
        return ("! cannot be loaded" if width >= WIDE else "! unusable"), "$warning"
    if one.folder is not None:
        here = {"bundled": "bundled", "folder": "folder", "hub": "on disk" if row.suggestion else ""}
        return here[one.source], "$quiet"
    if one.disk_bytes:
        return "paused", "$warning"
    if row.suggestion is not None:
        return _suggested(row.suggestion, width)
    if row.hit is not None and row.remote is None:
        return "…", "$quiet"
    return "download", "$quiet"


def _suggested(one: Suggestion, width: int) -> tuple[str, str]:
    if one.obstacle:
        return f"! {one.obstacle}", "$warning"
    if width < WIDEST:
        return "download", "$quiet"
    return "  ".join(f"{figures.size(size.bytes):>8}" for size in one.sizes), ""

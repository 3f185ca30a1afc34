"""Scheme picker: every scheme with its bits, predicted size and KLD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from tqchat.engine.memory.allocation import allocate, describe, layer_bits
from tqchat.engine.memory.auto_scheme import SchemeChoice
from tqchat.engine.memory.quality_profile import Profile
from tqchat.kv.memory import MemoryReport, predict_bytes
from tqchat.kv.scheme import SCHEMES, Scheme, parse_scheme
from tqchat.store.database import AUTO
from tqchat.ui import figures

NAME_WIDTH = 1 + max(len(scheme.name) for scheme in SCHEMES)

DEFAULT_HEAD_DIM = 128
"""Head dimension for the bits column while there is no cache."""

WIDE = 80
"""Terminal width in cells from which the current scheme is labelled."""


@dataclass(frozen=True)
class Choice:
    """The scheme chosen, and whether the conversation is re-read under it."""

    scheme: str
    reread: bool = False


@dataclass(frozen=True)
class Row:
    """One scheme in the list. ``bytes`` is measured for the active scheme, predicted for the others.

    ``name`` is the scheme's or ``auto``. ``kld`` comes from a profile.
    """

    name: str
    scheme: Scheme
    current: bool
    key_bits: float
    value_bits: float
    bytes: int | None
    ratio: float | None
    kld: float | None = None
    recommended: bool = False


def rows(
    current: str,
    report: MemoryReport | None,
    choice: SchemeChoice | None = None,
    profile: Profile | None = None,
) -> list[Row]:
    """``auto``, the listed schemes, and the current one if it is not among them."""
    auto = [parse_scheme(choice.scheme)] if choice else []
    in_force = auto[0] if current == AUTO and auto else parse_scheme(current)
    schemes = [*SCHEMES] if any(one.name == in_force.name for one in SCHEMES) else [*SCHEMES, in_force]
    counted = report if report and report.tokens else None
    shaped = next((layer for layer in counted.layers if layer.key_dim), None) if counted else None
    made = []
    for index, scheme in enumerate([*auto, *schemes]):
        is_auto = index < len(auto)
        measured = profile.row(scheme.name) if profile else None
        taken = None
        if counted:
            taken = counted.bytes if scheme.name == counted.scheme else predict_bytes(counted, scheme)
        made.append(
            Row(
                AUTO if is_auto else scheme.name,
                scheme,
                is_auto == (current == AUTO) and scheme.name == in_force.name,
                scheme.bits_per_key(shaped.key_dim if shaped else DEFAULT_HEAD_DIM),
                scheme.bits_per_value(shaped.value_dim if shaped else DEFAULT_HEAD_DIM),
                taken,
                counted.fp16_bytes / taken if counted and taken else None,
                measured.kld_mean if measured else None,
                choice is not None and not is_auto and scheme.name == choice.scheme,
            )
        )
    return made


def is_finer(scheme: Scheme, than: Scheme) -> bool:
    """Whether keys or values get more bits; tokens already packed keep their rounding unless re-read."""
    return scheme.key.bits > than.key.bits or scheme.value.bits > than.value.bits


def returns_to_earlier(scheme: Scheme, now: Scheme, report: MemoryReport) -> bool:
    """Whether the tokens that the cache held under ``scheme`` are still on disk."""
    changing = {("key", scheme.key): now.key, ("value", scheme.value): now.value}
    needed = {format_ for format_, spec in changing.items() if format_[1] != spec}
    return bool(needed) and needed <= report.earlier


class SchemePicker(ModalScreen[Choice | None]):
    """The list of schemes; Enter applies one, r applies it and re-reads the conversation.

    ``live`` tells whether the engine holds the conversation's cache, ``read_speed`` is in tokens per second,
    ``budget`` the bytes that a cache may take.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,ctrl+k", "cancel", "Back"),
        Binding("r", "reread", "Re-read exactly"),
    ]

    def __init__(
        self,
        current: str,
        report: MemoryReport | None,
        live: bool,
        choice: SchemeChoice | None = None,
        profile: Profile | None = None,
        read_speed: float | None = None,
        budget: int | None = None,
    ) -> None:
        super().__init__(classes="dialog picker")
        self._current, self._report, self._live = current, report, live
        self._read_speed, self._budget = read_speed, budget
        self._choice, self._profile = choice, profile
        self._rows = rows(current, report, choice, profile)
        self._in_force = choice.scheme if current == AUTO and choice else current

    def compose(self) -> ComposeResult:
        """Heading, schemes, legend, effect of the highlighted scheme, keys."""
        with Vertical(classes="box") as box:
            box.border_title = "Scheme for this conversation"
            yield Static(_heading(self._report, self._profile), classes="heading", markup=False)
            yield OptionList(
                *(
                    Option(
                        _line(row, self._report, self._profile, self.app.size.width >= WIDE),
                        id=row.name,
                    )
                    for row in self._rows
                ),
                compact=True,
                markup=False,
            )
            yield Static(self._legend(), classes="legend", markup=False)
            yield Static("", classes="explanation", markup=False)
            yield Static(self._keys(), classes="answers", markup=False)

    def on_mount(self) -> None:
        """Start at the active scheme."""
        index = next(index for index, row in enumerate(self._rows) if row.current)
        options = self.query_one(OptionList)
        options.highlighted = index
        self.call_after_refresh(options.scroll_to_highlight)
        self._explain(self._rows[index])

    @property
    def _can_reread(self) -> bool:
        return self._live and self._report is not None and self._report.tokens > 0

    def _keys(self) -> Content:
        keys = [("Enter", "applies"), ("Esc", "goes back")]
        if self._can_reread:
            keys.insert(1, ("r", "re-reads exactly"))
        return Content("   ").join([Content.assemble((k, "$accent"), (f" {w}", "")) for k, w in keys])

    def _legend(self) -> str:
        said = []
        if self._report is not None and self._report.tokens:
            exists = bool(self._report.scheme)
            said.append("≈ predicted" if exists else f"≈ predicted for {figures.tokens(self._report.tokens)}")
        if any(row.recommended for row in self._rows):
            said.append("* recommended: auto's choice")
        if self._profile is None:
            said.append("KLD: tqchat lab profile")
        return " · ".join(said)

    def _explain(self, row: Row) -> None:
        scheme = row.scheme
        what = self._choice.reason if row.name == AUTO and self._choice else scheme.description
        if words := self._bits_by_layer(scheme):
            what += f" {words}"
        if row.kld is not None:
            what += f" {kld_sentence(row.kld)}"
        if row.recommended:
            what += " Recommended."
        self.query_one(".explanation", Static).update(
            Content("\n").join([Content(what), Content.styled(self._effect(row), "$quiet")])
        )

    def _bits_by_layer(self, scheme: Scheme) -> str | None:
        """The profile's bits by layer, in words; empty without any."""
        if self._profile is None or self._report is None:
            return None
        return describe(layer_bits(allocate(scheme, self._profile.sensitivity, self._report)))

    def _effect(self, row: Row) -> str:
        """Effect of the scheme on this conversation."""
        scheme, before, report = row.scheme, parse_scheme(self._in_force), self._report
        if report is None or not report.tokens or not self._live:
            return "Applies from the next message." if scheme.name != before.name else "In force."
        history = figures.tokens(report.tokens)
        time = self._reading_time(report.tokens)
        if scheme.name == before.name:
            return f"In force. [r] re-reads {history} exactly{time}." if report.packed_tokens else "In force."
        sizes = f"{figures.size(report.bytes)} → ≈ {figures.size(row.bytes or 0)}"
        if self._budget is not None and (row.bytes or 0) > max(self._budget, report.bytes):
            limit = figures.size(self._budget)
            return f"Converts {history}: {sizes}.\nThat is more than the memory budget of {limit}."
        if returns_to_earlier(scheme, before, report):
            return f"Converts {history}: {sizes}. What it held under {scheme.name} comes back as it was."
        if report.packed_tokens and is_finer(scheme, before):
            kept = f"History keeps its earlier rounding; [r] re-reads exactly{time}."
            return f"Converts {history}: {sizes}.\n{kept}"
        return f"Converts {history}: {sizes}. Nothing is re-read."

    def _reading_time(self, tokens: int) -> str:
        return f" (about {figures.seconds(tokens / self._read_speed)})" if self._read_speed else ""

    @on(OptionList.OptionHighlighted)
    def _highlighted(self, event: OptionList.OptionHighlighted) -> None:
        self._explain(self._rows[event.option_index])

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        name = event.option.id
        unchanged = name is None or self._rows[event.option_index].current
        self.dismiss(None if unchanged or name is None else Choice(name))

    def action_reread(self) -> None:
        """Apply the scheme and re-read the conversation, which removes earlier rounding."""
        index = self.query_one(OptionList).highlighted
        if self._can_reread and index is not None:
            self.dismiss(Choice(self._rows[index].name, reread=True))

    def action_cancel(self) -> None:
        """Close without a choice."""
        self.dismiss(None)


def kld_sentence(nats: float) -> str:
    """Meaning of the KLD column."""
    return f"KLD here: its next-token probabilities are {figures.kld(nats)} nats from FP16's on this model."


def _heading(report: MemoryReport | None, profile: Profile | None) -> Content:
    head = f"{'':2}{'scheme':<{NAME_WIDTH}}{'keys':>5}{'values':>7}"
    if report is None or not report.tokens:
        head += "  bits"
    else:
        head += f"{'would take':>11}{'ratio':>6}"
    return Content.styled(f"{head}{'KLD here':>9}" if profile else head, "$quiet")


def _line(row: Row, report: MemoryReport | None, profile: Profile | None, wide: bool) -> Content:
    parts: list[tuple[str, str]] = [
        ("▌ " if row.current else "  ", "$accent"),
        (row.name.ljust(NAME_WIDTH), "bold" if row.current else ""),
        (f"{figures.bits(row.key_bits):>5}{figures.bits(row.value_bits):>7}", ""),
    ]
    if row.bytes is not None and row.ratio is not None:
        counted = report is not None and row.scheme.name == report.scheme
        taken = figures.size(row.bytes) if counted else f"≈ {figures.size(row.bytes)}"
        parts.append((f"{taken:>11}{figures.ratio(row.ratio):>6}", ""))
    else:
        parts.append(("      ", ""))
    if profile is not None:
        parts.append((f"{'' if row.kld is None else figures.kld(row.kld):>9}", ""))
    parts.append((" *" if row.recommended else "  ", "$accent"))
    if row.current and wide:
        parts.append((" now", "$quiet"))
    return Content.assemble(*parts)

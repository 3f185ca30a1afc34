"""The full gauge: cache size over the conversation and by part."""

from __future__ import annotations

from textual.content import Content
from textual.events import Click
from textual.widgets import Static

from tqchat.kv.memory import MemoryReport
from tqchat.kv.scheme import FINE_BITS
from tqchat.text import printable
from tqchat.ui import figures
from tqchat.ui.widgets.gauge.drawing import bar, curves, scheme_marks
from tqchat.ui.widgets.gauge.reading import Reading, bits, scheme_sizes
from tqchat.ui.widgets.gauge.remaining import remaining_tokens
from tqchat.ui.widgets.gauge.strip import strip

WIDTH = 28
BAR_WIDTH = 7
CURVE_HEIGHT = 5


class GaugePanel(Static):
    """A column of measured figures beside the conversation."""

    BORDER_TITLE = "KV cache"

    def __init__(self) -> None:
        super().__init__("", id="gauge-panel", markup=False)
        self._shown: Reading | None = None

    async def on_click(self, event: Click) -> None:
        """Fold the panel at a click on its title."""
        if event.y == 0:
            await self.run_action("app.act('toggle_gauge')")

    def show(self, reading: Reading) -> None:
        """Show a reading."""
        if reading == self._shown:
            return
        self._shown = reading
        self.border_subtitle = reading.label or reading.scheme.name
        self.update(Content("\n").join(lines(reading)))


def lines(reading: Reading) -> list[Content]:
    """The panel's lines."""
    report = reading.report
    if report is None or not report.tokens:
        return [
            Content.styled("empty", "$quiet"),
            bar(0, WIDTH),
            Content(""),
            Content.styled("Counted from the live arrays as soon as there is a cache.", "$quiet"),
            *([Content(""), Content.styled(reading.start, "$quiet")] if reading.is_waiting else []),
            *_disk(reading),
        ]
    parts = [
        _row(figures.size(report.bytes), _times(reading, report), "bold", "$accent bold"),
        bar(reading.fraction, WIDTH),
        *_saved(reading, report),
        _row("allocated", figures.size(report.allocated_bytes)),
        *([_row("peak of the turn", figures.size(report.peak_bytes))] if report.peak_bytes else []),
        *_disk(reading),
        *([_row("speed", figures.speed(reading.speed))] if reading.speed else []),
        Content(""),
    ]
    drawn = curves(reading.history.samples, WIDTH, CURVE_HEIGHT)
    if drawn:
        samples = reading.history.samples
        legend = Content.assemble(
            ("⣿", "$accent"), (" now  ", "$quiet"), ("⠒", "$quiet"), (" FP16", "$quiet")
        )
        span = f"{figures.number(samples[0].tokens)}–{figures.number(samples[-1].tokens)} tok"
        gap = " " * max(1, WIDTH - legend.cell_length - len(span))
        if (marked := scheme_marks(samples, WIDTH)) is not None:
            drawn.append(marked)
        parts += [*drawn, Content.assemble(legend, gap, (span, "$quiet")), Content("")]
    parts += [
        _side("keys", report),
        _side("values", report),
        _row("packed", figures.tokens(report.packed_tokens)),
        *([_row(f"  at {FINE_BITS} bit", figures.tokens(report.fine_tokens))] if report.fine_tokens else []),
        _row("tail", figures.tokens(report.tail_tokens)),
        _row("sinks", figures.tokens(report.sink_tokens)),
        *_rounded(report),
        Content(""),
        _row("layers", f"{reading.coverage} packed"),
        *strip(report, WIDTH),
        *(Content.styled(text, "$quiet") for text in map(printable, reading.explanations)),
        *_remaining(reading),
        Content(""),
        *_others(report),
    ]
    return parts


def _rounded(report: MemoryReport) -> list[Content]:
    """Tokens that keep the rounding of earlier schemes, its fewest bits, and how often they were rounded."""
    if not report.rounded_tokens:
        return []
    times = f"×{report.rounded_times}" if report.rounded_times > 1 else "before"
    return [
        _row(f"rounded {times}", f"{figures.short(report.rounded_tokens)} at {min(report.rounded_bits)} bit")
    ]


def _saved(reading: Reading, report: MemoryReport) -> list[Content]:
    """FP16 size and bytes saved; before anything is compressed, when compression starts."""
    if reading.is_waiting:
        would_take = _row("FP16 would take", figures.size(report.fp16_bytes))
        return [*([would_take] if reading.is_reading else []), Content.styled(reading.start, "$quiet")]
    return [
        _row("FP16 would take", figures.size(report.fp16_bytes)),
        _row("saved" if report.saved_bytes >= 0 else "more than FP16", figures.size(abs(report.saved_bytes))),
    ]


def _times(reading: Reading, report: MemoryReport) -> str:
    if reading.is_waiting:
        return "at 16 bits"
    if report.ratio >= 1.05:
        return f"{figures.ratio(report.ratio)} smaller"
    return "as FP16" if report.ratio > 0.95 else f"{figures.ratio(1 / report.ratio)} larger"


def _row(label: str, value: str, label_style: str = "$quiet", value_style: str = "") -> Content:
    gap = " " * max(1, WIDTH - len(label) - len(value))
    return Content.assemble((label, label_style), gap, (value, value_style))


def _side(side: str, report: MemoryReport) -> Content:
    width = bits(report, side)
    label = side if width is None else f"{side:<7}{figures.bits(width)} bit"
    return _row(label, figures.size(report.key_bytes if side == "keys" else report.value_bytes))


def _remaining(reading: Reading) -> list[Content]:
    """Tokens that still fit under the scheme and under FP16, and whether memory or context ends first."""
    if reading.report is None or reading.budget is None:
        return []
    found = remaining_tokens(reading.report, reading.budget)
    if found is None:
        return []
    found, context_ends = found.within(reading.context_left)
    return [
        Content(""),
        _row("room for", f"{figures.short(found.in_scheme)} more"),
        _row("  under FP16", f"{figures.short(found.in_fp16)} more"),
        _row("  ends first", "the context" if context_ends else "the memory"),
    ]


def _others(report: MemoryReport) -> list[Content]:
    """A bar for each scheme's predicted size; the active scheme is marked, and its size counted."""
    taken = scheme_sizes(report)
    largest = max(size for _, size, _ in taken)
    names = 1 + max(len(name) for name, _, _ in taken)
    lines = [Content.styled("the same tokens under", "$quiet")]
    for name, size, in_force in taken:
        lines.append(
            Content.assemble(
                (name.ljust(names), "bold $accent" if in_force else ""),
                bar(size / largest, BAR_WIDTH, "$accent" if in_force else "$quiet"),
                f"{'' if in_force else '≈'}{figures.size(size)}".rjust(WIDTH - names - BAR_WIDTH),
            )
        )
    return lines


def _disk(reading: Reading) -> list[Content]:
    """The saved cache, and the caches of other programs' requests."""
    saved = [] if reading.disk_bytes is None else [_row("on disk", figures.size(reading.disk_bytes))]
    others = [_row("other programs", figures.size(reading.request_bytes))] if reading.request_bytes else []
    return [*saved, *others]

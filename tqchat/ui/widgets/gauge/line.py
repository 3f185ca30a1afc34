"""The gauge on one line, for terminals too narrow for the panel."""

from __future__ import annotations

from textual.content import Content
from textual.widgets import Static

from tqchat.ui import figures
from tqchat.ui.widgets.fitted import Fitted
from tqchat.ui.widgets.gauge.drawing import bar
from tqchat.ui.widgets.gauge.reading import Reading


class GaugeLine(Static):
    """``▕██████▌░░░░▏ 0.82 MB of 3.15 MB FP16 · 3.8x · saved 2.33 MB``, as much as fits."""

    def __init__(self) -> None:
        super().__init__("", id="gauge-line", markup=False)

    def show(self, reading: Reading) -> None:
        """Show a reading."""
        self.update(Fitted(1, lambda width: _fit(reading, width)))

    async def on_click(self) -> None:
        """Open the panel."""
        await self.run_action("app.act('toggle_gauge')")


def _fit(reading: Reading, width: int) -> Content:
    """Bar and as many parts as fit, most important first."""
    report = reading.report
    start = [reading.short_start] if reading.is_waiting else []
    if report is None or not report.tokens:
        parts = ["no cache yet", reading.scheme.name, *([] if reading.is_reading else start)]
    elif reading.is_waiting and not reading.is_reading:
        parts = [figures.size(report.bytes), *start]
    else:
        parts = [f"{figures.size(report.bytes)} of {figures.size(report.fp16_bytes)} FP16", *start]
        parts.append(figures.ratio(report.ratio))
        if report.layers_compressed < report.layers_total:
            parts.append(f"{reading.coverage} layers packed")
        parts.append(f"saved {figures.size(report.saved_bytes)}")
    track = 16 if width >= 76 else 10
    while len(parts) > 1 and track + 3 + len(" · ".join(parts)) > width:
        parts.pop()
    return Content.assemble(
        ("▕", "$faint"),
        bar(reading.fraction, track),
        ("▏ ", "$faint"),
        (parts[0], ""),
        *((f" · {part}", "$quiet") for part in parts[1:]),
    )

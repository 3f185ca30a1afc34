"""The layers as a strip: one mark a layer, and a line for each sort of layer where they differ."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from textual.content import Content

from tqchat.kv.memory import LayerReport, MemoryReport
from tqchat.ui import figures

MARKS = {"▇": "$accent", "▅": "$accent", "▂": "$accent", "░": "$quiet", "~": "$quiet", "×": "$warning"}
"""Packed; packed in a sliding window; packed under another scheme than the rest; still raw; state that does
not grow; out of the scheme's reach."""


class Sort(NamedTuple):
    """What tells layers apart at a glance."""

    mark: str
    kind: str
    scheme: str
    window: int | None


def sort(layer: LayerReport, scheme: str) -> Sort:
    """Which sort a layer of a cache under ``scheme`` is of."""
    if layer.compressed:
        mark = "▂" if layer.scheme != scheme else "▅" if layer.kind == "sliding" else "▇"
    elif layer.reason is None:
        mark = "░"
    else:
        mark = "~" if layer.kind == "recurrent" else "×"
    return Sort(mark, layer.kind, layer.scheme, layer.window)


def strip(report: MemoryReport, width: int) -> list[Content]:
    """Rows of marks; where the layers differ, what each mark stands for: ``▅ 20 sliding (1,024) turbo4``."""
    sorts = [sort(layer, report.scheme) for layer in report.layers]
    lines = [
        Content.assemble(*((one.mark, MARKS[one.mark]) for one in sorts[start : start + width]))
        for start in range(0, len(sorts), width)
    ]
    counted = Counter(sorts)
    if len(counted) > 1:
        for one, count in counted.items():
            window = f" ({figures.short(one.window)})" if one.window else ""
            what = f" {count} {one.kind}{window} {one.scheme}"
            lines.append(Content.assemble((one.mark, MARKS[one.mark]), (what[: width - 1], "$quiet")))
    return lines

"""The layer strip: one mark per layer, and a legend if layers differ."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from textual.content import Content

from tqchat.kv.memory import LayerReport, MemoryReport
from tqchat.ui import figures

MARKS = {"▇": "$accent", "▅": "$accent", "▂": "$accent", "░": "$quiet", "~": "$quiet", "×": "$warning"}
"""Marks: packed; packed, sliding window; packed under another scheme; still raw; recurrent state; not
compressible by the scheme."""


class LayerGroup(NamedTuple):
    """Layers that share a line of the legend."""

    mark: str
    kind: str
    scheme: str
    window: int | None


def layer_group(layer: LayerReport, scheme: str) -> LayerGroup:
    """The group of a layer in a cache under ``scheme``."""
    if layer.compressed:
        mark = "▂" if layer.scheme != scheme else "▅" if layer.kind == "sliding" else "▇"
    elif layer.reason is None:
        mark = "░"
    else:
        mark = "~" if layer.kind == "recurrent" else "×"
    return LayerGroup(mark, layer.kind, layer.scheme, layer.window)


def strip(report: MemoryReport, width: int) -> list[Content]:
    """Rows of marks; if layers differ, a legend: ``▅ 20 sliding (1,024) turbo4``."""
    groups = [layer_group(layer, report.scheme) for layer in report.layers]
    lines = [
        Content.assemble(*((one.mark, MARKS[one.mark]) for one in groups[start : start + width]))
        for start in range(0, len(groups), width)
    ]
    counted = Counter(groups)
    if len(counted) > 1:
        for one, count in counted.items():
            window = f" ({figures.short(one.window)})" if one.window else ""
            what = f" {count} {one.kind}{window} {one.scheme}"
            lines.append(Content.assemble((one.mark, MARKS[one.mark]), (what[: width - 1], "$quiet")))
    return lines

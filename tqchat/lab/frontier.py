"""Scatter plot of KL divergence against cache size, with the Pareto frontier, as one standalone SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise

from tqchat.lab.results import Results, Row

WIDTH, HEIGHT = 760, 480
LEFT, RIGHT, TOP, BOTTOM = 76, 34, 66, 92
"""Size and margins in pixels."""

_FAMILIES = {
    "turbo": ("#8250df", "#bc8cff", "rotated keys and values"),
    "trellis": ("#bf3989", "#ff80c8", "rotated, trellis codes"),
    "mixed": ("#0969da", "#58a6ff", "8-bit keys, rotated values"),
    "values": ("#1a7f37", "#4ac26b", "raw keys, rotated values"),
    "affine": ("#bc4c00", "#f0883e", "affine"),
    "peer": ("#59636e", "#9198a1", "others"),
}
"""By ``family``, also the CSS class: colour on light, colour on dark, legend."""

_LETTER_PX, _LINE_PX = 6.7, 13.0
"""Approximate width of a label's letter and height of its line, to avoid overlaps."""

_Point = tuple[float, float]
_Box = tuple[float, float, float, float]


def frontier_svg(results: Results) -> str:
    """The plot: cache size against mean KLD, both axes logarithmic; the bottom left is best.

    Schemes of divergence 0 (``fp16``) cannot be drawn on a logarithmic axis; FP16's size is a line.
    """
    points = [row for row in results.rows if row.kld_mean > 0]
    fp16 = max((row.fp16_bytes for row in results.rows), default=1)
    klds = [row.kld_mean for row in points] or [1e-4, 1e-2]
    x = _Axis(min([row.bytes for row in points] or [fp16 // 8]) / 1.18, fp16 * 1.05, LEFT, WIDTH - RIGHT)
    y = _Axis(min(klds) / 2, max(klds) * 2, HEIGHT - BOTTOM, TOP)
    front = [(x(row.bytes), y(row.kld_mean)) for row in _pareto_front(points)]
    title = f"{results.model}, {results.text}, {results.tokens:,} tokens held"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" role="img">',
        f"<title>KL divergence against cache size: {escape(title)}</title>",
        f"<style>{_style()}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}" rx="8"/>',
        _text(LEFT, 28, "Distance from FP16 against the size of the cache", "title"),
        _text(LEFT, 47, title, "faint"),
        *_grid(x, y, fp16),
        *_frontier(front),
        *_points(points, front, x, y),
        *_legend(points),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


class _Axis:
    """A logarithmic axis: maps a value to a pixel position."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)


def _style() -> str:
    # Plain classes: many SVG renderers do not support CSS variables.
    def colours(dark: bool) -> str:
        light_theme, dark_theme = "#ffffff #1f2328 #59636e #dde2e8", "#0d1117 #e6edf3 #9198a1 #2a313a"
        paper, ink, faint, grid = (dark_theme if dark else light_theme).split()
        rules = [
            f".paper{{fill:{paper}}}",
            f".label{{stroke:{paper}}}",
            f"text{{fill:{ink}}}",
            f".faint{{fill:{faint}}}",
            f".grid{{stroke:{grid}}}",
            f".front,.plain{{stroke:{faint}}}",
        ]
        for name, (light, on_dark, _) in _FAMILIES.items():
            colour = on_dark if dark else light
            rules.append(f".{name}{{fill:{colour};stroke:{colour}}}")
        rules.append(f".peer{{fill:{paper}}}")
        return "".join(rules)

    shape = (
        "text{font:12px -apple-system,'Segoe UI',Helvetica,Arial,sans-serif}"
        ".title{font-size:16px;font-weight:600}.front,.plain{fill:none;stroke-dasharray:4 4;stroke-width:1.3}"
        ".label{paint-order:stroke;stroke-width:3px;stroke-linejoin:round}"
        ".plain{stroke-dasharray:1 4}.dot{stroke-width:2}"
    )
    return f"{shape}{colours(False)}@media(prefers-color-scheme:dark){{{colours(True)}}}"


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start", extra: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{named} text-anchor="{anchor}"{extra}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _grid(x: _Axis, y: _Axis, fp16: int) -> Iterator[str]:
    bottom, middle = HEIGHT - BOTTOM, (HEIGHT - BOTTOM + TOP) / 2
    exponent = math.ceil(math.log10(y.low))
    while 10.0**exponent <= y.high:
        at = y(10.0**exponent)
        yield _line(LEFT, at, WIDTH - RIGHT, at, "grid")
        yield _text(LEFT - 8, at + 4, f"{10.0**exponent:.{max(0, -exponent)}f}", "faint", "end")
        exponent += 1
    unit, name = (10**9, "GB") if fp16 >= 2 * 10**9 else (10**6, "MB") if fp16 >= 2 * 10**6 else (10**3, "kB")
    for step in (m * 10.0**e for e in range(-1, 5) for m in (1, 1.5, 2, 3, 4, 6, 8)):
        if x.low <= step * unit <= x.high:
            at = x(step * unit)
            yield _line(at, TOP, at, bottom, "grid")
            yield _text(at, bottom + 18, f"{step:g}", "faint", "middle")
    yield _line(x(fp16), TOP, x(fp16), bottom, "plain")
    yield _text(x(fp16) - 5, bottom - 8, "fp16", "faint", "end")
    yield _text((LEFT + WIDTH - RIGHT) / 2, bottom + 38, f"cache, {name}", anchor="middle")
    turned = f' transform="rotate(-90 20 {middle:.1f})"'
    yield _text(20, middle, "mean KL divergence from FP16, nats a token", anchor="middle", extra=turned)


def _pareto_front(points: Sequence[Row]) -> list[Row]:
    """Schemes that no other beats in both size and divergence, by size."""
    best: list[Row] = []
    for row in sorted(points, key=lambda row: (row.bytes, row.kld_mean)):
        if not best or row.kld_mean < best[-1].kld_mean:
            best.append(row)
    return best


def _frontier(front: Sequence[_Point]) -> Iterator[str]:
    if len(front) > 1:
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in front)
        yield f'<polyline class="front" points="{path}"/>'


def _points(points: Sequence[Row], front: Sequence[_Point], x: _Axis, y: _Axis) -> Iterator[str]:
    places = {row.scheme: (x(row.bytes), y(row.kld_mean)) for row in points}
    taken: list[_Box] = [(px - 6, py - 6, px + 6, py + 6) for px, py in places.values()]
    for (ax, ay), (bx, by) in pairwise(front):
        steps = max(1, int(math.hypot(bx - ax, by - ay) / 4))
        line = ((ax + (bx - ax) * i / steps, ay + (by - ay) * i / steps) for i in range(steps))
        taken += [(px - 1.5, py - 1.5, px + 1.5, py + 1.5) for px, py in line]
    for row in points:
        px, py = places[row.scheme]
        yield f'<circle class="dot {family(row.scheme)}" cx="{px:.1f}" cy="{py:.1f}" r="4.5"/>'
        label = f"{row.scheme} {row.ratio:.1f}x"
        left, top, box = _label_position(px, py, len(label) * _LETTER_PX, taken)
        taken.append(box)
        yield _text(left, top + _LINE_PX - 3, label, "label")


def _label_position(px: float, py: float, width: float, taken: Sequence[_Box]) -> tuple[float, float, _Box]:
    """The label position around a point with the least overlap with other labels and the edges."""
    across = {"right": px + 9, "left": px - 9 - width, "middle": px - width / 2}
    choices = [
        (across["right"], py - _LINE_PX / 2),
        (across["left"], py - _LINE_PX / 2),
        (across["middle"], py - _LINE_PX - 7),
        (across["middle"], py + 7),
        *(
            (across[side], py - _LINE_PX / 2 + off)
            for off in (-13, 13, -26, 26, -39, 39)
            for side in ("right", "left")
        ),
    ]

    def cost(place: tuple[float, float]) -> float:
        box = (place[0], place[1], place[0] + width, place[1] + _LINE_PX)
        inside = box[0] >= LEFT and box[2] <= WIDTH and box[1] >= TOP - 12 and box[3] <= HEIGHT - BOTTOM
        return sum(_overlap(box, other) for other in taken) + (0 if inside else 1e6)

    left, top = min(choices, key=cost)
    return left, top, (left, top, left + width, top + _LINE_PX)


def _overlap(a: _Box, b: _Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)


def _legend(points: Sequence[Row]) -> Iterator[str]:
    present = {family(row.scheme) for row in points}
    at, y = float(LEFT), HEIGHT - 32
    for name, (_, _, meaning) in _FAMILIES.items():
        if name in present:
            width = 9 + len(meaning) * 5.9 + 18
            if at + width > WIDTH:
                at, y = float(LEFT), y + 18
            yield f'<circle class="dot {name}" cx="{at:.1f}" cy="{y}" r="4.5"/>'
            yield _text(at + 9, y + 4, meaning, "faint")
            at += width


def family(scheme: str) -> str:
    """Scheme family, which decides the colour."""
    if scheme.startswith(("mlx", "kvarn", "swift")):
        return "peer"
    if scheme.startswith("affine"):
        return "affine"
    if scheme.startswith("trellis"):
        return "trellis"
    if scheme.startswith("turbo0"):
        return "values"
    return "mixed" if scheme.startswith("turbo8") else "turbo"

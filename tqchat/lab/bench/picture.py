"""Bar chart of bench results: speed relative to mlx-lm's 16-bit cache, as one standalone SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby

from tqchat.lab.bench.results import BenchResults, BenchRow
from tqchat.lab.frontier import family

WIDTH = 760
LEFT, RIGHT, TOP = 96, 70, 66
BAR, GAP, HEAD = 16, 5, 34
_COLOURS = {
    "turbo": ("#8250df", "#bc8cff"),
    "trellis": ("#bf3989", "#ff80c8"),
    "mixed": ("#0969da", "#58a6ff"),
    "values": ("#1a7f37", "#4ac26b"),
    "affine": ("#bc4c00", "#f0883e"),
    "peer": ("#59636e", "#9198a1"),
}
_FONT = (
    "text{font:12px -apple-system,'Segoe UI',Helvetica,Arial,sans-serif}"
    ".title{font-size:16px;font-weight:600}"
)


def bench_svg(results: BenchResults) -> str:
    """The chart; bars beyond the line at 1 are faster than the 16-bit cache of the same run."""
    groups = [
        (f"{what} at {context:,} tokens", list(rows))
        for (what, context), rows in groupby(
            (row for row in results.rows if row.ratio_fp16 is not None),
            key=lambda row: (row.what, row.context),
        )
    ]
    longest = max([1.2, *(row.ratio_fp16 or 0 for _, rows in groups for row in rows)])
    scale = (WIDTH - LEFT - RIGHT) / longest
    height = TOP + sum(HEAD + len(rows) * (BAR + GAP) for _, rows in groups) + 24
    body: list[str] = []
    top = float(TOP)
    for title, rows in groups:
        body.append(_text(LEFT, top + 14, title))
        body += _bars(rows, top + HEAD - 10, scale)
        top += HEAD + len(rows) * (BAR + GAP)
    at = LEFT + scale
    line = f'<line class="one" x1="{at:.1f}" y1="{TOP + 18}" x2="{at:.1f}" y2="{top:.1f}"/>'
    about = f"{results.device}{'' if results.model is None else ', ' + results.model}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" role="img">',
            f"<title>Speed against the FP16 cache: {escape(about)}</title>",
            f"<style>{_style()}</style>",
            f'<rect class="paper" width="{WIDTH}" height="{height}" rx="8"/>',
            _text(LEFT, 28, "Speed against mlx-lm's 16-bit cache, same run", "title"),
            _text(LEFT, 47, about, "faint"),
            *body,
            line,
            "</svg>",
            "",
        ]
    )


def _bars(rows: Sequence[BenchRow], top: float, scale: float) -> Iterator[str]:
    for row in rows:
        ratio = row.ratio_fp16 or 0.0
        yield _text(LEFT - 8, top + BAR - 4, row.scheme, anchor="end")
        size = f'x="{LEFT}" y="{top:.1f}" width="{max(ratio * scale, 1):.1f}" height="{BAR}"'
        yield f'<rect class="{family(row.scheme)}" {size} rx="2"/>'
        yield _text(LEFT + ratio * scale + 6, top + BAR - 4, f"{ratio:.2f}x", "faint")
        top += BAR + GAP


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{named} text-anchor="{anchor}">{escape(text)}</text>'


def _style() -> str:
    def colours(dark: bool) -> str:
        paper, ink, faint = ("#0d1117 #e6edf3 #9198a1" if dark else "#ffffff #1f2328 #59636e").split()
        rules = [f".paper{{fill:{paper}}}text{{fill:{ink}}}.faint{{fill:{faint}}}"]
        rules.append(f".one{{stroke:{ink};stroke-dasharray:4 4}}")
        rules += [f".{name}{{fill:{pair[dark]}}}" for name, pair in _COLOURS.items()]
        return "".join(rules)

    return f"{_FONT}{colours(False)}@media(prefers-color-scheme:dark){{{colours(True)}}}"

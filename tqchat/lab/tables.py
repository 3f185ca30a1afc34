"""Markdown tables with aligned columns, for files and terminals."""

from __future__ import annotations

from collections.abc import Sequence

from tqchat.kv.memory import LayerReport, MemoryReport, predict_bytes
from tqchat.kv.scheme import SCHEMES, Scheme
from tqchat.lab.results import Results

HEAD_DIM = 128
LENGTHS = (4096, 32768)
TYPICAL_LAYERS = 32
TYPICAL_KV_HEADS = 8


def scheme_table() -> str:
    """Every listed scheme: bits, tail, and its compression ratio at 4k and 32k tokens."""
    lengths = [f"at {length // 1024}k" for length in LENGTHS]
    header = ["scheme", "key bits", "value bits", "tail", *lengths]
    rows = [
        [
            f"`{scheme.name}`",
            f"{scheme.bits_per_key(HEAD_DIM):.6g}",
            f"{scheme.bits_per_value(HEAD_DIM):.6g}",
            str(scheme.tail) if scheme.compresses else "all",
            *(f"{real_ratio(scheme, length):.2f}x" for length in LENGTHS),
        ]
        for scheme in SCHEMES
    ]
    return markdown(header, rows, right=(1, 2, 3, 4, 5))


def real_ratio(
    scheme: Scheme,
    tokens: int,
    *,
    layers: int = TYPICAL_LAYERS,
    heads: int = TYPICAL_KV_HEADS,
    head_dim: int = HEAD_DIM,
) -> float:
    """Compression ratio of a cache of ``tokens`` tokens against FP16, with sinks, tail, gains and fitted
    arrays.

    Computed by ``predict_bytes``, which tests compare with live caches.
    """
    plain = 4 * tokens * heads * head_dim
    layer = LayerReport(
        index=0,
        kind="full",
        scheme="fp16",
        reason=None,
        tokens=tokens,
        key_bytes=plain // 2,
        value_bytes=plain // 2,
        bytes=plain,
        allocated_bytes=plain,
        fp16_bytes=plain,
        packed_tokens=0,
        tail_tokens=tokens,
        sink_tokens=0,
        heads=heads,
        key_dim=head_dim,
        value_dim=head_dim,
    )
    report = MemoryReport("fp16", tokens, (layer,) * layers)
    return report.fp16_bytes / predict_bytes(report, scheme)


def result_table(results: Results) -> str:
    """Table of an evaluation; recall only if measured."""
    asked = any(row.recall is not None for row in results.rows)
    header = ["scheme", "KLD mean", "median", "p99", "same top-1", "perplexity", "kB", "ratio"]
    rows = [
        [
            f"`{row.scheme}`",
            f"{row.kld_mean:.5f}",
            f"{row.kld_median:.5f}",
            f"{row.kld_p99:.4f}",
            f"{100 * row.top1:.2f} %",
            f"{row.ppl:.3f}",
            f"{row.bytes / 1000:,.0f}",
            f"{row.ratio:.2f}x",
            *([f"{100 * row.recall:.1f} %" if row.recall is not None else ""] if asked else []),
        ]
        for row in results.rows
    ]
    return markdown(header + (["recall"] if asked else []), rows, right=range(1, len(header) + 1))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A Markdown table with padded columns; those in ``right`` are right-aligned."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    rule = [("-" * (w - 1) + ":") if i in right else "-" * w for i, w in enumerate(widths)]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    return "\n".join(line(cells) for cells in (header, rule, *rows))

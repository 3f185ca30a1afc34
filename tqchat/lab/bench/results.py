"""Bench results: one row per scheme and length, as JSON and as Markdown. No MLX."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from tqchat.lab.results import BadResults
from tqchat.lab.tables import markdown
from tqchat.units import size


@dataclass(frozen=True)
class BenchRow:
    """One measurement. Times in seconds, sizes in bytes; ``None`` if a figure does not apply.

    Attributes:
        what: ``decode``, ``prefill``, ``turn`` (a message after a packed history), ``attention``, ``kernels``
            (attention on the device alone), ``encode``, ``restore``, ``convert`` (a change of scheme),
            ``day``, ``drafting``, ``api``, ``api clients``, ``events``, ``ui`` or ``start``.
        scheme: A scheme; ``mlx16``, ``mlx8``, ``mlx4`` for mlx-lm's own caches; or the operation timed.
        context: Tokens in the cache (messages in the conversation, for ``ui``).
        median_s: Median over the rounds: per token for ``decode`` and ``api clients``, else of the whole
            run.
        spread_s: The interquartile range over the rounds.
        ratio_fp16: Speed relative to mlx-lm's 16-bit cache, median of the rounds' ratios; above 1 is faster.
        ratio_mlx: The same against mlx-lm's quantised cache of as many bits, or the next more.
        peak_bytes: Peak MLX allocation beyond the weights and other caches; for ``api``, the server's peak
            resident memory.
        ratio_plain: For ``drafting``: speed relative to plain decoding.
        read_bytes: Bytes that must be read: the cache, and for ``decode`` the weights.
        ratio_fresh: Speed relative to a cache that has read the same transcript afresh, like ``ratio_fp16``.
        memory_ratio: MLX's memory in use, relative to the weights and what the gauge says.
        resident_ratio: The same of resident memory, without what the process took by the first turn.
        total_s: For ``api``: seconds of all turns.
        most_reread: For ``api``: the most tokens of the history that one turn read again, but for the turn
            after the restart.
        turns: For ``api``: turns until the time was up.
        slowest_s: For ``api``: seconds of the slowest turn.
        restart_s: For ``api``: seconds of the turn after the server was killed, without its start.
        restart_reread: For ``api``: tokens of the history that this turn read again.
        resident_bytes: For ``api``: the server's resident memory at the end.
        device_bytes: For ``api``: the most memory that the server had on an NVIDIA card after a turn.
        cache_bytes: For ``api``: bytes of the history's cache; for mlx-lm's server, of all its caches.
        fp16_bytes: For ``api``: bytes of the history's cache as FP16.
    """

    what: str
    scheme: str
    context: int
    median_s: float
    spread_s: float
    tok_s: float | None = None
    ratio_fp16: float | None = None
    ratio_mlx: float | None = None
    peak_bytes: int | None = None
    read_bytes: int | None = None
    read_bytes_s: float | None = None
    ratio_fresh: float | None = None
    memory_ratio: float | None = None
    resident_ratio: float | None = None
    ratio_plain: float | None = None
    total_s: float | None = None
    most_reread: int | None = None
    turns: int | None = None
    slowest_s: float | None = None
    restart_s: float | None = None
    restart_reread: int | None = None
    resident_bytes: int | None = None
    device_bytes: int | None = None
    cache_bytes: int | None = None
    fp16_bytes: int | None = None


@dataclass(frozen=True)
class BenchResults:
    """A bench run: device, model, copy bandwidth (bytes read plus written per second), rows."""

    device: str
    model: str | None
    copy_bytes_s: float | None
    rows: tuple[BenchRow, ...] = field(default=())

    def to_json(self) -> str:
        """The JSON that ``--json`` writes."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> BenchResults:
        """Parse a file written by ``to_json``.

        Raises:
            BadResults: if the file is missing or not a bench result.
        """
        try:
            data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return cls(rows=tuple(BenchRow(**row) for row in data.pop("rows")), **data)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise BadResults(f"The results {path} cannot be read ({reason}).") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadResults(f"{path} does not hold results of `tqchat lab bench --json`.") from error


def tables(results: BenchResults) -> str:
    """Markdown: the machine, then one table for each kind of measurement."""
    copy = "" if results.copy_bytes_s is None else f" It copies {size(results.copy_bytes_s)} a second."
    model = "" if results.model is None else f", {results.model}"
    parts = [f"{results.device}{model}.{copy}"]
    for what, rows in groupby(results.rows, key=lambda row: row.what):
        parts.append(f"**{what}**\n\n{_table(list(rows), results.copy_bytes_s)}")
    return "\n\n".join(parts)


def row_line(row: BenchRow) -> str:
    """One measurement in a line, for those who wait for the tables."""
    length = f", {row.context:,}" if row.context else ""
    speed = "" if row.tok_s is None else f", {_speed(row.tok_s)} tok/s"
    return f"{row.what}: {row.scheme}{length}: {_seconds(row.median_s)}{speed}"


def _table(rows: Sequence[BenchRow], copy_bytes_s: float | None) -> str:
    columns = [
        ("scheme", [f"`{row.scheme}`" for row in rows]),
        ("length", [f"{row.context:,}" if row.context else "" for row in rows]),
        ("median", [_seconds(row.median_s) for row in rows]),
        ("spread", [_seconds(row.spread_s) for row in rows]),
        ("tok/s", [_shown(row.tok_s, _speed) for row in rows]),
        ("of FP16", [_shown(row.ratio_fp16, _times) for row in rows]),
        ("of mlx-lm's quantised", [_shown(row.ratio_mlx, _times) for row in rows]),
        ("of a fresh cache", [_shown(row.ratio_fresh, _times) for row in rows]),
        ("memory of the expected", [_shown(row.memory_ratio, _times) for row in rows]),
        ("resident of the expected", [_shown(row.resident_ratio, _times) for row in rows]),
        ("of plain", [_shown(row.ratio_plain, _times) for row in rows]),
        ("slowest", [_shown(row.slowest_s, _seconds) for row in rows]),
        ("first after the restart", [_shown(row.restart_s, _seconds) for row in rows]),
        ("turns", [_shown(row.turns, str) for row in rows]),
        ("total", [_shown(row.total_s, _seconds) for row in rows]),
        ("read again at most", [_shown(row.most_reread, _tokens) for row in rows]),
        ("after the restart", [_shown(row.restart_reread, _tokens) for row in rows]),
        ("peak", [_shown(row.peak_bytes, size) for row in rows]),
        ("resident", [_shown(row.resident_bytes, size) for row in rows]),
        ("on the card", [_shown(row.device_bytes, size) for row in rows]),
        ("cache", [_shown(row.cache_bytes, size) for row in rows]),
        ("as FP16", [_shown(row.fp16_bytes, size) for row in rows]),
        ("reads", [_shown(row.read_bytes_s, lambda speed: f"{size(speed)}/s") for row in rows]),
    ]
    if copy_bytes_s:
        shares = [
            _shown(row.read_bytes_s, lambda speed: f"{100 * speed / copy_bytes_s:.0f} %") for row in rows
        ]
        columns.append(("of a copy", shares))
    kept = [(name, cells) for name, cells in columns if any(cells)]
    body = list(zip(*(cells for _, cells in kept), strict=True))
    return markdown([name for name, _ in kept], body, right=range(1, len(kept)))


def _shown(value: Any, formatted: Any) -> str:
    return "" if value is None else str(formatted(value))


def _seconds(value: float) -> str:
    if value >= 1:
        return f"{value:.2f} s"
    return f"{1e3 * value:.2f} ms" if value >= 1e-3 else f"{1e6 * value:.1f} us"


def _speed(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _tokens(count: int) -> str:
    return f"{count:,} tokens"


def _times(value: float) -> str:
    return f"{value:.2f}x"

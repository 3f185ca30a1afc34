"""What an evaluation finds, a row for each scheme. Pure Python, no MLX."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqchat.errors import TqchatError


class BadResults(TqchatError):
    """A file is not one that ``tqchat lab eval --json`` wrote."""

    exit_code = 2


@dataclass(frozen=True)
class Row:
    """One scheme against the FP16 cache, same weights, same tokens.

    KLD (Kullback-Leibler divergence of the next token's distribution from the FP16 cache's) is in nats,
    ``top1`` the share of tokens whose likeliest successor is the same. ``bytes`` are counted from the live
    arrays at the end, ``fp16_bytes`` are the same layers and tokens at two bytes a value. ``recall`` is the
    share of recall prompts answered right, ``None`` where none were asked."""

    scheme: str
    kld_mean: float
    kld_median: float
    kld_p99: float
    top1: float
    ppl: float
    bytes: int
    fp16_bytes: int
    ratio: float
    recall: float | None = None


@dataclass(frozen=True)
class Results:
    """An evaluation: ``tokens`` are what every cache held at the end, the prefill included."""

    model: str
    text: str
    tokens: int
    rows: tuple[Row, ...]

    def to_json(self) -> str:
        """The form that ``--json`` writes."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> Results:
        """What ``to_json`` wrote.

        Raises:
            BadResults: if the file is missing or something else.
        """
        try:
            told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            rows = tuple(Row(**row) for row in told.pop("rows"))
            return cls(**told, rows=rows)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise BadResults(f"The results {path} cannot be read ({reason}).") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadResults(f"{path} does not hold results of `tqchat lab eval --json`.") from error


class Tally:
    """Adds up one scheme's tokens."""

    def __init__(self) -> None:
        self.klds: list[float] = []
        self.agreed = 0
        self.surprise = 0.0

    def add(self, klds: list[float], agreed: int, surprise: float) -> None:
        """Count some tokens.

        Args:
            klds: The divergence at each.
            agreed: At how many of them the likeliest next token was the reference's.
            surprise: The sum of -log p of the tokens that really came next, in nats.
        """
        # Rounding can take a divergence of nothing a hair below zero.
        self.klds += [max(0.0, kld) for kld in klds]
        self.agreed += agreed
        self.surprise += surprise

    def row(self, scheme: str, size: int, fp16_size: int) -> Row:
        """The figures for everything counted."""
        ordered = sorted(self.klds)
        count = len(ordered)
        return Row(
            scheme=scheme,
            kld_mean=math.fsum(ordered) / count,
            kld_median=quantile(ordered, 0.5),
            kld_p99=quantile(ordered, 0.99),
            top1=self.agreed / count,
            ppl=math.exp(min(self.surprise / count, 700.0)),
            bytes=size,
            fp16_bytes=fp16_size,
            ratio=fp16_size / size if size else 1.0,
        )


def quantile(ordered: list[float], share: float) -> float:
    """The value below which ``share`` of an ordered list lies, neighbours interpolated."""
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)

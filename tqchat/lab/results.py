"""Evaluation results: one row per scheme, as JSON. No MLX."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqchat.errors import TqchatError


class BadResults(TqchatError):
    """The file was not written by ``tqchat lab eval --json``."""

    exit_code = 2


@dataclass(frozen=True)
class Row:
    """One scheme against the FP16 cache, same weights, same tokens.

    ``kld_*`` are KL divergences of the next token's distribution from the FP16 cache's, in nats; ``top1`` the
    share of tokens with the same most likely next token. ``bytes`` are counted from the live arrays at the
    end, ``fp16_bytes`` are the same layers and tokens at two bytes a value. ``recall`` is the share of recall
    prompts answered correctly, ``None`` without recall prompts."""

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
    """An evaluation. ``tokens`` is the length of every cache at the end, the prefill included."""

    model: str
    text: str
    tokens: int
    rows: tuple[Row, ...]

    def to_json(self) -> str:
        """The JSON that ``--json`` writes."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> Results:
        """Parse a file written by ``to_json``.

        Raises:
            BadResults: if the file is missing or not an evaluation.
        """
        try:
            data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            rows = tuple(Row(**row) for row in data.pop("rows"))
            return cls(**data, rows=rows)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise BadResults(f"The results {path} cannot be read ({reason}).") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadResults(f"{path} does not hold results of `tqchat lab eval --json`.") from error


class Tally:
    """Accumulates one scheme's figures."""

    def __init__(self) -> None:
        self.klds: list[float] = []
        self.top1_matches = 0
        self.nll_sum = 0.0

    def add(self, klds: list[float], top1_matches: int, nll_sum: float) -> None:
        """Add a block of tokens.

        Args:
            klds: Divergence at each token, in nats.
            top1_matches: Tokens whose most likely next token is the reference's.
            nll_sum: Sum of -log p of the actual next tokens, in nats.
        """
        # Rounding can make a divergence slightly negative.
        self.klds += [max(0.0, kld) for kld in klds]
        self.top1_matches += top1_matches
        self.nll_sum += nll_sum

    def row(self, scheme: str, size: int, fp16_size: int) -> Row:
        """The figures over all tokens added."""
        ordered = sorted(self.klds)
        count = len(ordered)
        return Row(
            scheme=scheme,
            kld_mean=math.fsum(ordered) / count,
            kld_median=quantile(ordered, 0.5),
            kld_p99=quantile(ordered, 0.99),
            top1=self.top1_matches / count,
            ppl=math.exp(min(self.nll_sum / count, 700.0)),
            bytes=size,
            fp16_bytes=fp16_size,
            ratio=fp16_size / size if size else 1.0,
        )


def quantile(ordered: list[float], share: float) -> float:
    """Quantile of an ordered list, linearly interpolated."""
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)

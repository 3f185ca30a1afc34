"""Proof that work grows linearly: processor time at two sizes, with a margin that only a square exceeds."""

from __future__ import annotations

import time
from collections.abc import Callable

GROWTH = 8
MARGIN = 3.0
"""A linear function takes ``GROWTH`` times as long, a quadratic one ``GROWTH`` squared."""
RUNS = 3


def assert_linear(work: Callable[[str], object], unit: str, characters: int = 8_000) -> None:
    """Check that ``work`` takes time in proportion to the length of ``unit`` repeated."""
    small = unit * (characters // len(unit))
    before = max(_seconds(work, small), 0.0005)
    after = _seconds(work, small * GROWTH, enough=before * GROWTH * MARGIN)
    ratio = after / before
    assert ratio < GROWTH * MARGIN, f"{unit!r}: {GROWTH} times the text took {ratio:.0f} times as long"


def _seconds(work: Callable[[str], object], text: str, enough: float = 0.0) -> float:
    """The shortest of some runs, in processor time; a run shorter than ``enough`` suffices."""
    best = float("inf")
    for _ in range(RUNS):
        began = time.process_time()
        work(text)
        best = min(best, time.process_time() - began)
        if best < enough:
            break
    return best

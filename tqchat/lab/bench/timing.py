"""Timing on a machine with other load: candidates run interleaved, and ratios are taken within a round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median, quantiles

from tqchat.lab.candidates import CannotTakePart

WARM_UP_ROUNDS = 1
"""Rounds not counted, in which kernels are compiled and prompts packed."""


def time_interleaved(
    runs: Mapping[str, Callable[[], float]],
    rounds: int,
    tell: Callable[[str], None] = lambda name: None,
    leave_out: Callable[[str, CannotTakePart], None] = lambda name, error: None,
) -> dict[str, list[float]]:
    """Call each of ``runs`` once a round, in rotating order; each returns its own seconds.

    Args:
        tell: Called with the name of the next run.
        leave_out: Called with the name of a run that raised ``CannotTakePart``, which has no times then.

    Returns:
        Seconds of every round after the warm-up, by name.
    """
    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(WARM_UP_ROUNDS + rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            if name not in times:
                continue
            tell(name)
            try:
                seconds = runs[name]()
            except CannotTakePart as error:
                del times[name]
                leave_out(name, error)
                continue
            if number >= WARM_UP_ROUNDS:
                times[name].append(seconds)
    return times


def spread(times: Sequence[float]) -> float:
    """Interquartile range; 0 for a single time."""
    if len(times) < 2:
        return 0.0
    low, _, high = quantiles(times, n=4, method="inclusive")
    return high - low


def ratio(reference: Sequence[float] | None, times: Sequence[float]) -> float | None:
    """Median speed relative to ``reference`` within a round; ``None`` without a reference."""
    if reference is None:
        return None
    return median(other / own for other, own in zip(reference, times, strict=True))

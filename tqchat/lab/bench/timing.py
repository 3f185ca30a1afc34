"""Timing that a machine busy with other things disturbs as little as may be: contestants take turns, and each
round is held against the same round of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median, quantiles

WARM_UP = 1
"""Rounds that do not count: kernels are compiled in them, and prompts are packed."""


def take_turns(
    runs: Mapping[str, Callable[[], float]], rounds: int, tell: Callable[[str], None] = lambda name: None
) -> dict[str, list[float]]:
    """Let each of ``runs`` time itself once a round, in another order every time.

    Returns:
        The seconds of every round after the first, by name.
    """
    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(WARM_UP + rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            tell(name)
            seconds = runs[name]()
            if number >= WARM_UP:
                times[name].append(seconds)
    return times


def spread(times: Sequence[float]) -> float:
    """The interquartile range, 0 for a single time."""
    if len(times) < 2:
        return 0.0
    low, _, high = quantiles(times, n=4, method="inclusive")
    return high - low


def ratio(reference: Sequence[float] | None, times: Sequence[float]) -> float | None:
    """How many times faster than ``reference``, round for round; ``None`` without one."""
    if reference is None:
        return None
    return median(other / own for other, own in zip(reference, times, strict=True))

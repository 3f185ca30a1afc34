"""Sizes in words: one function and one system of units for commands, screens and errors."""

from __future__ import annotations

GB = 1_000_000_000
"""The unit of the memory and cache budgets in the settings."""
_UNITS = ((GB, "GB"), (1_000_000, "MB"), (1_000, "kB"))


def size(count: float) -> str:
    """Bytes in decimal units with three significant digits: ``0.82 MB``, ``310 kB``, ``12.4 GB``."""
    sign, count = ("-", -count) if count < 0 else ("", count)
    for unit, name in _UNITS:
        # From half a unit on, so that a column keeps one unit: 0.82 MB under 3.15 MB.
        if count >= unit * (0.5 if unit > 1_000 else 1):
            value = count / unit
            digits = 0 if value >= 100 else 1 if value >= 10 else 2
            return f"{sign}{value:,.{digits}f} {name}"
    return f"{sign}{count:.0f} B"

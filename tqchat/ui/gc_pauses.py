"""Shorter pauses of Python's garbage collector while the screen draws."""

from __future__ import annotations

import gc

GC_THRESHOLD = 10_000
"""New objects between collections of the youngest generation; Python's 700 collects while drawing."""


def freeze_gc() -> None:
    """Exclude all present objects from garbage collection.

    Modules, tables of a model and widgets live as long as the program; traversing them takes a tenth of a
    second in which nothing is drawn. Call it once they exist.
    """
    gc.collect(1)
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 10, 10)

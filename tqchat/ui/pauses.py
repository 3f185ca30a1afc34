"""Keeping Python's garbage collector from stopping the screen."""

from __future__ import annotations

import gc

YOUNG = 10_000
"""New objects between two looks at the young ones; Python's own figure, 700, has it look while it draws."""


def spare_what_stays() -> None:
    """Have the collector leave alone what is there now.

    Modules, models' tables and the screen's widgets stay for as long as the program runs, and to go through
    all of them takes a tenth of a second in which nothing is drawn. Called once these are there.
    """
    gc.collect(1)
    gc.freeze()
    gc.set_threshold(YOUNG, 10, 10)

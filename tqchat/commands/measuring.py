"""What the commands of the laboratory share: the model to measure, results on disk, how far they are."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tqchat.errors import TqchatError

if TYPE_CHECKING:
    from tqchat.engine.models import LoadedModel


class CannotWrite(TqchatError):
    """A result cannot be written where it was asked for."""


def load(ref: str | None) -> LoadedModel:
    """The model that was named, or the one of the settings."""
    from tqchat import paths, settings
    from tqchat.engine import models

    wishes = settings.load(paths.locate())
    return models.load(ref if ref is not None else wishes.model)


def check_folder(out: Path | None) -> None:
    """Refuse a file whose folder is not there, before anything takes long.

    Raises:
        CannotWrite: if it is not.
    """
    if out is not None and not out.parent.is_dir():
        raise CannotWrite(f"The folder {out.parent} does not exist, so {out.name} cannot be written there.")


def write(file: Path, text: str) -> None:
    """Write a result.

    Raises:
        CannotWrite: if that fails.
    """
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CannotWrite(f"{file} cannot be written ({(error.strerror or str(error)).lower()}).") from error


class Progress:
    """How far a measurement is, on standard error: a line that renews itself, or a few lines in a log."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._began = self._told = time.monotonic()
        self._tenth = -1
        self._shown = False
        self._noted = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show what is going on, if it is time to."""
        now = time.monotonic()
        share = done / total if total else 0.0
        if self._live:
            if now - self._told < 0.2:
                return
            self._told, self._shown = now, True
            sys.stderr.write(f"\r\x1b[K{100 * share:3.0f} %  {what}{self._left(now, share)}")
        elif int(10 * share) != self._tenth:
            self._tenth = int(10 * share)
            sys.stderr.write(f"{100 * share:3.0f} %  {what}\n")
        sys.stderr.flush()

    def note(self, what: str) -> None:
        """Show what is going on, where how much there is to do is not known."""
        if self._live:
            self._shown = True
            sys.stderr.write(f"\r\x1b[K{what}")
        elif what.partition(", ")[0] != self._noted:
            self._noted = what.partition(", ")[0]
            sys.stderr.write(f"{self._noted}\n")
        sys.stderr.flush()

    def end(self) -> None:
        """Make room for what comes next."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def _left(self, now: float, share: float) -> str:
        if share < 0.02:
            return ""
        left = (now - self._began) / share * (1 - share)
        return f", {left / 60:.0f} min left" if left > 90 else f", {left:.0f} s left"

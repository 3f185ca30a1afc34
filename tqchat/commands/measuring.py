"""Shared parts of commands: their parsers, loading the model, writing results, progress."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tqchat import terminal
from tqchat.errors import TqchatError
from tqchat.terminal import Control

if TYPE_CHECKING:
    from tqchat.engine.models import LoadedModel


class CannotWrite(TqchatError):
    """A result file cannot be written."""


def add_command(
    below: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str
) -> argparse.ArgumentParser:
    """Add a subcommand whose summary is also the first line of its own help."""
    description = f"{summary[0].upper()}{summary[1:]}."
    return below.add_parser(name, help=summary, description=description, allow_abbrev=False)


def add_model_option(parser: argparse._ActionsContainer) -> None:
    """Add ``--model``; SUPPRESS keeps a value given before the command."""
    parser.add_argument(
        "--model",
        metavar="MODEL",
        default=argparse.SUPPRESS,
        help="model folder or Hugging Face repo id (default: from the settings)",
    )


def add_adapter_option(parser: argparse._ActionsContainer) -> None:
    """Add ``--adapter``; SUPPRESS keeps a value given before the command."""
    parser.add_argument(
        "--adapter",
        metavar="FOLDER",
        default=argparse.SUPPRESS,
        help="folder of a LoRA adapter for the model, or off (default: from the settings, for the model "
        "from the settings)",
    )


def load(ref: str | None, adapter: str | None = None) -> LoadedModel:
    """Load the given model, or the one from the settings with its adapter.

    Args:
        adapter: Folder of the LoRA adapter to use instead, or ``NO_ADAPTER``.
    """
    from tqchat import paths, settings
    from tqchat.engine import models
    from tqchat.engine.memory import quality_profile

    locations = paths.locate()
    user_settings = settings.load(locations)
    if ref is None:
        ref, adapter = user_settings.model, user_settings.adapter if adapter is None else adapter
    return models.load(
        ref, adapter=adapter, find_profile=lambda model: quality_profile.find(locations, model)
    )


def check_folder(out: Path | None) -> None:
    """Check that a result file's folder exists, before a long measurement starts.

    Raises:
        CannotWrite: if it does not.
    """
    if out is not None and not out.parent.is_dir():
        raise CannotWrite(
            f"The folder {out.parent} does not exist; create it, or write {out.name} elsewhere."
        )


def write(file: Path, text: str) -> None:
    """Write a result file.

    Raises:
        CannotWrite: if that fails.
    """
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CannotWrite(f"{file} cannot be written ({(error.strerror or str(error)).lower()}).") from error


class Progress:
    """Progress on standard error: an updating line on a terminal, a line per 10 % otherwise."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._began = self._told = time.monotonic()
        self._tenth = -1
        self._shown = False
        self._last_note = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Report progress, rate-limited."""
        now = time.monotonic()
        share = done / total if total else 0.0
        if self._live:
            if now - self._told < 0.2:
                return
            self._told, self._shown = now, True
            line = f"{100 * share:3.0f} %  {what}{self._left(now, share)}"
            terminal.write(sys.stderr, Control.CLEAR_LINE, line)
        elif int(10 * share) != self._tenth:
            self._tenth = int(10 * share)
            sys.stderr.write(f"{100 * share:3.0f} %  {what}\n")
        sys.stderr.flush()

    def note(self, what: str) -> None:
        """Show the current step of work whose total is unknown."""
        if self._live:
            self._shown = True
            terminal.write(sys.stderr, Control.CLEAR_LINE, what)
        elif what.partition(", ")[0] != self._last_note:
            self._last_note = what.partition(", ")[0]
            sys.stderr.write(f"{self._last_note}\n")
        sys.stderr.flush()

    def line(self, text: str) -> None:
        """Show a result that has come, above the progress line."""
        self.end()
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def end(self) -> None:
        """Clear the progress line."""
        if self._shown:
            terminal.write(sys.stderr, Control.CLEAR_LINE)
            sys.stderr.flush()

    def _left(self, now: float, share: float) -> str:
        if share < 0.02:
            return ""
        left = (now - self._began) / share * (1 - share)
        return f", {left / 60:.0f} min left" if left > 90 else f", {left:.0f} s left"

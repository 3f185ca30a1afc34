"""Ending the app on a signal: everything is saved that can be within two seconds."""

from __future__ import annotations

import contextlib
import os
import signal
import termios
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
TIME_LIMIT_S = 1.6
"""After that the process ends even if the screen's thread does not answer, such as for a closed terminal."""

_INPUT, _ERRORS = 0, 2
"""Textual reads standard input and draws on standard error."""
_RESTORE = (
    "\x1b[?2004l"  # bracketed paste
    "\x1b[?1000l\x1b[?1003l\x1b[?1015l\x1b[?1006l"  # mouse
    "\x1b[?2048l\x1b[?1004l\x1b[?7h"  # size reports, focus reports, line wrap
    "\x1b[<u\x1b[?1049l\x1b[?25h"  # keyboard protocol, alternate screen, cursor
)


class EndSignals:
    """Handles the signals that end a process.

    Args:
        on_signal: Called once, on the main thread and between any two of its instructions.
        save: Called on another thread if the process still runs after ``TIME_LIMIT_S``.

    Attributes:
        installed: Whether the signals are taken over.
        exit_code: The conventional code of the signal received, ``None`` before one.
    """

    def __init__(self, on_signal: Callable[[], None], save: Callable[[], object]) -> None:
        self._on_signal, self._save = on_signal, save
        self._terminal = _attributes()
        self.exit_code: int | None = None
        self.installed = False

    def install(self) -> None:
        """Take the signals over."""
        # Not the event loop's handlers: this one also runs while the main thread waits for a dead terminal.
        self.installed = True
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                signal.signal(number, self._received)

    def end_within(self, seconds: float, code: int) -> None:
        """End the process after a time if it has not ended by then."""
        if self.installed:
            self.exit_code = self.exit_code or code
            limit = threading.Timer(seconds, self._end_now)
            limit.daemon = True
            limit.start()

    def terminal_is_gone(self) -> bool:
        """Whether there was a terminal and is none any more: nohup and shells may keep its signal away."""
        return self._terminal is not None and _attributes() is None

    def _received(self, number: int, frame: FrameType | None) -> None:
        if self.exit_code is not None:
            return  # the end has begun
        self.end_within(TIME_LIMIT_S, 128 + number)
        self._on_signal()

    def _end_now(self) -> None:
        with contextlib.suppress(Exception):
            self._save()
        if self._terminal is not None:
            with contextlib.suppress(OSError, termios.error):
                os.set_blocking(_ERRORS, False)
                os.write(_ERRORS, _RESTORE.encode())
                termios.tcsetattr(_INPUT, termios.TCSANOW, self._terminal)
        os._exit(self.exit_code or 1)


def _attributes() -> list[Any] | None:
    """The terminal's modes before the app changes them; ``None`` without a terminal."""
    try:
        return termios.tcgetattr(_INPUT)
    except (termios.error, OSError):
        return None

"""Ending a command on a signal, also while the main thread computes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from types import FrameType, TracebackType
from typing import NoReturn, Self

from tqchat.errors import TqchatError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
TIME_LIMIT_S = 1.2


class Interrupted(TqchatError):
    """A signal has ended the command."""

    def __init__(self, number: int) -> None:
        self.exit_code = 128 + number
        super().__init__("Interrupted.")


class Interruption:
    """While it is entered, a signal sets ``stop``; the process ends if that is not heeded in time.

    Python runs signal handlers on the main thread only, and only between its own instructions: loading a
    model or reading a long prompt would delay them. So a thread waits for signals.

    Raises:
        Interrupted: on leaving, if there was a signal.
    """

    def __init__(self, time_limit_s: float = TIME_LIMIT_S) -> None:
        """
        Args:
            time_limit_s: How long the main thread has to end by itself.
        """
        self._time_limit_s = time_limit_s
        self.stop = threading.Event()
        self._number = 0
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self._wakes, self._woken = socket.socketpair()
        self._wakes.setblocking(False)
        signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, _ignore) for number in SIGNALS}
        threading.Thread(target=self._wait, daemon=True).start()
        return self

    def _wait(self) -> None:
        with self._woken:
            received = self._woken.recv(1)
            while received and received[0] not in SIGNALS:
                received = self._woken.recv(1)
        if not received:
            return  # the command has ended
        self._number = received[0]
        self.stop.set()
        if not self._ended.wait(self._time_limit_s):
            with contextlib.suppress(OSError):
                os.write(2, b"\ntqchat: Interrupted.\n")
            os._exit(128 + self._number)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        signal.set_wakeup_fd(-1)
        self._wakes.close()
        if self._number:
            # The process ends now: a second signal does not change that.
            raise Interrupted(self._number) from error
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Only lets the thread know."""


def end_process(code: int) -> NoReturn:
    """End the process without taking the interpreter down: threads of MLX that still compute abort that."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)

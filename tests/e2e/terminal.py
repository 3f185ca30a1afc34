"""Runs tqchat in a pseudo-terminal and emulates its screen."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pexpect
import pyte

from tqchat.paths import Paths
from tqchat.store.database import Database, Message

TIMEOUT_S = 120.0
REPOSITORY = Path(__file__).parents[2]
KEYS = {
    "enter": "\r",
    "escape": "\x1b",
    "up": "\x1b[A",
    "down": "\x1b[B",
    "home": "\x1b[H",
    "f1": "\x1bOP",
    "f3": "\x1bOR",
    "f5": "\x1b[15~",
    "f9": "\x1b[20~",
    **{f"ctrl+{letter}": chr(ord(letter) - 96) for letter in "cdfgklnopqrsvx"},
}
_UNKNOWN = re.compile(rb"\x1b\[[<>=?][0-9;]*(?:\$p|[umcq])|\x1b\[[0-9;]* q")
"""Terminal queries and keyboard modes that the emulator does not know and would print."""


class Terminal:
    """``tqchat`` in a terminal of ``columns`` by ``rows``; leaving the context kills it if it still runs."""

    def __init__(
        self,
        *arguments: str,
        columns: int = 150,
        rows: int = 40,
        folder: Path = REPOSITORY,
        ignores_hangup: bool = False,
        **environment: str,
    ) -> None:
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self._held = b""
        self.raw = b""
        # pytest-xdist sets a size in the environment of its workers, which would override the terminal's.
        inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        env = inherited | {"TERM": "xterm-256color", "COLORTERM": "truecolor"} | environment
        self.process = pexpect.spawn(
            sys.executable,
            ["-m", "tqchat", *arguments],
            dimensions=(rows, columns),
            env=env,
            timeout=None,
            cwd=str(folder),
            # The tests may run under nohup, whose ignored hang-ups are inherited.
            preexec_fn=(lambda: None) if ignores_hangup else _heed_hangup,
        )

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.isalive():
            self.process.kill(signal.SIGKILL)
            self.process.wait()
        self.process.close()

    def text(self) -> str:
        return "\n".join(self._screen.display)

    def background(self, column: int, row: int) -> str:
        """Background colour of a cell."""
        return str(self._screen.buffer[row][column].bg)

    def columns(self, character: str) -> set[int]:
        """The columns of the cells that show a character."""
        rows = self._screen.buffer.values()
        return {column for row in rows for column, cell in row.items() if cell.data == character}

    def foreground(self, text: str) -> str:
        """Colour of a text on the screen."""
        row, column = next(
            (row, line.index(text)) for row, line in enumerate(self._screen.display) if text in line
        )
        return str(self._screen.buffer[row][column].fg)

    def stands_out(self, text: str) -> bool:
        """Whether a text is on the screen, on another background than the line below it."""
        places = [(row, line.index(text)) for row, line in enumerate(self._screen.display) if text in line]
        return any(self.background(column, row) != self.background(column, row + 1) for row, column in places)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.process.send(KEYS.get(key, key))

    def write(self, text: str) -> None:
        """Type a message and send it."""
        self.process.send(text)
        self.sees(text[-30:])
        self.press("enter")

    def until(self, happened: Callable[[], object]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not happened():
            assert time.monotonic() < deadline, f"did not happen; the terminal shows:\n{self.text()}"
            self._read()

    def sees(self, *texts: str) -> None:
        self.until(lambda: all(text in self.text() for text in texts))

    def sees_no(self, text: str) -> None:
        self.until(lambda: text not in self.text())

    def ends(self) -> int:
        """Read until the program exits; its exit code."""
        self.until(lambda: not self.process.isalive())
        while self._read():
            pass
        self.process.close()
        assert self.process.exitstatus is not None, f"ended by signal {self.process.signalstatus}"
        return int(self.process.exitstatus)

    def quit(self) -> None:
        """Quit as a user does; the program must end well."""
        self.press("ctrl+q")
        assert self.ends() == 0

    def resize(self, columns: int, rows: int) -> None:
        self._screen.resize(rows, columns)
        self.process.setwinsize(rows, columns)

    def _read(self) -> bool:
        """Read what there is; whether there was anything."""
        try:
            piece = self.process.read_nonblocking(65_536, timeout=0.1)
        except pexpect.TIMEOUT:
            return False
        except pexpect.EOF:
            time.sleep(0.05)
            return False
        self.raw += piece
        data = self._held + piece
        cut = data.rfind(b"\x1b")
        # Keep an incomplete escape sequence for the next read.
        if cut >= 0 and len(data) - cut < 24 and not re.search(rb"\x1b[^A-Za-z]*[A-Za-z]", data[cut:]):
            data, self._held = data[:cut], data[cut:]
        else:
            self._held = b""
        self._stream.feed(_UNKNOWN.sub(b"", data))
        return True


def _heed_hangup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def stored_messages(paths: Paths) -> list[Message]:
    """The messages of all conversations in the database."""
    with Database(paths.database) as database:
        conversations = database.conversations()
        return [message for one in conversations for message in database.messages(one.id)]

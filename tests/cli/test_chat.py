"""``tqchat`` on a pseudo-terminal when it cannot open: one sentence, exit code, no escape sequences."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys

import pytest

from tqchat.paths import Paths
from tqchat.store.database import Database

pty = pytest.importorskip("pty")


def on_a_terminal(*arguments: str, **environment: str) -> tuple[int, str]:
    """Run tqchat on a pseudo-terminal; returns its exit code and output."""
    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "tqchat", *arguments]
    env = os.environ | {"TERM": "xterm-256color"} | environment
    with subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=env) as process:
        os.close(terminal)
        shown = b""
        try:
            while piece := os.read(controller, 65536):
                shown += piece
        except OSError:
            pass  # Linux reports a closed terminal as EIO.
        code = process.wait(timeout=60)
    os.close(controller)
    return code, shown.decode()


def refuses(code: int, *arguments: str, **environment: str) -> str:
    left, shown = on_a_terminal(*arguments, **environment)
    assert left == code, shown
    assert "\x1b" not in shown
    assert shown.startswith("tqchat: ")
    assert shown.count("\n") == 1
    return shown


def test_unknown_scheme() -> None:
    assert "'zip'" in refuses(2, "--scheme", "zip")


def test_a_database_of_a_newer_version(paths: Paths) -> None:
    Database(paths.database).close()
    with sqlite3.connect(paths.database) as other:
        other.execute("PRAGMA user_version = 99")
    other.close()
    assert "newer tqchat" in refuses(1)


def test_a_folder_for_conversations_that_cannot_be_created(paths: Paths) -> None:
    paths.data_dir.rmdir()
    paths.data_dir.write_text("in the way")
    assert str(paths.data_dir) in refuses(1)


def test_a_dumb_terminal() -> None:
    assert "tqchat run" in refuses(2, TERM="dumb")

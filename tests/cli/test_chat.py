"""``tqchat`` on a real (pseudo) terminal, where it must refuse to open: a sentence, not a screen."""

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
    """The exit code of `tqchat`, and what the terminal got to see of it."""
    ours, its = pty.openpty()
    command = [sys.executable, "-m", "tqchat", *arguments]
    env = os.environ | {"TERM": "xterm-256color"} | environment
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=env) as process:
        os.close(its)
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:
            pass  # How Linux says that the other end is closed.
        code = process.wait(timeout=60)
    os.close(ours)
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


def test_corrupt_config(paths: Paths) -> None:
    paths.config_file.write_text("max_tokens = 'many'", "utf-8")
    assert "max_tokens is 'many'" in refuses(2)


def test_a_database_from_a_newer_version(paths: Paths) -> None:
    Database(paths.database).close()
    with sqlite3.connect(paths.database) as other:
        other.execute("PRAGMA user_version = 99")
    other.close()
    assert "newer tqchat" in refuses(1)


def test_a_folder_that_cannot_be_made(paths: Paths) -> None:
    paths.log_dir.rmdir()
    paths.log_dir.write_text("in the way")
    assert str(paths.log_dir) in refuses(1)


def test_a_terminal_that_cannot_be_drawn_on() -> None:
    assert "tqchat run" in refuses(2, TERM="dumb")

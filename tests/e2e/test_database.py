"""The database beside the running app: locked, removed, replaced, on a full disk."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.terminal import Terminal, stored_messages
from tqchat.paths import Paths
from tqchat.store.database import Database

pytestmark = pytest.mark.slow


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Hold the write lock as another program does."""
    with sqlite3.connect(database, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")
    other.close()


def said(paths: Paths) -> list[str]:
    return [message.content for message in stored_messages(paths) if message.status != "unfinished"]


def answered(terminal: Terminal, question: str, paths: Paths) -> None:
    """Ask the first question of a conversation, and wait until it and its answer are stored."""
    terminal.sees("Ask something", "Ready.")
    terminal.write(question)
    terminal.until(lambda: len(said(paths)) == 2)


def draft(paths: Paths) -> str:
    with Database(paths.database) as database:
        return database.conversations()[0].draft


@pytest.fixture(autouse=True)
def settings(paths: Paths) -> None:
    paths.config_file.write_text("temperature = 0.0\nmax_tokens = 8\n")


def test_a_locked_database_holds_up_no_key_and_loses_no_message(paths: Paths, llama_folder: Path) -> None:
    with Terminal("--model", str(llama_folder)) as terminal:
        terminal.sees("Ask something", "Ready.")
        with locked(paths.database):
            terminal.write("What is a fox?")
            terminal.sees("Not stored yet, but kept and tried again", "Waiting for the database")
            # The writer waits for the lock now; what is typed is drawn all the same.
            for text in ("And what ", "is a ", "badger?"):
                terminal.press(text)
                terminal.sees(text.strip())
            assert "What is a fox?" in terminal.text()
            with sqlite3.connect(paths.database) as other:
                assert other.execute("SELECT count(*) FROM messages").fetchone() == (0,)
        terminal.until(lambda: len(said(paths)) == 2)
        assert said(paths)[0] == "What is a fox?"
        terminal.until(lambda: draft(paths) == "And what is a badger?")
        terminal.quit()


def test_what_a_locked_database_does_not_take_is_stored_at_the_next_start(
    paths: Paths, llama_folder: Path
) -> None:
    with Terminal("--model", str(llama_folder)) as terminal:
        answered(terminal, "One?", paths)
        with locked(paths.database):
            terminal.write("Two?")
            terminal.sees("Not stored yet")
            terminal.press("Not sent")
            terminal.sees("Not sent")
            terminal.press("ctrl+q")
            assert terminal.ends() == 1
    left = terminal.raw.rpartition(b"\x1b[?1049l")[2].decode()
    (kept,) = paths.state_dir.glob("unsaved-*.json")
    assert kept.name in left.replace("\r\n", ""), "the file is named after the terminal is restored"
    assert kept.stat().st_mode & 0o077 == 0
    with Terminal("--model", str(llama_folder)) as terminal:
        terminal.sees("What could not be stored at the last end", "Two?", "Not sent")
        terminal.quit()
    assert said(paths)[0] == "One?" and said(paths)[2] == "Two?"
    assert draft(paths) == "Not sent"
    assert not list(paths.state_dir.glob("unsaved-*"))


def test_a_database_that_was_emptied_is_not_taken_for_a_first_start(paths: Paths, llama_folder: Path) -> None:
    with Terminal("--model", str(llama_folder)) as terminal:
        answered(terminal, "One?", paths)
        terminal.quit()
    backup = paths.database.read_bytes()
    paths.database.write_bytes(b"")
    with Terminal("--model", str(llama_folder)) as terminal:
        terminal.sees("was empty, though 1 conversation has a saved cache", "put it back")
        paths.database.with_name("copy").write_bytes(backup)
        paths.database.with_name("copy").rename(paths.database)
        terminal.sees("The file of the conversations was replaced", "One?")
        terminal.quit()
    assert said(paths)[0] == "One?"


def test_a_removed_database_is_created_again_with_the_open_conversation(
    paths: Paths, llama_folder: Path
) -> None:
    with Terminal("--model", str(llama_folder)) as terminal:
        answered(terminal, "One?", paths)
        terminal.press("Not sent")
        paths.database.unlink()
        terminal.sees("The file of the conversations was removed")
        terminal.until(lambda: paths.database.exists() and len(said(paths)) == 2)
        terminal.until(lambda: draft(paths) == "Not sent")
        terminal.press("enter")
        terminal.until(lambda: len(said(paths)) == 4)
        terminal.quit()
    assert said(paths)[0] == "One?" and said(paths)[2] == "Not sent"


def test_a_replaced_database_gets_the_open_conversation(
    paths: Paths, llama_folder: Path, tmp_path: Path
) -> None:
    with Database(tmp_path / "other" / "tqchat.db") as other:
        other.add_message(other.create("Earlier", None, "fp16").id, "user", "From a backup")
    with Terminal("--model", str(llama_folder)) as terminal:
        answered(terminal, "One?", paths)
        shutil.copy(tmp_path / "other" / "tqchat.db", tmp_path / "tqchat.db")
        (tmp_path / "tqchat.db").rename(paths.database)
        terminal.sees("The file of the conversations was replaced", "Earlier")
        terminal.write("Two?")
        terminal.until(lambda: len(said(paths)) == 5)
        terminal.quit()
    with Database(paths.database) as database:
        assert database._connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    assert {"One?", "Two?", "From a backup"} <= set(said(paths))


def test_unsent_text_of_a_new_conversation_survives_quitting_and_a_kill(
    paths: Paths, llama_folder: Path
) -> None:
    with Terminal("--model", str(llama_folder)) as terminal:
        terminal.sees("Ask something")
        terminal.press("Not sent yet")
        terminal.sees("Not sent yet")
        terminal.quit()
    with Terminal("--model", str(llama_folder)) as terminal:
        terminal.sees("Not sent yet")
        terminal.press(", and more")
        terminal.until(lambda: paths.unsent_text.read_text() == "Not sent yet, and more")
    with Terminal("--model", str(llama_folder)) as terminal:
        terminal.sees("Not sent yet, and more", "Ready.")
        terminal.press("enter")
        terminal.until(lambda: len(said(paths)) == 2 and not paths.unsent_text.exists())
        terminal.quit()

"""Databases that cannot be written, opened or fully used: the sentence fits the cause, and reading works."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tqchat.commands.conversations.reading import open_for_reading
from tqchat.paths import Paths
from tqchat.store import errors
from tqchat.store.database import Database, DatabaseUnreadable

START_AFRESH = "move it away"


def without_rights(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run tqchat as a user to whom the modes of files apply, which is not so for root."""
    command = [sys.executable, "-m", "tqchat", *arguments]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root ignores the modes of files, and setpriv is not installed")
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def filled(paths: Paths) -> Paths:
    """A home with one conversation, whose last message is in the write-ahead log only."""
    with Database(paths.database) as database:
        chat = database.create("Cats", None, "turbo4")
        database.add_message(chat.id, "user", "A question about cats.")
    code = (
        "import os, sys; from pathlib import Path; from tqchat.store.database import Database\n"
        "database = Database(Path(sys.argv[1])); chat = database.conversations()[0].id\n"
        "database.add_message(chat, 'assistant', 'An answer about cats.'); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(paths.database)], check=True)
    assert paths.database.with_name("tqchat.db-wal").stat().st_size
    return paths


def make_read_only(home: Path) -> None:
    for path in (*home.rglob("*"), home):
        path.chmod(0o500 if path.is_dir() else 0o400)


def make_writable(home: Path) -> None:
    home.chmod(0o700)
    for path in home.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)


def test_reading_commands_work_in_a_read_only_home(filled: Paths, home: Path) -> None:
    before = {path: path.read_bytes() for path in filled.data_dir.iterdir()}
    with Database(filled.database) as database:
        chat = database.conversations()[0].id
    before = {path: path.read_bytes() for path in filled.data_dir.iterdir()}
    make_read_only(home)
    try:
        for arguments, said in (
            (("ls",), "Cats"),
            (("show", chat), "An answer about cats."),
            (("search", "answer"), "An answer about cats."),
            (("export", "--all", "--format", "json"), "An answer about cats."),
            (("cache",), "no saved caches"),
        ):
            done = without_rights(*arguments)
            assert done.returncode == 0 and said in done.stdout, (arguments, done.stderr)
        refused = without_rights("import", os.devnull)
        assert refused.returncode == 1 and "cannot be written (permission denied)" in refused.stderr
        assert START_AFRESH not in refused.stderr and refused.stderr.count("\n") == 1
        assert {path: path.read_bytes() for path in filled.data_dir.iterdir()} == before
    finally:
        make_writable(home)


def test_a_database_that_may_not_be_read(filled: Paths, home: Path) -> None:
    filled.database.chmod(0)
    refused = without_rights("ls")
    assert refused.returncode == 1 and "cannot be read (permission denied)" in refused.stderr
    filled.data_dir.chmod(0)
    refused = without_rights("ls")
    filled.data_dir.chmod(0o700)
    assert refused.returncode == 1 and "permission denied" in refused.stderr
    assert "Traceback" not in refused.stderr and START_AFRESH not in refused.stderr


def test_a_copy_has_what_is_in_the_write_ahead_log_and_is_removed(
    filled: Paths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    opened: list[Path] = []
    make = Database.__init__

    def refuse_first(self: Database, path: Path) -> None:
        opened.append(path)
        if len(opened) == 1:
            raise errors.DatabaseNotWritable(path, "the disk is read-only")
        make(self, path)

    monkeypatch.setattr(Database, "__init__", refuse_first)
    with open_for_reading(filled.database) as database:
        assert [one.content for one in database.messages(database.conversations()[0].id)] == [
            "A question about cats.",
            "An answer about cats.",
        ]
    assert opened[1].is_relative_to(temporary) and not list(temporary.iterdir())


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOSPC])
def test_only_damage_advises_to_start_afresh(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    said = str(errors.from_os_error(OSError(code, os.strerror(code)), paths.database))
    assert START_AFRESH not in said and str(paths.data_dir) in said


def test_exhausted_inodes_are_named(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    about = os.statvfs(paths.data_dir)
    full = os.statvfs_result((*about[:7], 0, *about[8:]))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    said = str(errors.from_os_error(OSError(errno.ENOSPC, "no space"), paths.database))
    assert "inodes" in said


def test_special_files_in_place_of_the_database(paths: Paths) -> None:
    os.mkfifo(paths.database)
    with pytest.raises(DatabaseUnreadable, match="no regular file"):
        Database(paths.database)
    paths.database.unlink()
    paths.database.symlink_to("/dev/zero")
    with pytest.raises(DatabaseUnreadable, match="no regular file"):
        Database(paths.database)


DAMAGE = {
    "no index of messages": "DROP TABLE messages_index",
    "no index of titles": "DROP TABLE titles_index",
    "no content": "DELETE FROM messages_index_data",
    "damaged content": "UPDATE messages_index_data SET block = x'00ff00ff' WHERE id > 10",
    "no configuration": "DELETE FROM messages_index_config",
    "no table below": "PRAGMA writable_schema = ON; "
    "DELETE FROM sqlite_master WHERE name = 'messages_index_data'",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_lost_search_index_is_made_anew(filled: Paths, damage: str) -> None:
    with sqlite3.connect(filled.database) as other:
        other.executescript(damage)
    other.close()
    with Database(filled.database) as database:
        (chat,) = database.conversations()
        assert len(database.messages(chat.id)) == 2
        assert len(database.search("cats")) == 3
        database.add_message(chat.id, "user", "More cats.")
        assert len(database.search("cats")) == 4


def test_an_index_that_is_damaged_while_the_database_is_open(filled: Paths) -> None:
    with Database(filled.database) as database:
        (chat,) = database.conversations()
        with sqlite3.connect(filled.database) as other:
            other.execute("UPDATE messages_index_data SET block = x'00ff00ff' WHERE id > 10")
        other.close()
        with pytest.raises(errors.SearchIndexDamaged, match="conversations, which are intact"):
            for _ in range(3):
                database.search("cats")
                database.add_message(chat.id, "user", "More cats.")
        database.add_message(chat.id, "user", "Other animals.")
        assert database.search("animals")
